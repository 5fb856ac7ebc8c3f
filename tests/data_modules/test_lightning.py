"""Under the real trainer: two real processes, and the order of Lightning's own calls."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.training.checkpoints import CheckpointError

RUN = Path(__file__).parents[1] / "tiny_run.py"
Folder = Callable[..., Path]


def seen(out: Path, kind: str, rank: int) -> list[list[str]]:
    return [json.loads(line) for line in (out / f"{kind}-{rank}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_see_each_sample_once_and_resume_exactly(folder: Folder, tmp_path: Path) -> None:
    root, out, resumed = folder(train=13, validation=5), tmp_path / "out", tmp_path / "resumed"
    options = {"root": str(root), "epochs": 2, "devices": 2, "every": 4}
    runs = [
        {**options, "out": str(out), "workers": 1},
        {**options, "out": str(resumed), "resume": str(out / "step=4.ckpt")},
    ]
    done = subprocess.run([sys.executable, str(RUN), json.dumps(runs)], capture_output=True, text=True, timeout=240)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0], done.stderr[-3000:]
    train = [seen(out, "train", rank) for rank in (0, 1)]
    assert [len(steps) for steps in train] == [6, 6]  # 13 samples, global batches of 4, two epochs
    epochs = [[key for steps in train for rows in steps[first : first + 3] for key in rows] for first in (0, 3)]
    assert [len(set(keys)) for keys in epochs] == [12, 12]
    assert epochs[0] != epochs[1]
    for epoch in (0, 1):
        rows = [seen(out, "validation", rank)[2 * epoch : 2 * epoch + 2] for rank in (0, 1)]
        assert [len(steps) for steps in rows] == [2, 2]
        assert sorted(sum(rows[0] + rows[1], [])) == [f"validation-{i:04d}" for i in range(5)]
    assert [seen(resumed, "train", rank) for rank in (0, 1)] == [steps[4:] for steps in train]
    first, second = (torch.load(path / "final.pt", weights_only=True)["weights"] for path in (out, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Watch(pl.LightningModule):
    """Learns nothing and remembers the keys it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[str] = []
        self.tested: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.trained += batch.keys
        return self.weight.sum()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.tested += [key for key in batch.keys if key]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(tmp_path: Path, **options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", use_distributed_sampler=False, default_root_dir=tmp_path, **quiet, **options)


def test_limited_passes_walk_through_all_data(folder: Folder, tmp_path: Path) -> None:
    data, module = PreferenceDataModule(str(folder(train=12)), validation_splits=(), batch_size=2), Watch()
    trainer(tmp_path, max_epochs=3, limit_train_batches=2).fit(module, data)
    assert len(module.trained) == len(set(module.trained)) == 12


@pytest.mark.parametrize("reload", [0, 1])
def test_fit_again_goes_on_and_a_new_trainer_starts_anew(folder: Folder, tmp_path: Path, reload: int) -> None:
    data, module = PreferenceDataModule(str(folder(train=12)), validation_splits=(), batch_size=2), Watch()
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=3, reload_dataloaders_every_n_epochs=reload)
    run.fit(module, data)
    assert len(set(module.trained)) == 12
    run.fit_loop.max_epochs = 4
    run.fit(module, data)
    assert len(set(module.trained[12:])) == 12
    assert module.trained[:12] != module.trained[12:]
    anew = Watch()
    trainer(tmp_path, max_epochs=2, limit_train_batches=3).fit(anew, data)
    assert anew.trained == module.trained[:12]


def test_a_checkpoint_is_tested_on_other_data_with_another_batch_size(folder: Folder, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Watch(), PreferenceDataModule(str(folder(train=4)), validation_splits=(), batch_size=2))
    run.save_checkpoint(tmp_path / "x.ckpt")
    other = PreferenceDataModule(str(folder(test=5, name="other")), batch_size=3)
    module = Watch()
    trainer(tmp_path).test(module, other, ckpt_path=tmp_path / "x.ckpt", verbose=False)
    assert module.tested == [f"test-{i:04d}" for i in range(5)]
    with pytest.raises(ValueError, match=r"global_batch = 2, now it is 4: set batch_size to 2 on 1 rank"):
        data = PreferenceDataModule(str(tmp_path / "data"), validation_splits=(), batch_size=4)
        trainer(tmp_path, max_epochs=2).fit(Watch(), data, ckpt_path=tmp_path / "x.ckpt")


class Stub(torch.nn.Module):
    """The least that a fingerprint needs."""

    base = None

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0}, special_tokens_map={})


class Learning(BaseModule):
    """A module of the library that learns nothing."""

    def build(self) -> None:
        self.backbone: Any = Stub()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return 0.0 * self.backbone.linear(torch.ones(1, 1)).sum()  # type: ignore[no-any-return]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing is measured."""


class Renamed(PreferenceDataModule):
    """The same batches by another name."""


def test_a_position_that_a_renamed_data_module_would_lose_is_refused(folder: Folder, tmp_path: Path) -> None:
    root = str(folder(train=8))
    file = tmp_path / "x.ckpt"
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Learning(), PreferenceDataModule(root, validation_splits=(), batch_size=2))
    run.save_checkpoint(file)
    with pytest.raises(
        CheckpointError, match=r"x\.ckpt: its position in the data is that of PreferenceDataModule"
    ) as error:
        trainer(tmp_path, max_epochs=2).fit(
            Learning(), Renamed(root, validation_splits=(), batch_size=2), ckpt_path=file
        )
    assert "the data module now is Renamed" in str(error.value) and "\n" not in str(error.value)
    other = trainer(tmp_path, max_epochs=2)
    other.fit(Learning(), PreferenceDataModule(root, validation_splits=(), batch_size=2), ckpt_path=file)
    assert other.global_step == 8
    trainer(tmp_path).test(
        Learning(), Renamed(root, test_splits=("train",), batch_size=2), ckpt_path=file, verbose=False
    )
