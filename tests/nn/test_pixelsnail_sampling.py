import itertools

import pytest
import torch

from medgen.labels import LabelSpace
from medgen.nn.pixelsnail import PixelSNAIL, PixelSNAILConfig
from medgen.nn.pixelsnail_sampling import Choice, IncrementalPixelSNAIL, draw_codes

LABELS = {
    "none": LabelSpace(),
    "single": LabelSpace("single", ("a", "b", "c")),
    "multi": LabelSpace("multi", ("a", "b")),
}


def prior(size=(6, 8), kind="none", **changes):
    shape = {
        "hidden_channels": 16,
        "blocks": 2,
        "residual_blocks": 2,
        "residual_channels": 8,
        "condition_channels": 8,
        "label_dim": 5,
    }
    torch.manual_seed(0)
    network = PixelSNAIL(
        PixelSNAILConfig(**(shape | changes)),
        size=size,
        num_codes=11,
        condition_codes=7 if "condition_blocks" in changes else None,
        label_space=LABELS[kind],
    ).eval()
    for parameter in network.parameters():  # biases start at zero, which would hide where they are not added
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network


OPTIONS = list(
    itertools.product(
        [{"attention": True}, {"attention": False}],
        [{}, {"condition_blocks": 0}, {"condition_blocks": 2}],
        [{}, {"kind": "single"}, {"kind": "multi"}],
        [{}, {"size": (4, 4), "kernel_size": 3, "output_blocks": 1}, {"size": (8, 4), "kernel_size": 7}],
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_logits_at_every_pixel_are_those_of_the_full_pass(options, batch):
    changes = {key: value for part in options for key, value in part.items()}
    network = prior(**changes)
    height, width = network.size
    codes = torch.randint(11, (batch, height, width))
    condition = torch.randint(7, (batch, height // 2, width // 2)) if "condition_blocks" in changes else None
    label = {
        "none": None,
        "single": torch.tensor([1, 2, -1])[:batch],
        "multi": torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [0.0, 0.0]])[:batch],
    }[changes.get("kind", "none")]
    full = network(codes, condition, label)
    machine = IncrementalPixelSNAIL(network, batch, condition, label)
    for row, column in itertools.product(range(height), range(width)):
        torch.testing.assert_close(machine.logits(), full[:, :, row, column], rtol=1e-4, atol=1e-4)
        machine.put(codes[:, row, column])


@torch.inference_mode()
def test_logits_depend_on_codes_before_only():
    network = prior()
    codes = torch.randint(11, (1, 6, 8))
    changed = codes.clone()
    changed[0, 3, 4] = (codes[0, 3, 4] + 1) % 11
    same = (network(codes) == network(changed)).all(1)[0].flatten()
    assert same[: 3 * 8 + 5].all()
    assert not same[3 * 8 + 5 :].any()  # attention: all after it


def test_given_rows_are_kept_and_the_rest_is_drawn_as_if_they_had_been():
    network, uniform = prior(), torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(0))
    codes = draw_codes(network, uniform)
    assert torch.equal(draw_codes(network, uniform, given=codes[:, :2]), codes)
    other = (codes[:, :2] + 1) % 11
    completed = draw_codes(network, uniform, given=other)
    assert torch.equal(completed[:, :2], other)
    assert not torch.equal(completed[:, 2:], codes[:, 2:])


def test_codes_come_as_often_as_their_probability():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    share = Choice()(logits, uniform).bincount(minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=0, atol=0.015)
    assert Choice(top_k=2)(logits, uniform).unique().tolist() == [2, 3]
    assert Choice(top_p=0.65)(logits, uniform).unique().tolist() == [2, 3]
    assert Choice(top_p=0.75)(logits, uniform).unique().tolist() == [1, 2, 3]
    assert Choice(top_p=0.05)(logits, uniform).unique().tolist() == [3]
    cold = Choice(temperature=0.5)(logits, uniform).bincount(minlength=4) / 20_000
    torch.testing.assert_close(cold, torch.tensor([1.0, 4, 9, 16]) / 30, rtol=0, atol=0.015)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": 0.0}, "^temperature is 0.0; use a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; use at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; use a probability"),
        ({"top_p": 1.5, "level": "bottom_"}, "^bottom_top_p is 1.5; use a probability"),
    ],
)
def test_choices_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Choice(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"given": torch.full((1, 2, 8), 11)}, "codes span 11 to 11; expected 0 to 10"),
        ({"given": torch.zeros(1, 2, 7, dtype=torch.int64)}, r"\(1, 2, 7\); this prior takes \(B, up to 6, 8\)"),
        ({"given": torch.zeros(2, 2, 8, dtype=torch.int64)}, "given codes of 2 maps, but 1 are drawn"),
        ({"condition": torch.zeros(1, 3, 4, dtype=torch.int64)}, "has no place for a coarser map"),
    ],
)
def test_codes_that_do_not_fit_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        draw_codes(prior(), torch.rand(1, 6, 8), **options)


def test_a_coarser_map_of_another_size_or_codebook_is_refused():
    network = prior(condition_blocks=1)
    for condition, text in (
        (None, "needs a coarser map"),
        (torch.zeros(1, 6, 8, dtype=torch.int64), r"\(1, 6, 8\); expected \(1, 3, 4\)"),
        (torch.full((1, 3, 4), 9), "the condition span 9 to 9; expected 0 to 6"),
    ):
        with pytest.raises(ValueError, match=text):
            draw_codes(network, torch.rand(1, 6, 8), condition=condition)
