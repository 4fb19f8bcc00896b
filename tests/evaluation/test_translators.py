"""Translators and translated folders beside real images of the domain they were translated to."""

import json

import pytest
import torch

from medgen.cli import main
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.run import compare, evaluate
from medgen.evaluation.sets import RealImages, TranslatedImages, open_source
from medgen.families.cyclegan.translator import CycleGANConfig, CycleGANTranslator
from medgen.translation import translate_folder
from tests.evaluation.conftest import Means
from tests.tiny import data_module, train, write_data


def judge():
    return FeatureNetwork("quarters", Means(), size=(16, 16), dim=4)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(table):
    return data_module(table)


@pytest.fixture(scope="module")
def translator(data):
    torch.manual_seed(0)
    names = data.label_space.names
    return CycleGANTranslator(CycleGANConfig(image_size=(16, 16), channels=1, label_names=names, width=4, blocks=1))


def test_every_image_is_translated_to_the_other_domain(data, translator):
    real = RealImages(data, "val")
    translated = TranslatedImages(translator, real)
    assert torch.equal(translated.labels, 1 - real.labels)
    whole = translated[0 : len(translated)]
    for index, label in enumerate(translated.labels.tolist()):
        expected = translator.translate(real[index : index + 1], label)
        torch.testing.assert_close(whole[index : index + 1], expected, rtol=0, atol=1e-5)


def test_a_translator_is_measured_as_a_generator_is(data, translator):
    scores = evaluate(translator, data, ["frechet_distance"], split="val", network=judge())
    assert scores
    assert {score.n_generated for score in scores.values()} == {len(RealImages(data, "val"))}


def test_a_translated_folder_is_compared_with_real_images_of_its_domain_only(data, translator, table, tmp_path):
    target = translator.domains[1]
    translate_folder(translator, table.parent, target, tmp_path / "out", progress=False)
    source = open_source(tmp_path / "out", channels=1)
    generated, real = compare(source, data, [judge()], split="val")
    labels = RealImages(data, "val").labels
    assert real.n == int((labels == 1).sum()) < len(labels)
    assert real.name == f"val:{target}"
    assert bool((real.labels == 1).all())
    assert bool((generated.labels == 1).all())


def test_a_folder_of_a_domain_that_the_data_lack_is_refused(data, tmp_path, translator, table):
    translate_folder(translator, table.parent, 1, tmp_path / "out", progress=False)
    run = tmp_path / "out" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"to": "elsewhere"}))
    (tmp_path / "out" / "samples.csv").unlink()
    with pytest.raises(ValueError, match="the images were translated to elsewhere, which is no class of the data"):
        compare(open_source(tmp_path / "out", channels=1), data, [judge()], split="val")


def test_data_of_other_domains_are_refused(data):
    other = CycleGANTranslator(CycleGANConfig.tiny())
    other.config = CycleGANConfig(image_size=(16, 16), channels=1, label_names=("x", "y"))
    with pytest.raises(ValueError, match="the model translates between x and y; set label_kind to single"):
        TranslatedImages(other, RealImages(data, "val"))


def test_sampling_options_are_refused(data, translator):
    with pytest.raises(ValueError, match="sampling options steps are for generators"):
        evaluate(translator, data, split="val", network=judge(), steps=3)


def test_the_verb_writes_a_report_of_a_checkpoint_and_of_a_folder(translator, table, data, tmp_path, capsys):
    checkpoint = translator.save_pretrained(tmp_path / "model")
    translate_folder(translator, table.parent, 0, tmp_path / "translated", progress=False)
    arguments = json.dumps(
        {
            "class_path": "medgen.data.TableDataModule",
            "init_args": {
                "csv": str(table),
                "split_column": "split",
                "image_size": 16,
                "batch_size": 4,
                "label_column": "label",
                "label_names": list(data.label_space.names),
            },
        }
    )
    (tmp_path / "data.yaml").write_text(arguments)
    out = tmp_path / "report"
    sources = [str(checkpoint), str(tmp_path / "translated")]
    options = ["--split", "val", "--out", str(out), "--metrics", "frechet_distance", "--device", "cpu"]
    status = main(["evaluate", *sources, "--data", str(tmp_path / "data.yaml"), *options])
    assert status == 0, capsys.readouterr().err
    judged = {row["generated"] for row in json.loads((out / "metrics.json").read_text())["scores"]}
    assert judged == {str(checkpoint), str(tmp_path / "translated")}


def test_a_translator_is_evaluated_while_it_trains(table, tmp_path, monkeypatch):
    from medgen.families.cyclegan.modules import CycleGANModule
    from medgen.training import callbacks

    data = data_module(table, balanced=True)
    config = CycleGANConfig(image_size=(16, 16), channels=1, label_names=data.label_space.names, width=4, blocks=1)
    monkeypatch.setattr(callbacks, "feature_network", lambda name: judge())
    module = CycleGANModule(config, discriminator_width=4, discriminator_layers=1)
    trainer = train(module, data, tmp_path, max_epochs=1, callbacks=[callbacks.EvaluateGenerator(["frechet_distance"])])
    assert any(name.startswith("val/fd_") for name in trainer.callback_metrics)
    with pytest.raises(ValueError, match="trains a translator, which draws no images; use EvaluateGenerator"):
        callbacks.LogSamples(n=2).setup(trainer, module, "fit")
