import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from medgen.evaluation.statistics.near_duplicates import near_duplicates


def patients(n, seed):
    """Smooth random pictures under one bright ellipse that all share."""
    noise = torch.randn(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    shared = torch.exp(-(x**2 + 2 * y**2) * 2)
    return (shared + 0.5 * 3 * gaussian_blur(noise, [15, 15], [2.5, 2.5])).clamp(0, 1.5) / 1.5


@pytest.fixture(scope="module")
def train():
    return patients(120, 0)


@pytest.fixture(scope="module")
def held_out():
    return patients(80, 1)


CHANGES = {
    "as it is": lambda x: x,
    "shifted": lambda x: torch.roll(x, (3, -5), (2, 3)),
    "mirrored": lambda x: x.flip(-1),
    "less contrast": lambda x: 0.3 + 0.5 * x,
    "gamma": lambda x: x**0.7,
    "blurred": lambda x: gaussian_blur(x, [7, 7], [0.8, 0.8]),
    "mirrored, shifted, brighter": lambda x: torch.roll(x.flip(-1), (2, 4), (2, 3)) ** 0.8,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_planted_copies_are_found(train, held_out, change):
    images = torch.cat([patients(20, 2), change(train[:10])])
    found = near_duplicates(images, train, held_out)
    assert sorted(found.rows.tolist()) == list(range(20, 30))
    assert found.index[20:].tolist() == list(range(10))


@pytest.mark.slow
def test_other_patients_are_not_taken_for_copies(train, held_out):
    assert not len(near_duplicates(patients(300, 3), train, held_out).rows)


@pytest.mark.slow
def test_a_few_copies_among_the_held_out_images_do_not_hide_others(train, held_out):
    careless = torch.cat([held_out, train[50:58]])
    assert near_duplicates(train[:5], train, careless).rows.sort().values.tolist() == [0, 1, 2, 3, 4]
