"""What must come out on real radiographs, histology and fundus photographs, whatever the numbers are."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, gaussian_blur, resize, rotate, to_image, to_pil_image

from medgen.data import TableDataModule
from medgen.evaluation import METRICS
from medgen.evaluation.checks.zero_point import halves_by_patient, zero_point
from medgen.evaluation.judges.networks import feature_network
from medgen.evaluation.metrics.precision_recall import crowding
from medgen.evaluation.run import real_features
from medgen.evaluation.sets import FeatureSet, RealImages, patients_of
from medgen.evaluation.statistics.near_duplicates import near_duplicates
from medgen.images import from_uint8

pytestmark = pytest.mark.slow

GROUPS = {"cxr": "patient_id", "histology": "tile_group", "fundus": "patient_id"}
"""What must not be parted; histology has no patients, but several turned and enlarged variants of each tile."""
SAME_TILE = {"lung_n_177", "lung_n_228"}
"""Two groups that are one tile, as the README of the data says."""
CHOSEN = 32
"""Images of each data set that are degraded; each costs the network some 50 ms."""


def grain(images, strength):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(0, 1)


def compressed(images, quality):
    found = []
    for image in images:
        file = BytesIO()
        to_pil_image(image).save(file, "JPEG", quality=quality)
        found.append(to_image(Image.open(file)))
    return from_uint8(torch.stack(found))


def blurred(images, sigma):
    return gaussian_blur(images, kernel_size=[19, 19], sigma=[sigma, sigma]).clamp(0, 1)


def shifted(images, right, down):
    """The border is repeated where the picture has left it."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (8,) * 4, mode="replicate")
    return padded[..., 8 - down : 8 - down + height, 8 - right : 8 - right + width]


def turned(images, degrees):
    """By up to 15 degrees; enlarged as well, so that no empty corner comes into view."""
    side = images.shape[-1]
    turned = rotate(resize(images, [side * 5 // 4] * 2), degrees, interpolation=InterpolationMode.BILINEAR)
    return center_crop(turned, [side, side]).clamp(0, 1)


# The first of each is the mildest that can be seen at 64 pixels: standard deviations in pixels and in grey levels of 1,
# qualities.
DEGRADATIONS = {
    "blur": (blurred, (0.75, 1.5, 3.0)),
    "noise": (grain, (0.02, 0.05, 0.1)),
    "jpeg": (compressed, (50, 25, 10)),
}
COPIES = {
    "as it is": lambda x: x,
    "shifted by 3 pixels": lambda x: shifted(x, 3, -3),
    "mirrored": lambda x: x.flip(-1),
    "upside down": lambda x: x.flip(-2),
    "a quarter turn": lambda x: x.rot90(1, (-2, -1)),
    "turned by 15 degrees": lambda x: turned(x, 15),
    "less contrast": lambda x: 0.3 + 0.5 * x,
    "brighter": lambda x: x**0.7,
    "darker": lambda x: x**1.4,
    "blurred": lambda x: blurred(x, 0.8),
}


@pytest.fixture(scope="module")
def network():
    return feature_network()


@pytest.fixture(scope="module")
def open_data(data_root, tmp_path_factory):
    """Opens a data set by name, whole or only some splits of it: reading takes time."""
    folder = str(tmp_path_factory.mktemp("real"))

    @cache
    def opened(name, *splits):
        return TableDataModule(
            csv=str(data_root / name / "labels.csv"),
            root=str(data_root / name / "images.zip"),
            label_column="label",
            patient_column=GROUPS[name],
            split_column="split",
            where={"split": list(splits)},
            image_size=64,
            channels=1 if name == "cxr" else 3,
            cache_folder=folder,
        )

    return opened


def pictures(images, rows=slice(None)):
    return images[0 : len(images)][rows]


@dataclass(frozen=True, kw_only=True)
class Real:
    """A validation split by features, in halves by patient; some images of the first half are degraded by tests."""

    features: FeatureSet
    vectors: Tensor
    one: Tensor
    other: Tensor
    chosen: Tensor
    chosen_images: Tensor


@pytest.fixture(scope="module")
def real_by_name(open_data, network):
    @cache
    def opened(name):
        features = real_features(RealImages(open_data(name, "val"), "val"), [network])
        one, other = halves_by_patient(features.images, seed=0)
        chosen = one[torch.linspace(0, len(one) - 1, CHOSEN).long()]
        return Real(
            features=features,
            vectors=features.features[network.name],
            one=one,
            other=other,
            chosen=chosen,
            chosen_images=pictures(features.images, chosen),
        )

    return opened


@pytest.fixture(scope="module", params=GROUPS)
def real(request, real_by_name):
    return real_by_name(request.param)


@pytest.fixture(scope="module")
def degraded(real, network):
    """Features of the chosen images, from untouched to badly degraded, by kind of degradation."""
    return {
        kind: [real.vectors[real.chosen], *(network(degrade(real.chosen_images, strength)) for strength in strengths)]
        for kind, (degrade, strengths) in DEGRADATIONS.items()
    }


def measured(metric_name, real, generated):
    if metric_name == "frechet_distance":
        # In the space that all vectors span, nothing is lost and a second is won: two sets are far fewer than 1280.
        basis, _ = torch.linalg.qr(torch.cat([real, generated]).T)
        real, generated = real @ basis, generated @ basis
    metric = METRICS[metric_name](real.shape[1])
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize(("metric_name", "key"), [("frechet_distance", "fd"), ("kernel_distance", "kd")])
def test_distances_grow_with_every_step_of_a_degradation(real, degraded, metric_name, key, kind):
    distances = [measured(metric_name, real.vectors[real.other], vectors)[key] for vectors in degraded[kind]]
    assert distances == sorted(set(distances)), distances


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degraded_images_leave_the_real_manifold(real, degraded, kind):
    numbers = [measured("precision_recall", real.vectors[real.other], vectors) for vectors in degraded[kind]]
    clean, *_, worst = (item["precision"] for item in numbers)
    assert worst < 0.5 * clean


def test_halves_by_patient_are_as_good_as_at_no_distance(real, degraded, network):
    patients = patients_of(real.features)
    assert not set(patients[real.one].tolist()) & set(patients[real.other].tolist())
    found = zero_point(real.features, network, ["kernel_distance"])[f"kd_{network.slug}"]
    assert found.low <= 0 <= found.high
    mildest = [measured("kernel_distance", real.vectors[real.other], steps[1]) for steps in degraded.values()]
    assert found.high < min(item["kd_low"] for item in mildest)


def test_another_kind_of_image_is_much_farther_than_the_other_half(real, real_by_name):
    for metric_name, key in (("frechet_distance", "fd"), ("kernel_distance", "kd")):
        halves = measured(metric_name, real.vectors[real.other], real.vectors[real.one])[key]
        for name in GROUPS:
            if (stranger := real_by_name(name)) is not real:
                far = measured(metric_name, real.vectors[real.other], stranger.vectors[stranger.one])[key]
                assert halves < far / 3


def test_mode_collapse_costs_recall_and_coverage_but_no_precision(real, network):
    reference, healthy = real.vectors[real.other], real.vectors[real.chosen]
    # Collapse onto the two most typical images: with others precision would fall for their own sake.
    typical = crowding(reference, healthy, k=3).crowd.topk(2).indices
    images = real.chosen_images[typical].repeat(CHOSEN // 2, 1, 1, 1)
    collapsed = network(grain(images, 0.002))  # half a grey level
    before, after = (
        measured("precision_recall", reference, vectors) | measured("density_coverage", reference, vectors)
        for vectors in (healthy, collapsed)
    )
    assert after["precision"] >= before["precision"]
    assert after["recall"] < 0.1 < 0.5 < before["recall"]
    assert after["coverage_high"] < before["coverage_low"]


@pytest.fixture(scope="module", params=["cxr", "fundus"])
def planted(request, open_data):
    """What is found among fresh images and ten training images after each change; the number of fresh ones."""
    if request.param == "cxr":
        train, held_out, fresh = (
            pictures(RealImages(open_data("cxr", "train", "val", "test"), split)) for split in ("train", "val", "test")
        )
    else:  # the test split in the place of the large one for training: opening that takes long
        data = open_data("fundus", "val", "test")
        train, unseen = pictures(RealImages(data, "test")), RealImages(data, "val")
        held_out, fresh = (pictures(unseen, rows) for rows in halves_by_patient(unseen))
    sources = torch.linspace(0, len(train) - 1, 10).long()
    images = torch.cat([fresh, *(change(train[sources]) for change in COPIES.values())])
    return near_duplicates(images, train, held_out), sources, len(fresh)


@pytest.mark.parametrize("change", COPIES)
def test_planted_copies_are_found(planted, change):
    found, sources, fresh = planted
    start = fresh + 10 * list(COPIES).index(change)
    assert found.index[start : start + 10].tolist() == sources.tolist()
    assert set(range(start, start + 10)) <= set(found.rows.tolist())


def test_fresh_real_images_raise_no_alarm(planted):
    found, _, fresh = planted
    assert not [row for row in found.rows.tolist() if row < fresh]
    assert not int((found.held_out > found.threshold).sum())


@pytest.fixture(scope="module")
def tiles(open_data):
    """LC25000: second variants of training tiles, then tiles of the test split, against first variants for training.

    Variants are independently turned by up to 25 degrees, flipped and enlarged, some so much that little is in common.
    """
    data = open_data("histology", "train", "val", "test")
    train, val, test = (RealImages(data, split) for split in ("train", "val", "test"))
    groups = np.array(train.patients)
    _, first = np.unique(groups, return_index=True)
    second = np.setdiff1d(np.arange(len(groups)), first)[::3]
    images = pictures(train)
    fresh = pictures(test, slice(None, None, 3))
    found = near_duplicates(torch.cat([images[second], fresh]), images[first], pictures(val, slice(None, None, 2)))
    return found, groups[second], groups[first]


def test_a_careless_split_of_augmented_tiles_is_found_out(tiles):
    found, careless, train = tiles
    flagged = [row for row in found.rows.tolist() if row < len(careless)]
    assert len(flagged) > 0.5 * len(careless)
    for row in flagged:
        tile, match = careless[row], train[found.index[row]]
        assert tile == match or {tile, match} == SAME_TILE


def test_a_split_by_tile_raises_no_alarm(tiles):
    found, careless, _ = tiles
    assert not [row for row in found.rows.tolist() if row >= len(careless)]
