import pytest
import torch

from medgen.families.spade.codes import CodePrior, StyleCodes
from medgen.labels import LabelSpace
from medgen.nn.label_vector import label_vector

CPU = torch.device("cpu")


def vectors_of(label, space):
    return label_vector(label, space, len(label), CPU)


def test_before_anything_is_measured_codes_are_standard_normal():
    prior = CodePrior(3, LabelSpace("single", ("a", "b")))
    normal = torch.randn(4, 3)
    assert torch.equal(prior.draw(None, normal), normal)
    assert torch.equal(prior.draw(torch.eye(2)[[0, 1, 0, 1]], normal), normal)


def test_classes_have_the_mean_and_the_spread_of_their_own_codes():
    space = LabelSpace("single", ("narrow", "wide"))
    label = torch.arange(4000) % 2
    spread, middle = torch.tensor([0.5, 2.0])[label, None], torch.tensor([[1.0, -1.0], [5.0, 3.0]])[label]
    codes = middle + spread * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    prior = CodePrior(2, space)
    prior.fit(codes, vectors_of(label, space))
    mean, found = prior.moments(vectors_of(torch.tensor([0, 1]), space), 2)
    for k in (0, 1):
        torch.testing.assert_close(mean[k], codes[label == k].mean(0), rtol=0, atol=1e-4)
        torch.testing.assert_close(found[k], codes[label == k].std(0), rtol=1e-3, atol=0)
    mean, found = prior.moments(None, 1)
    torch.testing.assert_close(mean[0], codes.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0], codes.std(0), rtol=1e-4, atol=0)


def test_an_unknown_class_is_drawn_as_any_image():
    space = LabelSpace("single", ("a", "b"))
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    prior = CodePrior(1, space)
    prior.fit(torch.tensor([[1.0], [2], [3], [7], [8], [12]]), vectors_of(label, space))
    unknown = prior.moments(vectors_of(torch.tensor([-1]), space), 1)
    nothing = prior.moments(None, 1)
    assert all(torch.equal(a, b) for a, b in zip(unknown, nothing, strict=True))


def test_findings_add_up():
    space = LabelSpace("multi", ("a", "b"))
    label = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(5, 1)
    vectors = vectors_of(label, space)
    prior = CodePrior(1, space)
    prior.fit(10 + vectors @ torch.tensor([[3.0], [0.5]]), vectors)
    mean, spread = prior.moments(vectors[:4], 4)
    torch.testing.assert_close(mean[:, 0], torch.tensor([6.5, 7.5, 12.5, 13.5]))
    assert spread.max() < 1e-3  # the labels say all there is to say


def test_one_code_has_no_spread():
    with pytest.raises(ValueError, match="a distribution of 1 codes has no spread"):
        CodePrior(2, LabelSpace()).fit(torch.zeros(1, 2))


def test_blends_go_from_one_style_to_another():
    a, b = (StyleCodes(torch.full((1, 2), value), "encoder") for value in (0.0, 8.0))
    walk = a.blend(b, torch.linspace(0, 1, 5))
    assert walk.values.tolist() == [[0, 0], [2, 2], [4, 4], [6, 6], [8, 8]]
    assert walk.encoder == "encoder"
    assert (len(walk), walk[1].values.tolist(), len(walk[2:])) == (5, [[2, 2]], 3)


def test_styles_can_be_taken_one_by_one_from_both_ends():
    styles = StyleCodes(torch.arange(3.0)[:, None], "encoder")
    assert [one.values.tolist() for one in styles] == [[[0]], [[1]], [[2]]]
    assert styles[-1].values.tolist() == [[2]]
    for place in (3, -4):
        with pytest.raises(IndexError, match=rf"style {place} is asked for, but there are 3; use 0 to 2"):
            styles[place]


def test_numbers_of_styles_and_shares_must_agree():
    two = StyleCodes(torch.zeros(2, 3), "one")
    with pytest.raises(ValueError, match="there are 2 styles, 2 others and 5 shares; give equally many, or one"):
        two.blend(two, torch.linspace(0, 1, 5))
    with pytest.raises(ValueError, match="other is 'HCM'; give styles"):
        two.blend("HCM", 0.5)


def test_styles_of_two_encoders_do_not_blend():
    with pytest.raises(ValueError, match="of two checkpoints"):
        StyleCodes(torch.zeros(1, 2), "one").blend(StyleCodes(torch.zeros(1, 2), "other"), 0.5)
