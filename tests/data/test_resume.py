"""Under Lightning: a run resumed from any checkpoint, or shared by two processes, sees the images of one whole run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from medgen.data import Augmentation, TableDataModule
from tests.data.fakes import write_table


class Recorder(LightningModule):
    """Notes which images it was shown, as pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["index"].tolist(), float(batch["image"].double().sum())))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(csv, *, workers=0, checkpoint=None, **options):
    module = Recorder()
    data = TableDataModule(
        csv=str(csv),
        split_column="split",
        image_size=16,
        batch_size=4,
        num_workers=workers,
        augment=Augmentation(horizontal_flip=True, rotation_degrees=10),
    )
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 3} | options
    options.setdefault("enable_checkpointing", False)
    trainer = Trainer(**options, enable_model_summary=False, num_sanity_val_steps=0)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module.seen


@pytest.fixture
def csv(tmp_path):
    return write_table(tmp_path / "data", (("train", 14), ("val", 4)))  # three batches of four, two images left over


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_resumed_at_any_batch_sees_what_the_whole_run_saw(csv, tmp_path, workers):
    every_batch = ModelCheckpoint(tmp_path / "step", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    after_validation = ModelCheckpoint(tmp_path / "epoch", filename="{step}", every_n_epochs=1, save_top_k=-1)
    whole = fit(csv, workers=workers, callbacks=[every_batch, after_validation], enable_checkpointing=True)
    assert len(whole) == 9
    for path in sorted(tmp_path.rglob("*.ckpt")):
        done = int(path.stem.partition("=")[2])
        assert fit(csv, workers=workers, checkpoint=path) == whole[done:], path


@pytest.mark.filterwarnings("ignore")
def test_shortened_epochs_resume_too(csv, tmp_path):
    every_batch = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(csv, callbacks=[every_batch], enable_checkpointing=True, limit_train_batches=2)
    for step in (1, 2, 3):
        path = tmp_path / f"step={step}.ckpt"
        assert fit(csv, checkpoint=path, limit_train_batches=2) == whole[step:]


@pytest.mark.filterwarnings("ignore")
def test_overfitting_on_purpose_repeats_the_first_batch_as_it_is(csv):
    seen = fit(csv, overfit_batches=1)
    assert [indices for _, indices, _ in seen] == [[0, 1, 2, 3]] * 3
    assert len({pixels for _, _, pixels in seen}) == 1


SCRIPT = """
import json, os, sys
from pathlib import Path
from tests.data.test_resume import fit
rank = os.environ.get("LOCAL_RANK", "0")
seen = fit(sys.argv[1], devices=2, strategy="ddp", max_epochs=2)
Path(sys.argv[2], f"seen-{rank}.json").write_text(json.dumps(seen))
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_share_each_epoch_and_build_one_cache(csv, tmp_path, own_cache):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, csv, tmp_path], env=environment, check=True, timeout=300)
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    assert [epoch for epoch, _, _ in first] == [0, 1]  # 14 images make one batch of four for each of two processes
    for one, two in zip(first, second, strict=True):
        assert not set(one[1]) & set(two[1])
    assert len([path for path in own_cache.iterdir() if path.is_dir()]) == 1
