import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from medgen.losses.autoencoder import AutoencoderLoss, adaptive_weight
from medgen.losses.ssim import ssim


@pytest.fixture
def target() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 1, 32, 32) * 2 - 1


class Half(nn.Module):
    """A perceptual loss that finds all images half alike."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return torch.full((len(prediction),), 0.5)


def patches(*, bias: float = 0.0) -> nn.Conv2d:
    """A discriminator that says the mean of each 4x4 patch."""
    discriminator = nn.Conv2d(1, 1, 4, stride=4)
    nn.init.constant_(discriminator.weight, 1 / 16)
    nn.init.constant_(discriminator.bias, bias)
    return discriminator


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equal_images_cost_nothing(target: Tensor, reduction: str) -> None:
    loss = AutoencoderLoss(reduction=reduction)([target, target[..., 1::2, 1::2]], target)
    assert loss.total.item() == pytest.approx(0, abs=1e-3)


def test_sum_counts_per_image_losses_once_for_every_pixel_and_adds_the_scales(target: Tensor) -> None:
    outputs = [target + 1, target[..., 1::2, 1::2] + 2]
    loss = AutoencoderLoss(perceptual=Half(), perceptual_weight=3, ssim_weight=0, reduction="sum")(outputs, target)
    assert loss.total.item() == pytest.approx((1 + 1.5) * 32 * 32 + (2 + 1.5) * 16 * 16, rel=1e-5)


def test_mean_halves_the_weight_of_every_lower_scale(target: Tensor) -> None:
    outputs = [target + 1, avg_pool2d(target, 2) + 2]
    options = {"pixel": "mse", "ssim_weight": 0, "reduction": "mean", "downscaling": "area"}
    assert AutoencoderLoss(**options)(outputs, target).total.item() == pytest.approx((1 + 4 / 2) / 1.5, rel=1e-5)


def test_structural_loss_compares_clamped_images(target: Tensor) -> None:
    output = 3 * target
    loss = AutoencoderLoss(ssim_weight=1, reduction="mean")([output], target)
    likeness = ssim(((output + 1) / 2).clamp(0, 1), (target + 1) / 2).mean()
    assert loss.terms["ssim"].item() == pytest.approx(likeness.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(((output - target).abs().mean() + 1 - likeness).item(), rel=1e-5)


def test_terms_are_detached(target: Tensor) -> None:
    layer = nn.Conv2d(1, 1, 1)
    loss = AutoencoderLoss(perceptual=Half())([layer(target)], target, [patches()], [layer.weight])
    assert set(loss.terms) == {"pixel", "ssim", "perceptual", "reconstruction", "adversarial_0", "adaptive_weight_0"}
    assert loss.total.requires_grad
    assert not any(term.requires_grad for term in loss.terms.values())


def test_adaptive_weight_balances_the_gradients_of_the_last_layer() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    found = adaptive_weight((3 * weight).sum(), (0.5 * weight).sum(), weight)
    assert found.item() == pytest.approx(6, rel=1e-3)
    assert not found.requires_grad


def test_adaptive_weight_is_bounded() -> None:
    weight = torch.tensor([1.0], requires_grad=True)
    assert adaptive_weight((1e3 * weight).sum(), (0 * weight).sum(), weight).item() == 1e4


def test_autoencoder_learns_to_raise_the_logits_of_its_outputs(target: Tensor) -> None:
    layer = nn.Conv2d(1, 1, 1)
    output = layer(target)
    plain = AutoencoderLoss(reduction="mean")([output], target)
    played = AutoencoderLoss(reduction="mean")([output], target, [patches()], [layer.weight])
    toward = torch.autograd.grad(played.total - plain.total, layer.bias)[0]
    assert toward < 0  # a larger bias means brighter patches and higher logits


def test_adversarial_weight_scales_the_game(target: Tensor) -> None:
    layer = nn.Conv2d(1, 1, 1)
    half, full = (
        AutoencoderLoss(adversarial_weight=w)([layer(target)], target, [patches(bias=1)], [layer.weight])
        for w in (0.5, 1)
    )
    torch.testing.assert_close(2 * half.terms["adversarial_0"], full.terms["adversarial_0"])


def test_discriminators_see_every_scale_and_leave_the_autoencoder_alone(target: Tensor) -> None:
    outputs = [(0 * target).requires_grad_(), (0 * avg_pool2d(target, 2)).requires_grad_()]
    loss = AutoencoderLoss(reduction="sum")
    discriminators = nn.ModuleList([patches(), patches(bias=3)])
    total, terms = loss.discriminator_loss(outputs, target, discriminators)
    real = [discriminator(avg_pool2d(target, 2**i) if i else target) for i, discriminator in enumerate(discriminators)]
    expected = [((1 - r).relu().mean() + (1 + f)) / 2 for r, f in zip(real, (0, 3), strict=True)]
    torch.testing.assert_close(total, torch.stack(expected).sum())
    torch.testing.assert_close(terms["discriminator_1"], expected[1].detach())
    total.backward()
    assert outputs[0].grad is None
    assert discriminators[1].bias.grad is not None


def test_half_precision_outputs_are_added_up_in_full(target: Tensor) -> None:
    output = (target + 0.25).bfloat16()
    loss = AutoencoderLoss(ssim_weight=0)([output], target)
    expected = (output.float() - target).abs().sum() / 2
    torch.testing.assert_close(loss.total, expected)


def test_volumes_are_compared_as_images_are() -> None:
    volume = torch.rand(1, 1, 12, 16, 16) * 2 - 1
    loss = AutoencoderLoss(reduction="mean")([volume + 0.5, interpolate(volume, scale_factor=0.5)], volume)
    assert loss.terms["pixel"].item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pixel": "l3"}, "pixel is 'l3'; use one of 'l1', 'mse'"),
        ({"adversarial": "chess"}, "adversarial is 'chess'; use one of 'hinge'"),
        ({"reduction": "none"}, "reduction is 'none'"),
        ({"downscaling": "bicubic"}, "downscaling is 'bicubic'"),
    ],
)
def test_unknown_choices_are_refused(option: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderLoss(**option)  # type: ignore[arg-type]
