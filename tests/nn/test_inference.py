import copy
import gc

import pytest
import torch
from torch import nn

from medgen.labels import LabelSpace
from medgen.nn import inference
from medgen.nn.autoencoder import AutoencoderConfig, Decoder
from medgen.nn.blocks import BlockStyle, Upsample
from medgen.nn.inference import PackedConvolution, PreparedNetwork, for_inference
from medgen.nn.unet import AdditiveUNet, UNet, UNetConfig
from tests.tiny import nudge

needs_kernels = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")),
    reason="oneDNN has no kernels for this processor, so that networks run as they are",
)
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 kernels"
)
pytestmark = needs_kernels

GROUPS = ("group", {"num_groups": 4})


def network():
    return nudge(UNet(UNetConfig(hidden=(8, 8, 16), strides=(1, 2, 2), embedding_dim=16, norm=GROUPS), 4))


def inputs(batch=2):
    return torch.randn(batch, 4, 8, 8), torch.arange(batch)


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", [UNet, AdditiveUNet])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "spatial", "strides": (1, 2, 1)},
        {"attention": "linear", "kind": "multi"},
        {"learned_resampling": False, "norm": "batch"},
        {"strides": ((1, 1), (1, 2), (2, 1)), "norm": "instance", "kernel_sizes": (3, 3, 5)},
        {"residual": False, "kind": "single"},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_a_prepared_unet_is_the_network_itself_up_to_rounding(kind, options, no_gradients):
    torch.manual_seed(0)
    settings = {"hidden": (8, 8, 16), "strides": (1, 2, 2), "norm": GROUPS} | options
    told = settings.pop("kind", None)
    labels = LabelSpace(told, ("a", "b", "c")) if told else LabelSpace()
    unet = nudge(kind(UNetConfig(embedding_dim=16, **settings), 4, label_space=labels)).eval()
    label = {"multi": torch.tensor([[0.0, 1, 1], [1, 0, torch.nan]]), "single": torch.tensor([2, -1])}
    x = torch.randn(2, 4, 16, 24), torch.tensor([3, 500]), label.get(told)
    expected = unet(*x)
    prepared = for_inference(unet)
    assert isinstance(prepared, PreparedNetwork)
    torch.testing.assert_close(prepared(*x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        half = for_inference(unet)(*x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_volumes_go_through_as_well(no_gradients):
    decoder = Decoder(AutoencoderConfig(spatial_dims=3, latent_channels=2, hidden=(8, 8), strides=(1, 2)), 3)
    z = torch.randn(1, 2, 4, 4, 4)
    nudge(decoder).eval()
    torch.testing.assert_close(for_inference(decoder)(z), decoder(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [(2, 2), (1, 3), (1, 1)])
def test_upsampling_and_its_convolution_are_one_transposed_convolution(stride):
    up = nudge(Upsample(3, 5, BlockStyle(), stride=stride))
    x = torch.randn(2, 3, 4, 5)
    form = up.inference_form()
    assert isinstance(form, nn.Conv2d if stride == (1, 1) else nn.ConvTranspose2d)
    torch.testing.assert_close(form(x), up(x))


@needs_bf16
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [8, 32], ids=["matrix product", "convolution"])
def test_a_packed_convolution_in_bf16_rounds_but_does_not_err(side, stride):
    conv = nn.Conv2d(16, 24, 3, stride, padding=1)
    x = torch.randn(4, 16, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        packed = PackedConvolution(conv, torch.bfloat16)
        torch.testing.assert_close(packed(x), conv.bfloat16()(x), rtol=0.02, atol=0.02)


def test_a_packed_convolution_takes_inputs_of_changing_shape():
    conv = nn.Conv2d(4, 8, 3, padding=1)
    with torch.inference_mode():
        packed = PackedConvolution(conv, torch.float32)
        for shape in [(2, 4, 8, 8), (1, 4, 8, 8), (1, 4, 6, 10)]:
            x = torch.randn(shape)
            torch.testing.assert_close(packed(x), conv(x))


def test_a_change_of_the_weights_is_seen(no_gradients):
    unet = network().eval()
    x = inputs()
    before = for_inference(unet)(*x)
    assert for_inference(unet) is for_inference(unet)
    nudge(unet)
    after = for_inference(unet)(*x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, unet(*x), rtol=1e-5, atol=1e-5)


def by_a_fused_optimiser(unet):
    for parameter in unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(unet.parameters(), lr=0.01, fused=True).step()


def by_hand(unet):
    for parameter in unet.parameters():
        parameter.data.mul_(0.9)


@pytest.mark.parametrize("change", [by_a_fused_optimiser, by_hand])
def test_a_change_that_torch_does_not_count_is_seen(change, no_gradients):
    unet = network().eval()
    x = inputs()
    before = for_inference(unet)(*x)
    versions = [parameter._version for parameter in unet.parameters()]
    change(unet)
    assert [parameter._version for parameter in unet.parameters()] == versions  # else this test shows nothing
    after = for_inference(unet)(*x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, unet(*x), rtol=1e-5, atol=1e-5)


def test_loaded_weights_are_seen(no_gradients):
    unet, other = network().eval(), network().eval()
    x = inputs()
    for_inference(unet)(*x)
    unet.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(for_inference(unet)(*x), other(*x), rtol=1e-5, atol=1e-5)


def test_training_and_gradients_get_the_network_itself():
    unet = network()
    with torch.inference_mode():
        assert for_inference(unet.train()) is unet
    assert for_inference(unet.eval()) is unet
    with torch.inference_mode():
        assert for_inference(unet.double()) is unet


def test_preparing_leaves_no_trace_in_the_network(no_gradients):
    unet = network().eval()
    names, keys = set(vars(unet)), list(unet.state_dict())
    convolutions = [m for m in unet.modules() if isinstance(m, nn.Conv2d)]
    for_inference(unet)(*inputs())
    assert set(vars(unet)) == names
    assert list(unet.state_dict()) == keys
    assert [m for m in unet.modules() if isinstance(m, nn.Conv2d)] == convolutions
    assert all(p.dtype == torch.float32 and p.requires_grad for p in unet.parameters())
    copy.deepcopy(unet)


@pytest.mark.slow
def test_a_copy_is_forgotten_with_its_network(no_gradients):
    unet = network().eval()
    before = len(inference._PREPARED)
    for_inference(unet)(*inputs())
    assert len(inference._PREPARED) == before + 1
    del unet
    gc.collect()
    assert len(inference._PREPARED) == before
