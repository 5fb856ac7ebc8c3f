"""Runs that go wrong are stopped, and nothing that was good is lost."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from tests.callbacks.scripted import PromptData, Scripted

from safe_rlhf_v.callbacks import StopOnViolation
from safe_rlhf_v.functional.finite import NonFiniteError
from safe_rlhf_v.training.checkpoints import find_checkpoint

RUN: dict[str, Any] = {
    "num_sanity_val_steps": 0,
    "max_steps": 8,
    "max_epochs": -1,
    "val_check_interval": 4,
    "check_val_every_n_epoch": None,
}


def at(i: int, **values: float) -> Any:
    """A script that departs from the usual curves in one iteration."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return lambda j: named if i == j else {}


CASES = {
    "kl": (dict(max_kl=2.0), at(3, policy__kl=2.5), "policy/kl is 2.50, above max_kl 2.0"),
    "length": (dict(min_length=4.0), at(3, rollout__length=3.0), "rollout/length is 3.00, below min_length 4.0"),
    "nan": ({}, at(3, policy__loss=math.nan), "not finite: policy/loss = nan"),
    "inf": ({}, at(3, critic__cost_loss=math.inf, policy__loss=math.nan), "not finite: critic/cost_loss = inf, policy/loss"),
    # windowed cost 1 - i/4, so the gap 1.5 - i/4 is above 0.5 in the iterations 1, 2 and 3
    "gap": (dict(max_gap=0.5, patience=3), at(0), "constraint/gap is 0.75, above max_gap 0.5 for 3 iterations"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_stops_with_a_checkpoint_and_one_line(case: str, trainer: Any, tmp_path: Path, capsys: Any) -> None:
    options, script, message = CASES[case]
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=2)
    run = trainer([StopOnViolation(**options), saver], **RUN, enable_checkpointing=True)
    module = Scripted(script)
    run.fit(module, datamodule=PromptData())
    assert run.global_step == 3
    file = tmp_path / "saved" / "stopped-step=3.ckpt"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "stopped after" in line]
    assert line.startswith(f"stopped after iteration 3: {message}") and line.endswith(f"; saved {file}")
    assert (tmp_path / "saved" / "step=2.ckpt").is_file()
    assert [done for done, *_ in module.asked] == [3] * 4  # a last validation shows what it had come to
    again = trainer([StopOnViolation()], **RUN)
    again.fit(Scripted(), datamodule=PromptData(), ckpt_path=file, weights_only=True)
    assert again.global_step == 8  # it goes on, under other limits


def test_healthy_runs_go_on(trainer: Any, tmp_path: Path) -> None:
    """Also with NaN in a validation metric, and with a constraint that has not had a cost yet."""
    unseen = {"constraint/windowed_cost": math.nan, "constraint/gap": math.nan}
    guard = StopOnViolation(max_kl=1.0, min_length=15.0, max_gap=0.5, patience=4)
    run = trainer([guard], **RUN)
    run.fit(Scripted(lambda i: unseen if i > 4 else {}), datamodule=PromptData())
    assert run.global_step == 8 and not list(tmp_path.rglob("stopped*"))


def test_only_iterations_in_a_row_count(trainer: Any) -> None:
    gaps = iter([0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9])
    run = trainer([StopOnViolation(max_gap=0.5, patience=3)], **RUN)
    run.fit(Scripted(lambda i: {"constraint/gap": next(gaps)}), datamodule=PromptData())
    assert run.global_step == 6


def test_the_count_survives_a_resume(trainer: Any, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2)
    script = lambda i: {"constraint/gap": 0.9}  # noqa: E731
    options = {**RUN, "enable_checkpointing": True}
    run = trainer([StopOnViolation(max_gap=0.5, patience=3), saver], **{**options, "max_steps": 2})
    run.fit(Scripted(script), datamodule=PromptData())
    guard = StopOnViolation(max_gap=0.5, patience=3)
    run = trainer([guard], **RUN)
    run.fit(Scripted(script), datamodule=PromptData(), ckpt_path=saver.best_model_path, weights_only=True)
    assert run.global_step == 3
    fresh = trainer([guard], **RUN)
    fresh.fit(Scripted(script), datamodule=PromptData())
    assert fresh.global_step == 3  # not 1: a new run counts anew


def test_broken_weights_reach_no_file(trainer: Any, tmp_path: Path) -> None:
    """Weights and a metric turn NaN in an iteration at which a checkpoint and a validation are due."""
    saver = ModelCheckpoint(
        tmp_path / "saved", filename="{step}", monitor="step", mode="max", save_top_k=2, every_n_train_steps=1,
        save_last="link",
    )  # fmt: skip
    run = trainer([StopOnViolation(), saver], **RUN, enable_checkpointing=True)
    module = Scripted(at(4, policy__gradient_norm=math.nan), breaks=4)
    with pytest.raises(NonFiniteError, match="step 4: NaN or infinity in weight; not saved"):
        run.fit(module, datamodule=PromptData())
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == ["last.ckpt", "step=2.ckpt", "step=3.ckpt"]
    found = find_checkpoint(tmp_path / "saved")
    assert found.resolve().name == "step=3.ckpt"
    assert torch.load(found, weights_only=True)["state_dict"]["weight"].isfinite().all()
    assert module.asked == []  # broken weights cannot answer a validation


def test_without_a_checkpoint_callback_it_saves_beside_the_log(trainer: Any, tmp_path: Path) -> None:
    trainer([StopOnViolation(max_kl=2.0)], **RUN).fit(Scripted(at(2, policy__kl=9.0)), datamodule=PromptData())
    assert (tmp_path / "board" / "stopped-step=2.ckpt").is_file()


def test_both_ranks_stop_for_what_one_of_them_saw(trainer: Any, tmp_path: Path) -> None:
    """Losses and explained variances are each rank's own: one may be NaN on one rank only."""

    class OneRank(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.script = at(2, policy__loss=math.nan) if self.global_rank == 1 else at(0)
            super().training_step(batch, batch_idx)

        def on_train_end(self) -> None:
            (tmp_path / f"end-{self.global_rank}").write_text(str(self.global_step))

    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    run = trainer([StopOnViolation()], devices=2, strategy=strategy, use_distributed_sampler=False, **RUN)
    run.fit(OneRank(), datamodule=PromptData())
    assert [(tmp_path / f"end-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    assert (tmp_path / "board" / "stopped-step=2.ckpt").is_file()


def test_limits_need_their_metric_and_sense(trainer: Any, toy: Any) -> None:
    data = toy.data({"validation": [toy.batch(4)]})
    with pytest.raises(ValueError, match="the module logs no policy/kl; set its limit to null"):
        trainer([StopOnViolation(max_kl=1.0)]).fit(toy.module(), datamodule=data)
    with pytest.raises(ValueError, match="the module logs no rollout/length"):
        trainer([StopOnViolation(min_length=1.0)]).fit(toy.module(), datamodule=data)
    with pytest.raises(ValueError, match="the module logs no constraint/gap"):
        trainer([StopOnViolation(max_gap=1.0)]).fit(toy.module(), datamodule=data)
    with pytest.raises(ValueError, match="patience is 0"):
        StopOnViolation(patience=0)
    trainer([StopOnViolation()], max_epochs=1).fit(toy.module(), datamodule=data)  # nothing to read, nothing to stop
