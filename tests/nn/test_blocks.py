import pytest
import torch

from medgen.nn.attention import FeedForward, MultiHeadAttention, SpatialTransformer, attention
from medgen.nn.blocks import BlockStyle, ConvBlock, Downsample, Upsample, make_levels
from medgen.nn.unet import UNetConfig

GROUPS = ("group", {"num_groups": 4})
STYLE = UNetConfig(norm=GROUPS, embedding_dim=6)
ATTENTION = {
    "linear": lambda: MultiHeadAttention(2, 16, norm=GROUPS, embedding_dim=6),
    "spatial": lambda: SpatialTransformer(2, 16, norm=GROUPS, embedding_dim=6),
}


def randomised(module):
    """The module with no parameter left at its initial zeros."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def test_second_unit_of_a_new_block_adds_nothing():
    block = ConvBlock(8, 8, BlockStyle(norm=GROUPS))
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x + block.first(x))


def test_residual_block_adds_the_embedding_after_its_first_unit():
    block = randomised(ConvBlock(8, 8, STYLE))
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    h = x + block.first(x) + block.project_embedding(embedding)[:, :, None, None]
    torch.testing.assert_close(block(x, embedding), h + block.second(h))


def test_plain_block_adds_the_embedding_after_both_units():
    block = randomised(ConvBlock(4, 8, UNetConfig(norm=GROUPS, residual=False, embedding_dim=6)))
    x, embedding = torch.randn(2, 4, 4, 4), torch.randn(2, 6)
    shift = block.project_embedding(embedding)[:, :, None, None]
    torch.testing.assert_close(block(x, embedding), block.second(block.first(x) + shift) + shift)


def test_upsampling_without_convolution_repeats_pixels():
    x = torch.randn(1, 4, 2, 3)
    up = Upsample(4, 4, BlockStyle(learned_resampling=False), stride=(1, 3))
    assert torch.equal(up(x), x.repeat_interleave(3, dim=3))


def test_downsampling_without_convolution_averages_and_keeps_the_channels():
    x = torch.full((1, 4, 6, 6), 3.0)
    down = Downsample(4, 8, BlockStyle(learned_resampling=False), kernel_size=2, stride=2)
    assert torch.equal(down(x), torch.full((1, 4, 3, 3), 3.0))


@pytest.mark.parametrize("kind", ATTENTION)
def test_new_attention_changes_nothing(kind):
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(ATTENTION[kind]()(x, torch.randn(2, 6)), x)


def test_attention_to_an_embedding_gives_every_pixel_the_same():
    layer = randomised(MultiHeadAttention(2, 16, norm=GROUPS, embedding_dim=6))
    x = torch.randn(2, 16, 4, 4)
    change = layer(x, torch.randn(2, 6)) - x
    torch.testing.assert_close(change, change[:, :, :1, :1].expand_as(change))


def test_self_attention_does_not_depend_on_the_order_of_pixels():
    layer = randomised(SpatialTransformer(2, 20, norm=GROUPS))
    x = torch.randn(1, 20, 4, 4)
    order = torch.randperm(16)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(layer(shuffled), layer(x).flatten(2)[:, :, order].view_as(x), rtol=1e-4, atol=1e-5)


def test_heads_share_the_channels_in_equal_parts_and_leave_the_rest():
    assert MultiHeadAttention(2, 20, norm=GROUPS).to_q.out_features == 16


def test_feed_forward_sees_each_pixel_alone():
    layer = randomised(FeedForward(8))
    x = torch.randn(1, 8, 3, 3)
    torch.testing.assert_close(layer(x)[..., 1:, :], layer(x[..., 1:, :]))


def test_attention_with_fewer_channels_than_heads_is_refused():
    with pytest.raises(ValueError, match="at least 8 channels"):
        attention("linear", 2, 4, norm=GROUPS)


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="'diagonal' is unknown"):
        attention("diagonal", 2, 8, norm=GROUPS)


def test_levels_of_different_number_are_refused():
    with pytest.raises(ValueError, match="strides has 2 entries, hidden has 3"):
        make_levels((8, 8, 8), 3, (1, 2), "none")
