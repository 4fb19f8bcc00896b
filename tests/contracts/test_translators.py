"""Promises of every family's translator, over the registry."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import medgen
from medgen.checkpoint import About
from medgen.families import family_class, family_names
from medgen.translator import Translator
from tests.tiny import nudge

pytestmark = pytest.mark.parametrize("family", family_names("translator"))


@pytest.fixture
def translator(family) -> Translator:
    torch.manual_seed(0)
    kind = family_class(family)
    return nudge(kind(kind.config_class.tiny())).eval()


@pytest.fixture
def images(translator):
    config = translator.config
    return torch.rand(5, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))


def test_translated_images_have_the_shape_type_and_range_of_images(translator, images):
    for domain in translator.domains:
        translated = translator.translate(images, domain)
        assert translated.shape == images.shape
        assert (translated.dtype, translated.requires_grad) == (torch.float32, False)
        assert 0 <= translated.min() < translated.max() <= 1


def test_domains_differ_and_are_found_by_name_and_number(translator, images):
    by_number = [translator.translate(images, number) for number in range(len(translator.domains))]
    assert not torch.allclose(*by_number[:2], atol=1e-3)
    for domain, translated in zip(translator.domains, by_number, strict=True):
        assert torch.equal(translator.translate(images, domain), translated)


def test_the_batch_size_changes_no_image(translator, images):
    whole = translator.translate(images, 0)
    torch.testing.assert_close(translator.translate(images, 0, batch_size=2), whole, rtol=0, atol=1e-5)


def test_translating_leaves_the_mode_and_the_images_alone(translator, images):
    translator.train()
    before = images.clone()
    translator.translate(images, 0)
    assert translator.training
    assert torch.equal(images, before)


def test_a_saved_translator_comes_back(translator, images, tmp_path):
    about = About(licence="CC0-1.0")
    loaded = medgen.load(translator.save_pretrained(tmp_path / "model", about=about))
    assert type(loaded) is type(translator)
    assert (loaded.config, loaded.about) == (translator.config, about)
    assert torch.equal(loaded.translate(images, 1), translator.translate(images, 1))
    assert 'medgen.load("model")' in (tmp_path / "model" / "README.md").read_text()


def test_damaged_and_incomplete_weights_are_refused(translator, tmp_path):
    folder = translator.save_pretrained(tmp_path / "model")
    path = folder / "model.safetensors"
    state = load_file(path)
    state.popitem()
    save_file(state, path)
    with pytest.raises(ValueError, match="damaged or was changed"):
        medgen.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "nowhere"}, "label 'nowhere' is unknown"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"images": torch.rand(0, 1, 16, 16)}, "give at least one"),
        ({"images": torch.full((1, 1, 16, 16), 255.0)}, r"span \[255, 255\]"),
        ({"images": torch.zeros(1, 2, 16, 16)}, "images have shape"),
    ],
)
def test_bad_input_is_refused(translator, images, change, message):
    with pytest.raises(ValueError, match=message):
        translator.translate(**{"images": images, "to": 0} | change)


def test_it_draws_nothing(translator, tmp_path):
    from medgen.loading import load_generator

    with pytest.raises(ValueError, match="which draws no images; translate images with `medgen translate"):
        load_generator(translator.save_pretrained(tmp_path / "model"))
