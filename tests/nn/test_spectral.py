import copy

import pytest
import torch

from medgen.nn.spectral import SpectralConv2d


def convolution(**options):
    torch.manual_seed(0)
    return SpectralConv2d(3, 6, 3, padding=1, **options)


def largest_singular_value(weight):
    return torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2)


def test_the_effective_weight_has_a_largest_singular_value_of_one_after_enough_passes():
    conv, x = convolution().train(), torch.randn(2, 3, 5, 5)
    for _ in range(300):
        conv(x)
    torch.testing.assert_close(largest_singular_value(conv.effective_weight()), torch.tensor(1.0))
    assert largest_singular_value(conv.weight) < 0.9


def test_a_training_pass_takes_v_from_u_and_then_u_from_v():
    conv = convolution().train()
    matrix, before = conv.weight.detach().flatten(1), conv.u.clone()
    conv(torch.randn(1, 3, 5, 5))
    v = matrix.T @ before
    torch.testing.assert_close(conv.v, v / v.norm())
    u = matrix @ conv.v
    torch.testing.assert_close(conv.u, u / u.norm())


def test_evaluation_leaves_the_vectors_as_they_are():
    conv = convolution().eval()
    state = copy.deepcopy(conv.state_dict())
    conv(torch.randn(1, 3, 5, 5))
    assert state.keys() == {"weight", "bias", "u", "v"}
    assert all(torch.equal(value, state[name]) for name, value in conv.state_dict().items())


def test_a_pass_between_forward_and_backward_does_not_change_the_gradient():
    x, other = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    alone, disturbed = convolution().train(), convolution().train()
    alone(x).square().sum().backward()
    loss = disturbed(x).square().sum()
    disturbed(other)
    loss.backward()
    assert torch.equal(alone.weight.grad, disturbed.weight.grad)


def test_the_gradient_goes_through_the_singular_value_but_not_through_the_vectors():
    conv = convolution().double().eval()
    x, weight, u, v = torch.randn(1, 3, 4, 4).double(), conv.weight.detach(), conv.u, conv.v

    def output(values):
        return torch.nn.functional.conv2d(x, values / (u @ values.flatten(1) @ v), conv.bias, padding=1)

    conv(x).square().sum().backward()
    (expected,) = torch.autograd.grad(output(weight.requires_grad_()).square().sum(), weight)
    torch.testing.assert_close(conv.weight.grad, expected)


def test_a_new_convolution_is_about_right_before_any_training():
    estimate = largest_singular_value(convolution().effective_weight())
    assert 1 <= estimate < 1.5  # one power iteration finds less than the largest, of the right order


def test_vectors_are_found_anew_for_weights_that_come_from_elsewhere():
    conv = convolution()
    torch.nn.init.normal_(conv.weight, std=20)
    conv.reset_vectors()
    assert 1 <= largest_singular_value(conv.effective_weight()) < 1.5


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2, "padding_mode": "reflect"}], ids=str)
def test_the_inference_form_is_a_plain_convolution_with_the_same_output(options):
    conv, x = convolution(**options).eval(), torch.randn(2, 3, 6, 7)
    form = conv.inference_form()
    assert type(form) is torch.nn.Conv2d
    torch.testing.assert_close(form(x), conv(x))


def test_under_autocast_the_singular_value_is_found_in_float32():
    conv = convolution()
    expected = conv.effective_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv.effective_weight(), expected)


def test_a_network_without_memory_can_be_built():
    with torch.device("meta"):
        assert SpectralConv2d(3, 6, 3).u.is_meta
