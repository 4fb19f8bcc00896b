"""Beyond the contract: images of given maps in given styles, drawn maps, codes of anatomies, bad input."""

import csv
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.data import TableDataModule
from medgen.data.readers import read_mask
from medgen.families.spade.codes import StyleCodes
from medgen.families.spade.generator import SPADEConfig, SPADEGenerator
from medgen.images import save_png
from medgen.loading import from_pretrained
from medgen.sampling import SamplingRun, sample_to_folder
from tests.tiny import NAMES, nudge


def model_of(kind="single", seed=0, **changes):
    torch.manual_seed(seed)
    config = replace(SPADEConfig.tiny(), **({"label_kind": kind, "label_names": NAMES[kind]} | changes))
    return nudge(SPADEGenerator(config)).eval()


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def masks():
    return torch.randint(3, (4, 16, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (4, 1, 16, 16), generator=torch.Generator().manual_seed(2)) / 255


def far(a, b):
    return (a - b).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"style": "none", "map_dim": 0},
        {"style": "inside", "style_dim": 64, "image_size": (32, 32), "num_upsamplings": 4},
        {"norm": "instance", "image_size": (32, 32)},
        {"norm": "group"},
        {"modulation": "clade"},
        {"kernel_size": 1, "channels": 3, "image_size": (16, 32)},
        {"dont_care": True, "instance_edges": True},
        {"style_size": 32, "style_halvings": 2},
        {"style": "drawn"},
    ],
)
def test_every_variant_draws_images_of_maps(changes):
    model = model_of(**changes)
    masks = torch.randint(3, (2, *model.config.image_size))
    drawn = model.sample(2, mask=masks, seed=0)
    assert drawn.shape == (2, model.config.channels, *model.config.image_size)
    assert far(drawn, model.sample(2, mask=(masks + 1) % 3, seed=0))


@pytest.mark.slow
def test_each_image_is_of_its_own_map(model, masks):
    together = model.sample(4, mask=masks, seed=0, batch_size=3)
    alone = model.sample(1, mask=masks[2], seed=0, first_index=2)
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-4)
    one_for_all = model.sample(4, mask=masks[2], seed=0)
    torch.testing.assert_close(together[2], one_for_all[2], rtol=0, atol=1e-4)


def test_without_a_map_maps_are_drawn_and_can_be_had(model):
    drawn = model.sample(4, "ill", seed=3)
    masks = model.sample_masks(4, "ill", seed=3)
    assert torch.equal(model.masks_for(4, "ill", seed=3), masks)
    torch.testing.assert_close(model.sample(4, "ill", mask=masks, seed=3), drawn, rtol=0, atol=1e-4)
    assert torch.equal(model.sample_masks(2, "ill", seed=3, first_index=2), masks[2:])


def test_masks_for_gives_back_given_maps(model, masks):
    assert torch.equal(model.masks_for(4, mask=masks), masks)


def test_no_truncation_is_the_mean_map_and_style(model):
    first, second = model.sample(2, "ill", seed=0, truncation_psi=0.0)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
    assert torch.equal(*model.sample_masks(2, "ill", seed=0, truncation_psi=0.0))


def test_the_label_moves_maps_and_styles(model, masks):
    assert not torch.equal(model.sample_masks(4, "ill", seed=0), model.sample_masks(4, "healthy", seed=0))
    assert far(model.sample(2, "ill", mask=masks[:2], seed=0), model.sample(2, "healthy", mask=masks[:2], seed=0))


# Styles


def test_an_image_can_be_given_as_style_in_every_form(model, masks, images, tmp_path):
    codes = model.encode_style(images)
    expected = model.sample(4, mask=masks, style=codes, seed=0)
    torch.testing.assert_close(model.sample(4, mask=masks, style=images, seed=9), expected, rtol=0, atol=1e-4)
    assert far(expected, model.sample(4, mask=masks, style=images.flip(0), seed=0))
    one = model.sample(4, mask=masks, style=images[1], seed=0)
    torch.testing.assert_close(one[1], expected[1], rtol=0, atol=1e-4)
    save_png(images[1], tmp_path / "style.png")
    of_file = model.sample(4, mask=masks, style=str(tmp_path / "style.png"), seed=0)
    torch.testing.assert_close(of_file, one, rtol=0, atol=1e-4)


def test_a_group_of_training_images_gives_its_styles_whatever_the_label(model, masks):
    of_group = model.sample(4, "healthy", mask=masks, style="ill", seed=0)
    torch.testing.assert_close(of_group, model.sample(4, "ill", mask=masks, seed=0), rtol=0, atol=1e-4)
    assert far(of_group, model.sample(4, "healthy", mask=masks, seed=0))


def test_findings_are_groups_too(masks):
    model = model_of("multi")
    drawn = model.sample(4, mask=masks, style="edema", seed=0)
    torch.testing.assert_close(drawn, model.sample(4, [["edema"]] * 4, mask=masks, seed=0), rtol=0, atol=1e-4)


def test_styles_between_two_lie_between_them(model, masks, images):
    a, b = model.encode_style(images[:1]), model.encode_style(images[1:2])
    walk = model.sample(3, mask=masks[0], style=a.blend(b, torch.tensor([0.0, 0.5, 1.0])), seed=0)
    for place, end in ((0, a), (2, b)):
        torch.testing.assert_close(walk[place], model.sample(1, mask=masks[0], style=end, seed=0)[0], rtol=0, atol=1e-4)
    assert far(walk[1], walk[0])
    assert far(walk[1], walk[2])


@pytest.mark.parametrize("truncation", [-0.1, 2.1])
def test_a_truncation_out_of_range_is_refused_before_anything_is_drawn(model, truncation):
    message = f"truncation_psi is {truncation}; use 0"
    for refuse in (model.check_options, lambda options: model.sample_masks(1, **options)):
        with pytest.raises(ValueError, match=message):
            refuse({"truncation_psi": truncation})


def test_styles_of_another_checkpoint_are_refused(model, masks, images):
    foreign = model_of(seed=1).encode_style(images)
    with pytest.raises(ValueError, match="codes of another checkpoint's style encoder; encode the images with this"):
        model.sample(4, mask=masks, style=foreign)


def test_styles_survive_saving_and_loading(model, masks, images, tmp_path):
    loaded = from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert isinstance(loaded, SPADEGenerator)
    codes = model.encode_style(images)
    ours, theirs = (one.sample(4, mask=masks, style=codes, seed=0) for one in (model, loaded))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ("sick", "style 'sick' is neither a group of training images nor a file; use one of 'healthy', 'ill', or an"),
        (3, "style is 3; give a label, a file, images, or the result of encode_style"),
        (torch.zeros(2, 3, 16, 16), r"style images have shape \(2, 3, 16, 16\); expected \(B, 1, 16, 16\)"),
        (torch.zeros(2, 1, 16, 8), r"style images have shape \(2, 1, 16, 8\); expected"),
        (torch.full((2, 1, 16, 16), 255.0), r"style images span \[255, 255\]; .* in \[0, 1\]: divide by the largest"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"style images are torch.uint8; .* floating point in \[0, 1\]"),
        (torch.full((2, 1, 16, 16), torch.nan), "style images hold NaN or infinite values"),
        (torch.full((2, 1, 16, 16), torch.inf), "style images hold NaN or infinite values"),
        (torch.zeros(0, 1, 16, 16), r"style images have shape \(0, 1, 16, 16\); give at least one"),
        (torch.zeros(3, 1, 16, 16), "style has 3 entries for 2 images; give one for each, or one for all"),
    ],
)
def test_what_is_no_style_is_refused(model, masks, style, message):
    with pytest.raises(ValueError, match=message):
        model.sample(2, mask=masks[:2], style=style)


def test_a_style_for_a_generator_without_styles_is_refused(masks, images):
    model = model_of(style="none")
    with pytest.raises(ValueError, match="this generator has no styles"):
        model.sample(4, mask=masks, style=images)
    for other in (model, model_of(style="drawn")):
        with pytest.raises(ValueError, match="this generator has no style encoder"):
            other.encode_style(images)


# Maps


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.full((2, 16, 16), 255), "mask holds the values 255; .* write class numbers, such as 0 and 1"),
        (torch.tensor([[3, 0] * 8] * 16), "mask holds the values 0, 3; this generator has the classes 0 to 2"),
        (torch.zeros(2, 8, 8, dtype=torch.int64), r"mask has shape \(2, 8, 8\); expected \(n, 16, 16\)"),
        (torch.zeros(3, 16, 16, dtype=torch.int64), "mask has 3 entries for 2 images"),
    ],
)
def test_what_is_no_map_is_refused(model, mask, message):
    with pytest.raises(ValueError, match=message):
        model.sample(2, mask=mask)


def test_without_maps_and_without_their_autoencoder_nothing_can_be_drawn(masks):
    model = model_of(map_dim=0)
    assert model.sample(4, mask=masks, seed=0).isfinite().all()
    with pytest.raises(ValueError, match="mask is None, and this generator has no label-map autoencoder to draw one"):
        model.sample(4)
    for use in (
        lambda: model.sample_masks(2),
        lambda: model.encode_masks(masks),
        lambda: model.decode_masks(torch.zeros(1, 4)),
        lambda: model.toward(torch.zeros(1, 4), "ill"),
    ):
        with pytest.raises(ValueError, match="no label-map autoencoder"):
            use()


def test_maps_are_read_from_files(model, masks, tmp_path):
    for number, mask in enumerate(masks):
        Image.fromarray(mask.numpy().astype(np.uint8)).save(tmp_path / f"{number}.png")
    drawn = model.sample(2, mask=str(tmp_path), seed=0, first_index=1)
    torch.testing.assert_close(drawn, model.sample(2, mask=masks[1:3], seed=0, first_index=1), rtol=0, atol=1e-4)


def test_pixels_of_no_class_are_a_class_of_their_own(masks):
    model = model_of(dont_care=True)
    unknown = masks.clone()
    unknown[:, :8] = 3
    assert far(model.sample(4, mask=masks, seed=0), model.sample(4, mask=unknown, seed=0))
    assert model.semantic(unknown)[:, 3].sum() == 4 * 8 * 16


def test_instances_are_told_apart_by_their_edges():
    model = model_of(instance_edges=True)
    mask, instances = torch.ones(1, 16, 16, dtype=torch.int64), torch.zeros(1, 16, 16, dtype=torch.int64)
    instances[:, :, 8:] = 1
    assert far(model.sample(1, mask=mask, seed=0), model.sample(1, mask=mask, instances=instances, seed=0))
    edges = model.semantic(mask, instances)[0, -1]
    assert edges.sum(0).nonzero()[:, 0].tolist() == [7, 8]


def test_maps_of_instances_are_taken_in_the_forms_of_label_maps():
    model = model_of(instance_edges=True)
    mask, instances = torch.ones(2, 16, 16, dtype=torch.int64), torch.zeros(16, 16, dtype=torch.int32)
    instances[:, 8:] = 1000
    expected = model.sample(2, mask=mask, instances=instances.expand(2, -1, -1), seed=0)
    for same in (instances, instances.numpy(), instances.expand(2, 1, -1, -1), instances.numpy().astype("uint16")):
        assert torch.equal(model.sample(2, mask=mask, instances=same, seed=0), expected)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (torch.zeros(2, 8, 8, dtype=torch.int64), r"instances has shape \(2, 8, 8\); expected \(n, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.int64), r"instances has shape \(2, 3, 16, 16\); expected"),
        (torch.zeros(2, 16, 16), "instances is of type torch.float32; give whole numbers of instances"),
        ([1, 2], r"instances is \[1, 2\]; give numbers of instances as a tensor or array"),
        (torch.zeros(3, 16, 16, dtype=torch.int64), "instances has 3 entries for 2 images"),
    ],
)
def test_what_is_no_map_of_instances_is_refused(masks, instances, message):
    with pytest.raises(ValueError, match=message):
        model_of(instance_edges=True).sample(2, mask=masks[:2], instances=instances)


def test_instances_that_would_not_be_seen_are_refused(model, masks):
    with pytest.raises(
        ValueError, match=r"does not see the borders .*config\.instance_edges is False.*leave instances"
    ):
        model.sample(4, mask=masks, instances=masks)
    with pytest.raises(ValueError, match="instances are given without the label maps they are of; give mask, too"):
        model_of(instance_edges=True).sample(4, instances=masks)


def test_a_long_run_writes_the_map_of_each_image_beside_it(model, tmp_path):
    run = SamplingRun(seed=3, labels=("ill", "healthy"))
    table = sample_to_folder(model, 5, tmp_path / "run", run, batch_size=2, progress=False)
    rows = list(csv.DictReader(table.open()))
    assert [row["mask"] for row in rows] == [f"masks/00000{i}.png" for i in range(5)]
    written = torch.stack([torch.from_numpy(read_mask(table.parent / row["mask"])) for row in rows])
    labels = ["ill", "healthy", "ill", "healthy", "ill"]
    assert torch.equal(written, model.sample_masks(5, labels, seed=3))
    trained_on = TableDataModule(
        csv=str(table), image_column="file", mask_column="mask", mask_classes=3, image_size=16, cache=False
    )
    assert len(trained_on.table.images) == 5


def test_a_run_of_other_maps_by_the_same_name_is_another_run(model, masks, tmp_path):
    def draw(n, mask):
        Image.fromarray(mask.numpy().astype("uint8")).save(tmp_path / "map.png")
        run = SamplingRun(seed=3, options={"mask": str(tmp_path / "map.png"), "style": "ill"})
        return sample_to_folder(model, n, tmp_path / "run", run, progress=False)

    draw(1, masks[0])
    draw(2, masks[0])
    with pytest.raises(FileExistsError, match=r"holds another run: files \{'mask': .* there, \{'mask': .* asked for"):
        draw(3, masks[1])


# Anatomies as codes


def test_codes_of_maps_can_be_decoded_moved_and_blended(model, masks):
    codes = model.encode_masks(masks)
    assert codes.shape == (4, 4)
    assert model.decode_masks(codes).shape == masks.shape
    moved = model.toward(codes, "ill", 2.0)
    torch.testing.assert_close(moved - codes, (2 * model.map_prior.slope[1]).expand(4, -1))
    assert torch.equal(model.toward(codes, "ill", 0.0), codes)
    mixed = model.toward(codes, ["ill", "healthy", "ill", "healthy"])
    assert torch.equal(mixed[::2], model.toward(codes, "ill")[::2])
    assert torch.equal(mixed[1::2], model.toward(codes, "healthy")[1::2])
    assert torch.equal(model.encode_masks(masks[0]), model.encode_masks(masks[:1]))
    with pytest.raises(ValueError, match=r"codes have shape \(4, 5\); expected \(n, 4\)"):
        model.decode_masks(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="no label to move toward"):
        model.toward(codes, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_names": ("only",)}, "mask_names is .*; give at least two classes"),
        ({"mask_names": ("a", "a")}, "each by another name"),
        ({"style": "outside"}, "style is 'outside'; use one of none, vae, inside, drawn"),
        ({"style_dim": 0}, "style_dim is 0 with style 'vae'"),
        ({"map_dim": -1}, "map_dim is -1"),
        ({"num_upsamplings": 3}, "num_upsamplings is 3"),
        (
            {"image_size": (24, 16)},
            r"image_size is \(24, 16\); with num_upsamplings 4 both sides must be divisible by 16",
        ),
    ],
)
def test_configs_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SPADEConfig.tiny(), **changes)


def test_codes_are_bound_to_the_weights_of_their_encoder(model, images):
    codes = model.encode_style(images)
    assert isinstance(codes, StyleCodes)
    assert codes.encoder == model.encode_style(images[:1]).encoder != model_of(seed=1).encode_style(images).encoder


# Old names


def test_the_old_name_of_truncation_works(model):
    expected = model.sample(2, "ill", seed=0, truncation_psi=0.5)
    with pytest.warns(FutureWarning, match="truncation is now truncation_psi"):
        assert torch.equal(model.sample(2, "ill", seed=0, truncation=0.5), expected)
    for draw in (model.sample_masks, model.masks_for):
        with pytest.warns(FutureWarning, match="truncation is now truncation_psi"):
            masks = draw(2, "ill", seed=0, truncation=0.5)
        assert torch.equal(masks, model.sample_masks(2, "ill", seed=0, truncation_psi=0.5))


def test_a_config_of_an_old_training_run_loads(tmp_path, monkeypatch):
    config, module = SPADEConfig.tiny(), "medgen.families.spade.generator"
    old = {name: value for name, value in vars(config).items() if name != "num_upsamplings"} | {"doublings": 4}
    with monkeypatch.context() as patch:
        patch.setattr(SPADEConfig, "__module__", module)
        patch.setattr(SPADEConfig, "__getstate__", lambda self: old, raising=False)
        torch.save({"config": config}, tmp_path / "run.ckpt")
    with zipfile.ZipFile(tmp_path / "run.ckpt") as file:
        assert all(text.encode() in file.read("run/data.pkl") for text in (f"{module}\nSPADEConfig", "doublings"))
    assert torch.load(tmp_path / "run.ckpt", weights_only=True)["config"] == config
    assert SPADEConfig.from_dict(old) == config
