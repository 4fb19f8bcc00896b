"""Mixing, walks and directions: the ends are the ends, and where a direction leads is what it says."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from medgen.families.stylegan2.generator import StyleGAN2Config, StyleGAN2Generator
from medgen.families.stylegan2.latents import (
    Direction,
    interpolate,
    label_direction,
    label_shift,
    mix,
    move,
    styled,
    tour,
    walk,
)
from tests.tiny import generator as medfusion

CONFIG = StyleGAN2Config.tiny()
COUNT, WIDTH = CONFIG.num_ws, CONFIG.w_dim


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return StyleGAN2Generator(CONFIG).eval()


def brightness(images):
    return images.mean((1, 2, 3))


def random_styles(*shape, seed=0):
    return torch.randn(*shape, COUNT, WIDTH, generator=torch.Generator().manual_seed(seed))


# Mixing


def test_a_mixture_has_the_layers_of_each(model):
    coarse, fine = random_styles(2, seed=0), random_styles(2, seed=1)
    mixed = mix(coarse, fine, 2)
    assert torch.equal(mixed[:, :2], coarse[:, :2])
    assert torch.equal(mixed[:, 2:], fine[:, 2:])
    images = model.synthesize(mixed)
    assert all((images - model.synthesize(one)).abs().max() > 1e-3 for one in (coarse, fine))


def test_a_mixture_of_an_image_with_itself_is_itself(model):
    styles = model.styles(2, "finding", seed=3)
    assert torch.equal(model.synthesize(mix(styles, styles, 3)), model.synthesize(styles))


def test_the_first_and_the_last_layer_give_one_image_whole():
    coarse, fine = random_styles(seed=0), random_styles(seed=1)
    assert torch.equal(mix(coarse, fine, 0), fine)
    assert torch.equal(mix(coarse, fine, COUNT), coarse)


def test_rows_and_columns_give_all_mixtures():
    rows, columns = random_styles(3, seed=0), random_styles(2, seed=1)
    mixed = mix(rows[:, None], columns, 1)
    assert mixed.shape == (3, 2, COUNT, WIDTH)
    assert torch.equal(mixed[2, 1], mix(rows[2], columns[1], 1))


@pytest.mark.parametrize("layer", [-1, COUNT + 1])
def test_layers_that_there_are_not_are_refused(layer):
    with pytest.raises(ValueError, match=f"layer is {layer}; use 0, for all of fine, to {COUNT}, for all of coarse"):
        mix(random_styles(1), random_styles(1), layer)


@pytest.mark.parametrize(
    ("coarse", "fine", "message"),
    [
        ((1, COUNT, WIDTH), (1, COUNT + 2, WIDTH), "coarse has shape .* fine .*; give styles"),
        ((WIDTH,), (WIDTH,), "coarse has shape"),
        ((3, COUNT, WIDTH), (2, COUNT, WIDTH), r"coarse is \(3,\) images, fine \(2,\); give as many, or one"),
    ],
)
def test_styles_that_do_not_go_together_are_not_mixed(coarse, fine, message):
    with pytest.raises(ValueError, match=message):
        mix(torch.zeros(coarse), torch.zeros(fine), 1)


# Interpolation


def test_the_ends_of_an_interpolation_are_the_ends_and_its_middle_the_mean():
    start, end = random_styles(2, seed=0), random_styles(2, seed=1)
    between = interpolate(start, end, 5)
    assert between.shape == (5, *start.shape)
    assert torch.equal(between[0], start)
    assert torch.equal(between[-1], end)
    torch.testing.assert_close(between[2], (start + end) / 2)
    torch.testing.assert_close(between[1], 0.75 * start + 0.25 * end)


def test_interpolations_that_have_no_ends_are_refused():
    with pytest.raises(ValueError, match="steps is 1; use at least 2, the two ends"):
        interpolate(random_styles(), random_styles(), 1)
    with pytest.raises(ValueError, match=r"start has shape .*; give styles of equal shape"):
        interpolate(random_styles(1), random_styles(2), 3)


def test_a_tour_visits_all_stations_and_goes_back():
    stations = random_styles(3)
    way = tour(stations, 4)
    assert len(way) == 12
    assert torch.equal(way[::4], stations)
    torch.testing.assert_close(way[11], 0.25 * stations[2] + 0.75 * stations[0])


def test_an_open_tour_ends_with_the_last_station():
    stations = random_styles(3)
    way = tour(stations, 4, closed=False)
    assert len(way) == 9
    assert torch.equal(way[::4], stations)
    torch.testing.assert_close(way[7], 0.25 * stations[1] + 0.75 * stations[2])


def test_tours_to_nowhere_are_refused():
    with pytest.raises(ValueError, match=r"stations have shape \(1, .*; give at least two"):
        tour(random_styles(1), 4)
    with pytest.raises(ValueError, match="frames is 0; use at least 1"):
        tour(random_styles(2), 0)


def test_a_walk_between_seeds_visits_what_sample_draws(model):
    styles = walk(model, 3, seeds=[5, 6], labels=["finding"], n=2, truncation_psi=0.8)
    assert styles.shape == (6, 2, COUNT, WIDTH)
    for place, seed in ((0, 5), (3, 6)):
        expected = model.sample(2, "finding", seed=seed, truncation_psi=0.8, noise_mode="fixed")
        torch.testing.assert_close(model.synthesize(styles[place]), expected, rtol=0, atol=1e-5)


def test_a_walk_between_labels_keeps_the_seed(model):
    styles = walk(model, 3, labels=["no finding", "finding"], seeds=[4], closed=False)
    assert styles.shape == (4, 1, COUNT, WIDTH)
    assert torch.equal(styles[0], model.styles(1, "no finding", seed=4))
    assert torch.equal(styles[3], model.styles(1, "finding", seed=4))
    assert (styles[0] - styles[3]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1, 2], "labels": [0, 1]}, "there are 2 seeds and 2 labels; give several seeds with one label"),
        ({"seeds": [1]}, "there are 1 seeds and 1 labels"),
        ({"seeds": [1, 2], "labels": []}, "labels is empty; give at least one"),
        ({"seeds": [], "labels": [0, 1]}, "seeds is empty"),
        ({"seeds": [1.5, 2]}, "seed is 1.5; use a whole number"),
        ({"labels": ["sick", 0]}, "label 'sick' is unknown"),
        ({"seeds": [1, 2], "n": 0}, "n is 0"),
        ({"seeds": [1, 2], "truncation_psi": 3.0}, "truncation_psi is 3.0"),
    ],
)
def test_walks_without_a_way_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        walk(model, 3, **options)


# Directions


class Linear:
    """A generator whose images are its styles, four numbers wide."""

    def styles(self, n, label=None, *, seed=0, truncation_psi=1.0):
        stretch = truncation_psi * torch.tensor([1.0, 2.0, 3.0, 1.0])
        return (torch.randn(n, 1, 4, generator=torch.Generator().manual_seed(seed)) * stretch).repeat(1, 2, 1)

    def synthesize(self, styles):
        return styles[:, None, :1]


def test_the_direction_of_a_linear_score_is_its_gradient():
    gradient = torch.tensor([3.0, 0.0, -4.0, 0.0])
    found = label_direction(Linear(), lambda images: images.flatten(1) @ gradient - 7, n=40)
    torch.testing.assert_close(found.vector, gradient / 5, rtol=0, atol=1e-3)
    assert found.correlation == pytest.approx(1, abs=1e-4)
    assert found.auc == pytest.approx(1, abs=0.01)
    positions = Linear().styles(40)[:, 0] @ found.vector
    assert found.spread == pytest.approx(float(positions.std()), rel=1e-4)


def test_the_direction_of_chance_is_found_out():
    stream = torch.Generator().manual_seed(1)
    found = label_direction(Linear(), lambda images: torch.randn(len(images), generator=stream), n=600)
    assert abs(found.correlation) < 0.2
    assert abs(found.auc - 0.5) < 0.1


def test_a_score_of_noughts_and_ones_will_do():
    found = label_direction(Linear(), lambda images: (images.flatten(1)[:, 2] > 4).float(), n=400)
    assert found.vector[2] > 0.95
    assert found.auc > 0.95


def test_the_held_out_images_are_of_all_labels(model):
    label = ["no finding"] * 40 + ["finding"] * 40
    reader = torch.cat([torch.zeros(40), torch.ones(40)]).split(16)
    parts = iter(reader)
    found = label_direction(model, lambda images: next(parts), n=80, label=label)
    assert 0.7 < found.auc <= 1  # NaN if all were of one label


def test_brightness_rises_along_its_direction(model):
    found = label_direction(model, brightness, n=200, label="finding", seed=1)
    assert found.vector.norm().item() == pytest.approx(1, abs=1e-5)
    assert found.auc > 0.9
    assert found.correlation > 0.8
    styles = model.styles(8, "finding", seed=2)
    levels = [brightness(model.synthesize(move(styles, found, amount))).mean() for amount in (-2, -1, 0, 1, 2)]
    assert all(after - before > 0.03 for before, after in pairwise(levels))


def test_the_seed_decides_the_direction_and_batches_do_not(model):
    found = label_direction(model, brightness, n=40, seed=1)
    same = label_direction(model, brightness, n=40, seed=1, batch_size=7)
    torch.testing.assert_close(found.vector, same.vector, rtol=0, atol=1e-3)
    other = label_direction(model, brightness, n=40, seed=2)
    assert (found.vector - other.vector).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 19}, "n is 19; draw at least 20 images"),
        ({"n": 40.5}, "n is 40.5; use a whole number"),
        ({"held_out": 0.0}, "held_out is 0.0; use a share"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"held_out": 0.01}, "held_out is 0.01"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"truncation_psi": 0.0}, "all 40 styles are the same; use a truncation_psi above 0, not 0.0"),
        ({"score": lambda images: torch.ones(len(images))}, "score is 1 for all 40 images; nothing changes it"),
        ({"score": lambda images: images.mean()}, r"score gives \(\) for 16 images; expected \(16,\)"),
        ({"score": lambda images: brightness(images) / 0}, "score gives numbers that are not finite"),
    ],
)
def test_directions_that_lead_nowhere_are_refused(options, message):
    stream = torch.Generator().manual_seed(0)
    chance = lambda images: torch.rand(len(images), generator=stream)  # noqa: E731
    with pytest.raises(ValueError, match=message):
        label_direction(Linear(), **{"score": chance, "n": 40} | options)


def test_a_score_that_stands_out_once_cannot_be_both_fitted_and_checked():
    refused = Counter()
    for place in range(20):
        with pytest.raises(ValueError, match=r"score is the same for all .* images; draw more than n = 20") as caught:
            label_direction(Linear(), lambda images, place=place: torch.eye(20)[place], n=20, batch_size=20)
        refused[" ".join(str(caught.value).split()[6:8])] += 1
    assert refused == {"15 fitted": 5, "5 held-out": 15}


def test_a_label_shift_leads_from_average_to_average(model):
    shift = label_shift(model, "no finding", "finding")
    means = [model.styles(1, label, truncation_psi=0)[0] for label in ("no finding", "finding")]
    torch.testing.assert_close(move(means[0], shift, 1), means[1])
    torch.testing.assert_close(move(means[1], shift, -1), means[0])
    assert shift.norm() > 1e-2
    with pytest.raises(ValueError, match="label 'sick' is unknown"):
        label_shift(model, "sick", "finding")


def test_moving_adds_so_many_lengths_or_spreads():
    styles, vector = random_styles(2), torch.arange(WIDTH, dtype=torch.float32)
    torch.testing.assert_close(move(styles, vector, -2), styles - 2 * vector)
    direction = Direction(vector=vector, spread=3.0, correlation=1.0, auc=1.0)
    torch.testing.assert_close(move(styles, direction, 2), styles + 6 * vector)
    layers = torch.zeros(COUNT, WIDTH)
    layers[1] = 1
    moved = move(styles, layers, 4)
    torch.testing.assert_close(moved - styles, 4 * layers.expand(2, -1, -1))


@pytest.mark.parametrize("shape", [(WIDTH + 1,), (COUNT + 1, WIDTH), (1,), (2, COUNT, WIDTH)])
def test_directions_of_other_styles_are_refused(shape):
    with pytest.raises(ValueError, match=r"direction has shape .* for styles .*; expected"):
        move(random_styles(2), torch.zeros(shape), 1)


# Families


def test_a_family_without_styles_is_refused_by_name():
    with pytest.raises(
        ValueError, match="this model is of family medfusion, whose images have no styles; use a model of"
    ):
        styled(medfusion())


@pytest.mark.parametrize(
    ("kind", "names", "labels"),
    [
        ("none", (), None),
        ("multi", ("edema", "effusion"), (["edema"], ["edema", "effusion"])),
        ("continuous", ("age",), ([40.0], [80.0])),
    ],
)
def test_every_kind_of_label_can_be_walked_and_searched(kind, names, labels):
    torch.manual_seed(1)
    model = StyleGAN2Generator(replace(CONFIG, label_kind=kind, label_names=names)).eval()
    assert styled(model) is model
    way = {"labels": labels} if labels else {"seeds": (0, 1)}
    assert walk(model, 2, **way).shape == (4, 1, COUNT, WIDTH)
    found = label_direction(model, brightness, n=24, label=labels[0] if labels else None)
    assert found.vector.shape == (WIDTH,)
