"""What every family's generator promises, over the registry: a new family is picked up by its line there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medgen.checkpoint import About, description_hash, sha256_of
from medgen.families import family_class, family_names
from medgen.generator import Generator
from medgen.loading import from_pretrained
from tests.tiny import nudge

KINDS = {"none": (), "single": ("a", "b", "c"), "multi": ("a", "b"), "continuous": ("age", "dose")}
LABELS = {"none": (None, None), "single": ("a", "c"), "multi": (["a"], ["a", "b"]), "continuous": ([0, 1], [1, -1])}

pytestmark = pytest.mark.parametrize("family", family_names())


@pytest.fixture
def make(family: str):
    """A function from the kind of label to a tiny generator whose weights are random everywhere."""

    def build(kind: str = "single", **changes: object) -> Generator:
        torch.manual_seed(0)
        kind_of_family = family_class(family)
        config = replace(kind_of_family.config_class.tiny(), label_kind=kind, label_names=KINDS[kind], **changes)
        return nudge(kind_of_family(config)).eval()

    return build


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "image_size"), [(1, (16, 16)), (3, (16, 32))])
def test_samples_have_the_shape_type_and_range_of_images(make, kind, channels, image_size):
    images = make(kind, channels=channels, image_size=image_size).sample(3, LABELS[kind][0], seed=0)
    assert images.shape == (3, channels, *image_size)
    assert (images.dtype, images.device.type, images.requires_grad) == (torch.float32, "cpu", False)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0


def test_samples_can_be_trained_on(make):
    (make().sample(1, seed=0).mul_(2) * torch.ones(1, requires_grad=True)).sum().backward()


def test_same_seed_gives_same_images(make):
    generator = make()
    assert torch.equal(generator.sample(2, "a", seed=7), generator.sample(2, "a", seed=7))


def test_another_seed_gives_other_images(make):
    generator = make()
    assert not torch.allclose(generator.sample(2, "a", seed=7), generator.sample(2, "a", seed=8), atol=1e-3)


def test_without_a_seed_each_call_gives_other_images(make):
    generator = make()
    assert not torch.allclose(generator.sample(1, "a"), generator.sample(1, "a"), atol=1e-3)


def test_images_of_a_run_differ(make):
    first, second = make().sample(2, "a", seed=0)
    assert not torch.allclose(first, second, atol=1e-3)


def test_sampling_leaves_the_global_random_state_alone(make):
    generator = make()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generator.sample(1, seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_index_alone(make, kind):
    generator, label = make(kind), LABELS[kind][1]
    together = generator.sample(6, label, seed=3, batch_size=6)
    for arguments in ({"batch_size": 1}, {"batch_size": 4}):
        torch.testing.assert_close(generator.sample(6, label, seed=3, **arguments), together, rtol=0, atol=1e-4)
    torch.testing.assert_close(generator.sample(2, label, seed=3), together[:2], rtol=0, atol=1e-4)
    torch.testing.assert_close(generator.sample(2, label, seed=3, first_index=4), together[4:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["single", "multi", "continuous"])
def test_the_label_changes_the_images(make, kind):
    generator = make(kind)
    drawn = [generator.sample(2, label, seed=0) for label in (None, *LABELS[kind])]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (drawn[i] - drawn[j]).abs().max() > 1e-3


def test_each_image_gets_its_own_label(make):
    generator = make()
    mixed = generator.sample(3, ["a", 2, "B"], seed=0)
    for i, label in enumerate(("a", "c", "b")):
        torch.testing.assert_close(generator.sample(3, label, seed=0)[i], mixed[i], rtol=0, atol=1e-4)


def test_sampling_is_in_evaluation_mode_and_restores_the_mode(make):
    generator = make()
    expected = generator.sample(1, seed=0)
    generator.train()
    assert torch.equal(generator.sample(1, seed=0), expected)
    assert generator.training


def test_bf16_is_close_to_float32(make):
    generator = make()
    half, full = (generator.sample(4, "a", seed=0, precision=precision) for precision in ("bf16", "float32"))
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_generator_samples_the_same_images(make, kind, tmp_path):
    generator = make(kind, intensity_window=(-1000.0, 400.0), intensity_unit="HU")
    about = About(licence="CC-BY-4.0", known_failures=("none known",))
    loaded = from_pretrained(generator.save_pretrained(tmp_path / "model", about=about))
    assert (type(loaded), loaded.config, loaded.about) == (type(generator), generator.config, about)
    assert loaded.source == str(tmp_path / "model")
    assert loaded.revision
    assert not loaded.training
    label = LABELS[kind][0]
    assert torch.equal(loaded.sample(2, label, seed=0), generator.sample(2, label, seed=0))


def test_weights_stored_in_half_precision_give_nearly_the_same_images(make, tmp_path):
    generator = make()
    loaded = from_pretrained(generator.save_pretrained(tmp_path / "model", dtype=torch.bfloat16))
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert (loaded.sample(2, seed=0) - generator.sample(2, seed=0)).abs().mean() < 0.02


@pytest.fixture
def saved(make, tmp_path) -> Path:
    return make().save_pretrained(tmp_path / "model")


def edit(folder: Path, **changes: object) -> None:
    """Change the description and state its new hash, as someone who knows the format would."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    content["description_sha256"] = description_hash(content["family"], content["config"], content["about"])
    path.write_text(json.dumps(content))


def rewrite_weights(folder: Path, change) -> None:
    """Change the weights and state their new hash, as someone who knows the format would."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    files = json.loads((folder / "config.json").read_text())["files"]
    edit(folder, files=files | {path.name: sha256_of(path)})


def test_a_damaged_weight_file_is_refused(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or was changed"):
        from_pretrained(saved)


def test_a_truncated_weight_file_is_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or was changed"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(sorted(state)[0]), r"1 differences\): .* is missing"),
        (lambda state: state.update(stray=torch.zeros(1)), "stray is not part of this model"),
        (lambda state: state.update({sorted(state)[0]: torch.zeros(1, 2, 3)}), r"is \(1, 2, 3\), expected"),
    ],
    ids=["missing", "left over", "other shape"],
)
def test_weights_of_another_model_are_refused_though_their_hash_is_right(saved, change, message):
    rewrite_weights(saved, change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(saved)


def test_a_foreign_family_is_refused(saved):
    edit(saved, family="dalle")
    with pytest.raises(ValueError, match="family 'dalle' is unknown; this medgen has"):
        from_pretrained(saved)


def test_a_future_format_is_refused(saved):
    edit(saved, format_version=99)
    with pytest.raises(ValueError, match="format 99"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"flux_capacitor": 1}, "does not know: \\['flux_capacitor'\\]"), ({"channels": None}, "lacks fields of")],
)
def test_a_config_of_other_fields_is_refused(saved, change, message):
    config = json.loads((saved / "config.json").read_text())["config"] | change
    edit(saved, config={name: value for name, value in config.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0; ask for at least one image"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"first_index": -1}, "first_index is -1"),
        ({"precision": "fp8"}, "precision is 'fp8'; use 'float32' or 'bf16'"),
        ({"label": "z"}, "label 'z' is unknown; use 0-2 or one of 'a', 'b', 'c'"),
        ({"label": 3}, "label 3 is out of range; use 0-2 or one of 'a', 'b', 'c'"),
        ({"label": ["a", "b"]}, "label has 2 entries for 3 images"),
        ({"stepz": 3}, "sampling option stepz is unknown to"),
    ],
)
def test_wrong_arguments_are_refused_with_the_way_out(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make().sample(**({"n": 3} | arguments))


def test_a_label_for_an_unconditional_model_is_refused(make):
    with pytest.raises(ValueError, match="this model is unconditional; leave label out"):
        make("none").sample(1, "a")
