"""Augmentation of what the discriminator sees; every transform is compared with the official ones in tests/parity."""

import pytest
import torch

from medgen.nn.resampling import downsample, separable_filter
from medgen.training.ada import PIPES, AugmentPipe


@pytest.mark.parametrize("pipe", PIPES)
def test_without_a_chance_images_stay_as_they_are(pipe):
    augment = AugmentPipe(pipe)
    augment.p.fill_(0)
    images = torch.rand(4, 1, 24, 32) * 2 - 1
    left = augment(images) - images
    assert left.abs().max() <= (1e-6 if "f" in pipe else 0)  # bands are divided and added up


def test_only_images_that_move_are_resampled_and_none_changes_another(monkeypatch):
    torch.manual_seed(0)
    augment = AugmentPipe("bg")
    augment.p.fill_(0.2)
    images = torch.rand(8, 1, 16, 24) * 2 - 1
    resampled = []
    whole = augment._moved

    def moved(some, inverse):
        resampled.append((some, inverse))
        return whole(some, inverse)

    monkeypatch.setattr(augment, "_moved", moved)
    out = augment(images)
    [(some, inverse)] = resampled
    assert 0 < len(some) < len(images)
    changed = (out != images).flatten(1).any(1)
    assert torch.equal(images[changed], some)
    for i, image in enumerate(out[changed]):
        torch.testing.assert_close(image, whole(some[i : i + 1], inverse[i : i + 1])[0])


def test_resampling_changes_nothing_where_nothing_moves():
    images = torch.rand(3, 2, 16, 24) * 2 - 1
    torch.testing.assert_close(AugmentPipe()._moved(images, torch.eye(3).expand(3, 3, 3)), images, rtol=0, atol=1e-5)


def test_gradients_reach_images_that_move_and_those_that_do_not():
    torch.manual_seed(0)
    augment = AugmentPipe("bg")
    augment.p.fill_(0.2)
    images = torch.rand(8, 1, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(augment(images).square().sum(), images, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    assert all(grad.flatten(1).abs().sum(1).gt(0).all() for grad in (gradient, second))


def test_halving_in_bfloat16_is_that_of_float32_rounded():
    x, kernel = torch.randn(2, 3, 8, 8).bfloat16(), separable_filter()
    with torch.autocast("cpu", torch.bfloat16):
        out = downsample(x, kernel)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, downsample(x.float(), kernel).bfloat16())


def test_images_too_small_to_filter_are_refused():
    with pytest.raises(ValueError, match="images are 16 x 32; imgfilter needs more than 21 a side: leave it out"):
        AugmentPipe("filter")(torch.rand(2, 1, 16, 32))


def test_colours_of_other_than_1_or_3_channels_are_refused():
    with pytest.raises(ValueError, match=r"images have 2 channels; brightness, .* are for 1 or 3"):
        AugmentPipe()(torch.rand(2, 2, 16, 16))
