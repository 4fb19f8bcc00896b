import csv
import json
import logging

import pytest
import torch

from medgen.evaluation import METRICS
from medgen.evaluation.run import compare, evaluate
from medgen.evaluation.scores import write_scores
from medgen.evaluation.sets import RealImages
from medgen.images import save_images
from tests.evaluation.conftest import DotConfig, DotGenerator


def test_every_number_says_what_it_was_measured_on(generator, datamodule, network):
    scores = evaluate(generator, datamodule, n=30, split="val+test", network=network)
    assert {"fd_quarters", "fd_infinity_quarters", "kd_quarters", "precision", "recall", "f1", "coverage"} <= set(
        scores
    )
    for name, score in scores.items():
        assert score.name == name
        assert (score.network, score.resize) == ("quarters", "bicubic 8x8")
        assert (score.n_generated, score.real, score.n_real) == (30, "val+test", 40)


def test_a_generator_of_the_same_distribution_is_nearer_than_one_without_labels(datamodule, network):
    conditional = evaluate(DotGenerator(), datamodule, ["frechet_distance"], network=network)["fd_quarters"].value
    ignorant = DotGenerator(DotConfig(label_kind="none", label_names=()))
    unconditional = evaluate(ignorant, datamodule, ["frechet_distance"], network=network)["fd_quarters"].value
    assert conditional < 0.02 < unconditional


def test_real_images_against_themselves_are_perfect(datamodule, network):
    test = RealImages(datamodule, "test")[0:20]
    scores = evaluate(test, datamodule, network=network)
    assert scores["fd_quarters"].value == pytest.approx(0, abs=1e-6)
    assert scores["precision"].value == scores["recall"].value == 1


def test_generated_labels_follow_the_reference(generator, datamodule, network):
    generated, real = compare(generator, datamodule, [network], n=20, split="test")
    assert generated.labels.bincount().tolist() == real.labels.bincount().tolist() == [14, 6]


def test_labels_go_by_name_where_the_orders_differ(datamodule, network):
    swapped = DotGenerator(DotConfig(label_names=("bright", "dark")))
    generated, _ = compare(swapped, datamodule, [network], n=20)
    assert generated.images.labels.bincount().tolist() == [6, 14]  # in the model's order
    assert generated.labels.bincount().tolist() == [14, 6]  # in the data's


def test_a_saved_folder_gets_the_numbers_of_its_generator(generator, datamodule, network, tmp_path):
    generated, _ = compare(generator, datamodule, [network], n=20)
    save_images(generated.images[0:20], tmp_path / "saved")
    from_folder = evaluate(str(tmp_path / "saved"), datamodule, network=network)
    from_generator = evaluate(generator, datamodule, n=20, network=network)
    assert {k: v.value for k, v in from_folder.items()} == pytest.approx(
        {k: v.value for k, v in from_generator.items()}
    )


def test_same_seed_gives_same_numbers_whatever_the_batch_size(generator, datamodule, network):
    one = evaluate(generator, datamodule, n=20, seed=1, network=network, batch_size=3)
    other = evaluate(generator, datamodule, n=20, seed=1, network=network, batch_size=20)
    assert {k: v.value for k, v in one.items()} == pytest.approx({k: v.value for k, v in other.items()}, rel=1e-5)


def test_a_judge_from_the_training_loss_is_warned_of(generator, datamodule, network, caplog):
    with caplog.at_level(logging.WARNING):
        evaluate(generator, datamodule, ["frechet_distance"], network=network, trained_with=["quarters"])
    assert "quarters was in the training loss of the model it judges" in caplog.text


def test_an_impartial_judge_is_not_warned_of(generator, datamodule, network, caplog):
    with caplog.at_level(logging.WARNING):
        evaluate(generator, datamodule, ["frechet_distance"], network=network, trained_with=["efficientnet_lite1"])
    assert not caplog.records


def test_other_image_sizes_are_refused(datamodule, network):
    large = DotGenerator(DotConfig(image_size=(16, 8)))
    with pytest.raises(ValueError, match=r"images 1x16x8, the data 1x8x8"):
        evaluate(large, datamodule, network=network)


def test_fewer_than_two_images_are_refused(generator, datamodule, network):
    with pytest.raises(ValueError, match="n is 1; statistics need at least two"):
        evaluate(generator, datamodule, n=1, network=network)


def test_more_images_than_there_are_is_refused(datamodule, network):
    with pytest.raises(ValueError, match="n is 9, but there are 5 images"):
        evaluate(torch.rand(5, 1, 8, 8), datamodule, n=9, network=network)


def test_fewer_images_of_a_folder_are_drawn_at_random_with_their_labels(datamodule, network, tmp_path):
    images = torch.arange(40)[:, None, None, None].expand(40, 1, 8, 8) / 255  # one class after the other, as in folders
    names = [path.name for path in save_images(images, tmp_path)]
    lines = ["file,label", *(f"{name},{'dark' if i < 20 else 'bright'}" for i, name in enumerate(names))]
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    generated, _ = compare(str(tmp_path), datamodule, [network], n=12, seed=3)
    numbers = (generated.images[0:12].mean((1, 2, 3)) * 255).round().int()
    assert len(numbers.unique()) == 12
    assert numbers.tolist() != list(range(12))
    assert generated.labels.tolist() == [int(number >= 20) for number in numbers]
    again, _ = compare(str(tmp_path), datamodule, [network], n=12, seed=3)
    torch.testing.assert_close(again.images[0:12], generated.images[0:12])


def test_a_folder_named_like_a_split_is_not_taken_for_it(datamodule, network, tmp_path, monkeypatch):
    save_images(torch.rand(8, 1, 8, 8), tmp_path / "test")
    monkeypatch.chdir(tmp_path)
    generated, real = compare("test", datamodule, [network])
    assert (generated.name, real.name) == ("test/", "test")


def test_an_unknown_metric_is_refused_before_anything_is_drawn(datamodule, network):
    class Untouchable(DotGenerator):
        def _sample(self, label, noise):
            raise AssertionError("sampled")

    with pytest.raises(ValueError, match=r"'fid' is unknown; use frechet_distance, .*precision_recall"):
        evaluate(Untouchable(), datamodule, ["fid"], network=network)


def test_metrics_that_need_more_images_are_left_out_by_default_and_refused_by_name(
    generator, datamodule, network, caplog
):
    scores = evaluate(generator, datamodule, n=10, network=network)
    assert "fd_quarters" in scores
    assert "fd_infinity_quarters" not in scores
    assert "frechet_distance_to_infinity are left out: 10 images are too few" in caplog.text
    with pytest.raises(ValueError, match="generated set has 10 images; FrechetDistanceToInfinity needs at least 20"):
        evaluate(generator, datamodule, ["frechet_distance_to_infinity"], n=10, network=network)


def test_a_generator_that_diverged_is_refused(datamodule, network):
    broken = DotGenerator()
    torch.nn.init.constant_(broken.scale, torch.nan)
    with pytest.raises(ValueError, match="images hold NaN or infinite values"):
        evaluate(broken, datamodule, network=network)


def test_scores_are_written_as_json_and_csv(generator, datamodule, network, tmp_path):
    scores = evaluate(generator, datamodule, n=10, network=network)
    write_scores(scores.values(), tmp_path / "out", seed=0)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["seed"] == 0
    assert [row["value"] for row in written["scores"]] == [score.value for score in scores.values()]
    with (tmp_path / "out" / "metrics.csv").open(newline="") as handle:
        assert [row["name"] for row in csv.DictReader(handle)] == list(scores)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_takes_images_or_their_features(name, network):
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    from_images, from_features = METRICS[name](network), METRICS[name](network.dim)
    for rows, real in ((slice(0, 20), True), (slice(20, 40), False)):
        from_images.update(images[rows], real=real)
        from_features.update(network(images[rows]), real=real)
    assert from_images.compute() == from_features.compute()


def _evaluate_in_a_process(rank, world, port, generator, datamodule, network, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    scores = evaluate(generator, datamodule, n=21, split="val+test", network=network)
    results.put((rank, {name: score.value for name, score in scores.items()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_give_the_numbers_of_one(generator, datamodule, network, free_port):
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    arguments = (2, free_port, generator, datamodule, network, results)
    torch.multiprocessing.spawn(_evaluate_in_a_process, arguments, nprocs=2)
    found = dict(results.get() for _ in range(2))
    alone = {k: v.value for k, v in evaluate(generator, datamodule, n=21, split="val+test", network=network).items()}
    assert found[0] == found[1]
    assert found[0] == pytest.approx(alone, rel=1e-6)
