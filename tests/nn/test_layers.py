import pytest
import torch
from torch import nn

from medgen.nn.layers import activation, average_pool, convolution, dropout, normalisation


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_divides_the_size_by_the_stride(spatial_dims, kernel_size, stride):
    x = torch.zeros(1, 2, *[8] * spatial_dims)
    expected = torch.Size([8 // stride] * spatial_dims)
    assert convolution(spatial_dims, 2, 3, kernel_size, stride)(x).shape[2:] == expected
    assert average_pool(spatial_dims, kernel_size, stride)(x).shape[2:] == expected


def test_sizes_per_dimension_apply_to_that_dimension():
    x = torch.zeros(1, 1, 4, 8, 8)
    assert convolution(3, 1, 1, (1, 3, 3), (1, 2, 2))(x).shape[2:] == (4, 4, 4)


def test_kernel_smaller_than_stride_is_refused():
    with pytest.raises(ValueError, match="skips pixels"):
        average_pool(2, 1, 3)


def test_size_with_wrong_number_of_entries_is_refused():
    with pytest.raises(ValueError, match="has 2 entries"):
        convolution(3, 1, 1, (3, 3))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (("GROUP", {"num_groups": 2}), nn.GroupNorm),
        ("INSTANCE", nn.InstanceNorm3d),
        (("batch", {"affine": False}), nn.BatchNorm3d),
        (("layer", {"normalized_shape": 4}), nn.LayerNorm),
        (("localresponse", {"size": 3}), nn.LocalResponseNorm),
    ],
)
def test_norms_are_found_by_name_in_any_case(spec, expected):
    norm = normalisation(spec, 3, 8)
    assert type(norm) is expected
    assert norm(torch.randn(2, 8, 4, 4, 4)).shape == (2, 8, 4, 4, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("fancy", "'fancy' is unknown"), ("group", "num_groups"), (("group", {"num_groups": 3}), "divisible")],
)
def test_norms_that_cannot_be_built_say_why(spec, message):
    with pytest.raises(ValueError, match=message):
        normalisation(spec, 2, 8)


def test_activations_take_their_options():
    assert activation(("LeakyReLU", {"negative_slope": 0.5}))(torch.tensor(-2.0)) == -1


def test_unknown_activation_names_the_known_ones():
    with pytest.raises(ValueError, match="swish"):
        activation("sine")


def test_dropout_removes_whole_channels():
    torch.manual_seed(0)
    kept = dropout(0.5, 2)(torch.ones(1, 64, 4, 4))[0].flatten(1)
    assert ((kept == 0).all(dim=1) | (kept == 2).all(dim=1)).all()
    assert 0 < (kept == 0).all(dim=1).sum() < 64
