"""The generator without gradients gives the numbers of the network that trains."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from medgen.families.spade import inference
from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.inference import FastSynthesis
from medgen.families.spade.networks import SPADESynthesis, semantic_map
from medgen.families.spade.windows import find_windows
from medgen.nn.inference import PreparedNetwork, for_inference

CLASSES = ("background", "wall", "cavity", "vein")
TINY = SPADEConfig(
    image_size=(32, 32), channels=1, mask_names=CLASSES, width=2, num_upsamplings=4, hidden=4, style="none"
)
OPTIONS = [
    {},
    {"image_size": (32, 96), "num_upsamplings": 5, "channels": 3},
    {"kernel_size": 1},
    {"norm": "instance"},
    {"norm": "group", "style": "vae", "style_dim": 6},
    {"norm": "instance", "modulation": "clade", "image_size": (48, 64)},
    {"modulation": "clade", "style": "inside", "style_dim": 32},
    {"style": "inside", "num_upsamplings": 5, "style_dim": 64, "norm": "group", "kernel_size": 1},
    {"image_size": (64, 64), "num_upsamplings": 6, "spectral": False},
    {"image_size": (128, 128), "num_upsamplings": 7, "norm": "group"},
]


@cache
def network(*, spectral=True, **changes):
    torch.manual_seed(0)
    synthesis = SPADESynthesis(replace(TINY, **changes), spectral=spectral).eval()
    for layer in synthesis.modules():
        if isinstance(layer, nn.BatchNorm2d):  # a new one's statistics change nothing
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return synthesis


def discs(batch, size):
    """Label maps with a disc in a ring, beside another disc: few different neighbourhoods."""
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    masks = torch.zeros(batch, *size, dtype=torch.int64)
    for i, mask in enumerate(masks):
        distance = (rows - 0.1 * i) ** 2 + columns**2
        mask[distance < 0.5] = 1
        mask[distance < 0.2] = 2
        mask[(rows - 0.6) ** 2 + (columns - 0.7) ** 2 < 0.04] = 3
    return masks


def noise(batch, size):
    """Label maps with hardly two neighbourhoods alike."""
    return torch.randint(4, (batch, *size))


def inputs(config, masks, batch=2):
    torch.manual_seed(0)
    semantic = semantic_map(masks(batch, config.image_size), config.num_classes)
    return semantic, torch.randn(batch, config.code_dim) if config.code_dim else None


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def assert_same(found, expected):
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("masks", [discs, noise])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_images_are_those_of_the_network(options, batch, masks):
    synthesis = network(**options)
    given = inputs(synthesis.config, masks, batch)
    assert masks is noise or find_windows(given[0], synthesis.config.kernel_size) is not None
    prepared = for_inference(synthesis)
    assert isinstance(prepared, PreparedNetwork)
    assert_same(prepared(*given), synthesis(*given))


@pytest.mark.parametrize("piece", [1, 5 * 32 * 32])
@pytest.mark.parametrize("masks", [discs, noise])
def test_images_are_the_same_in_pieces_of_any_size(monkeypatch, masks, piece):
    monkeypatch.setattr(inference, "_PIECE", piece)
    synthesis = network()
    given = inputs(synthesis.config, masks, 3)
    assert_same(FastSynthesis(synthesis)(*given), synthesis(*given))


def test_maps_between_classes_are_drawn_as_well():
    synthesis = network()
    semantic, _ = inputs(synthesis.config, discs)
    semantic = 0.6 * semantic + 0.4 * semantic.flip(0)
    assert find_windows(semantic, 3) is None
    assert_same(FastSynthesis(synthesis)(semantic), synthesis(semantic))


@pytest.mark.parametrize("masks", [discs, noise])
@pytest.mark.parametrize("options", [{}, {"modulation": "clade", "style": "vae", "style_dim": 3}], ids=str)
def test_bfloat16_only_rounds(options, masks):
    synthesis = network(**options)
    given = inputs(synthesis.config, masks)
    expected = synthesis(*given)
    rough = copy.deepcopy(FastSynthesis(synthesis)).bfloat16()(given[0].bfloat16(), given[1])
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_inputs_of_another_size_are_refused_as_by_the_network():
    synthesis = network()
    with pytest.raises(ValueError, match="expected \\(B, 4, 32, 32\\)"):
        for_inference(synthesis)(torch.zeros(1, 4, 32, 48))


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_every_pixel_finds_its_own_neighbourhood(kernel_size):
    semantic = semantic_map(discs(2, (40, 64)), 4)
    semantic[:, 3:] = semantic[:, :1].roll(7, 2)  # as edges of instances, which are no class
    windows = find_windows(semantic, kernel_size)
    assert len(windows.patches) < semantic[:, 0].numel() / 4
    reach = kernel_size // 2
    padded = nn.functional.pad(semantic, [reach] * 4)
    seen = padded.unfold(2, kernel_size, 1).unfold(3, kernel_size, 1).movedim(1, 3).flatten(3)  # (B, H, W, K k k)
    outside = torch.full((1, seen.shape[-1]), -1.0)
    found = torch.cat([outside, windows.patches])[windows.around[windows.numbers]]  # (B, H, W, k k, K k k)
    seen = nn.functional.pad(seen.movedim(3, 1), [reach] * 4, value=-1.0)
    expected = seen.unfold(2, kernel_size, 1).unfold(3, kernel_size, 1).movedim(1, -1).flatten(3, 4)
    assert torch.equal(found, expected)


def test_neighbourhoods_are_not_listed_where_hardly_two_are_alike():
    assert find_windows(semantic_map(noise(1, (32, 32)), 4), 3) is None
