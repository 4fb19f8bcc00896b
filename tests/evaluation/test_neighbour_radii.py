import pytest
import torch

from medgen.evaluation.statistics import neighbour_radii
from medgen.evaluation.statistics.neighbour_radii import Moved, squared_radii, within_radii


@pytest.fixture(params=["float32", "bfloat16"])
def estimates(request, monkeypatch):
    """Estimates in either type, whatever this processor is fast in; and small tiles, so that there are several."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param == "bfloat16")
    monkeypatch.setattr(neighbour_radii, "_TILE", 70)
    return request.param


def vectors(kind, n, seed):
    """Sets that are hard in different ways: everything equally far, far from the origin, of very unequal length,
    in tight groups, and with copies."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 96, generator=generator)
    if kind == "even":
        return noise
    if kind == "distant":
        return 100 + noise
    if kind == "unequal":
        return noise * (3 * torch.randn(n, 1, generator=generator)).exp()
    if kind == "grouped":
        centres = 10 * torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
        return centres[torch.randint(6, (n,), generator=generator)] + 0.05 * noise
    return noise[torch.randint(n // 2, (n,), generator=generator)]


KINDS = ("even", "distant", "unequal", "grouped", "copies")


def exact(a, b):
    return (a.double()[:, None] - b.double()[None]).square().sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_radii_are_those_of_all_distances(estimates, kind):
    features = vectors(kind, 300, 0)
    distance = exact(features, features).fill_diagonal_(torch.inf)
    expected = distance.topk(5, dim=1, largest=False).values[:, [0, 2, 4]].T
    found = squared_radii(Moved(features, features.mean(0)), [1, 3, 5])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_who_lies_in_a_ball_is_what_all_distances_say(estimates, kind, share):
    a, b = vectors(kind, 200, 1), vectors(kind, 250, 2)
    distance = exact(a, b)
    # Radii that make about this share of either set lie in a ball.
    a_radii = distance.amin(0).quantile(share).float().expand(200)
    b_radii = distance.amin(1).quantile(share).float().expand(250)
    centre = b.mean(0)
    found_a, found_b = within_radii(Moved(a, centre), Moved(b, centre), a_radii, b_radii)
    assert torch.equal(found_a, (distance <= b_radii).any(1))
    assert torch.equal(found_b, (distance <= a_radii[:, None]).any(0))
    assert 0 < int(found_a.sum()) < 200 or kind == "copies"


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_as_near_as_they_say(kind, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    a, b = vectors(kind, 100, 1), vectors(kind, 80, 2)
    left, right = Moved(a, b.mean(0)), Moved(b, b.mean(0))
    ((_, _, sums),) = left.sums(right, left.squares, right.squares)
    assert sums.dtype == torch.bfloat16
    off = (sums.double() - exact(a, b)).abs()
    allowed = (
        left.error(right, left.squares, right.squares).double()[:, None]
        + neighbour_radii._ROUNDING * sums.double().abs()
    )
    assert (off <= allowed).all()
    assert off.max() > 0  # they are estimates


def test_few_vectors_have_radii_too(estimates):
    features = vectors("even", 6, 3)
    found = squared_radii(Moved(features, features.mean(0)), [5])
    distance = exact(features, features)
    torch.testing.assert_close(found[0].double(), distance.amax(1), rtol=1e-5, atol=0)


def test_a_copy_has_radius_zero_and_lies_in_its_ball(estimates):
    features = vectors("even", 50, 4)
    twice = torch.cat([features, features])
    assert not squared_radii(Moved(twice, twice.mean(0)), [1]).any()
    inside, around = within_radii(
        Moved(features, twice.mean(0)), Moved(twice, twice.mean(0)), torch.full((50,), 1.0), torch.full((100,), 1.0)
    )
    assert inside.all()
    assert around.all()
