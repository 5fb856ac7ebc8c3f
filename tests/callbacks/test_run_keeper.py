"""Runs that end, are told to end, or break: every stage, through the command line's own main."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tests.commands.command_lines import DDP, base
from tests.conftest import stage_command

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.commands import fit as cli
from safe_rlhf_v.training.checkpoints import find_checkpoint

SLOW = ("guard", "vision", "supervised", "cost", "safe_dpo", "dpo_helpful", "sacpo", "ppo_lag", "grpo_lag")
STAGES = ["reward", *(pytest.param(stage, marks=pytest.mark.slow) for stage in SLOW)]
POLICY = (
    "--model.init_args.start.prompts=8",
    "--model.init_args.start.min_sign_accuracy=0",
    "--model.init_args.sampling.max_new_tokens=6",
    "--data.init_args.demonstration_batch_size=4",
)


class Sends(Callback):
    """Sends this process a signal in the middle of a step, as a scheduler would."""

    def __init__(self, number: int, step: int, where: str = "on_before_zero_grad", rank: int = 0) -> None:
        self.number, self.step, self.rank, self.sent = number, step, rank, 0
        setattr(self, where, self._send)

    def _send(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step - 1 and not self.sent and trainer.global_rank == self.rank:
            self.sent += 1
            os.kill(os.getpid(), self.number)


def command(stage: str, world: Path, runs: Path, out: Path, *extra: str, steps: int = 3) -> list[str]:
    """A stage that would save after 1,000 steps only, and never looks at the validation split."""
    own = POLICY if stage.endswith("_lag") else ()
    if stage == "sacpo":  # its first stage is no part of this test
        own = (f"--model.init_args.init_from={runs / 'supervised'}",)
    options = (
        "--trainer.callbacks.every_n_train_steps=1000",
        "--trainer.limit_val_batches=0",
        f"--trainer.logger.init_args.save_dir={out}",
    )
    return stage_command(stage, world, runs, *own, *options, *extra, steps=steps)


def run(args: list[str], *callbacks: Callback, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of a command, with callbacks that only a test would list."""
    make = cli.CLI.instantiate_trainer

    def instantiate(self: Any, **options: Any) -> Any:
        trainer = make(self, **options)
        trainer.callbacks[:0] = callbacks
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(cli.CLI, "instantiate_trainer", instantiate)
        try:
            return entry.main(args)
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            return exit.code


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints below a folder, links left out."""
    files = [path for path in folder.rglob("*.ckpt") if not path.is_symlink()]
    return sorted(torch.load(path, weights_only=True, mmap=True)["global_step"] for path in files)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num())  # NaN stands for no spare normal number
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def differences(one: Path, other: Path) -> list[str]:
    """Parts in which the ends of two runs differ: of weights, moments, data positions and random states."""
    a, b = (torch.load(find_checkpoint(folder), weights_only=True) for folder in (one, other))
    for content in (a, b):
        content["moments"] = {str(i): state["state"] for i, state in enumerate(content["optimizer_states"])}
    data = [name for name in a if name.endswith("DataModule")]
    assert len(data) == 1
    return [key for key in ("global_step", "state_dict", "moments", "random_states", *data) if not same(a[key], b[key])]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_keeps_its_end_obeys_sigterm_and_stops_at_nan(
    stage: str, world: Path, policy_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole, cut, broken = tmp_path / "whole", tmp_path / "cut", tmp_path / "broken"
    args = [world, policy_stages]
    assert run(command(stage, *args, whole), monkeypatch=monkeypatch) == 0
    assert steps(whole) == [3]
    sends = Sends(signal.SIGTERM, 2, "on_before_optimizer_step")
    assert run(command(stage, *args, cut), sends, monkeypatch=monkeypatch) == 143
    assert sends.sent == 1 and steps(cut) == [2]
    assert "SIGTERM: stopped after step 2, saved in " in capsys.readouterr().out
    assert run(command(stage, *args, cut, f"--ckpt_path={cut}"), monkeypatch=monkeypatch) == 0
    assert not differences(whole, cut)
    wild = ("--model.init_args.optimizer.init_args.lr=1e30", "--trainer.callbacks.every_n_train_steps=1")
    start = steps(cut)
    assert run(command(stage, *args, broken, *wild, f"--ckpt_path={cut}", steps=9), monkeypatch=monkeypatch) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "NaN or infinity in the" in line and "smaller learning rate" in line
    mends = (
        f"continue from a checkpoint in {broken}",
        f"continue from {cut}",
        "continue from an earlier checkpoint",
    )  # last: while sampling
    assert any(mend in line for mend in mends)
    assert steps(cut) == start
    for path in broken.rglob("*.ckpt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True)["state_dict"].values())


LENGTHS = {
    "epochs": (["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--data.init_args.batch_size=20"], 3),
    "time": (["--trainer.max_steps=-1", "--trainer.max_epochs=-1", "--trainer.max_time=01:00:00:00",
              "--model.init_args.scheduler=null"], 2),
    "early stopping": (["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
                        "--trainer.callbacks.monitor=validation/loss", "--trainer.callbacks.stopping_threshold=100.0",
                        "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"], 2),
    "best only": (["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
                   "--trainer.callbacks.monitor=train/loss", "--trainer.callbacks.mode=max",
                   "--trainer.callbacks.every_n_train_steps=1"], 5),
    "link": (["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_last=link",
              "--trainer.callbacks.monitor=step", "--trainer.callbacks.mode=max",
              "--trainer.callbacks.every_n_train_steps=2"], 5),
    "weights only": (["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
                      "--trainer.callbacks.save_weights_only=true", "--trainer.callbacks.every_n_train_steps=5"], 5),
}  # fmt: skip


@pytest.mark.parametrize("how", LENGTHS)
def test_a_run_leaves_its_last_state_however_it_ends(
    how: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra, end = LENGTHS[how]
    never = ["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"]
    never += ["--trainer.callbacks.every_n_train_steps=1000", "--trainer.val_check_interval=1000"]
    never += ["--trainer.check_val_every_n_epoch=null"]
    args = [*base(world, tmp_path, steps=5), "--trainer.limit_val_batches=0", *never, *extra]

    class TimeIsUp(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = how == "time" and trainer.global_step == 2  # as Lightning's Timer does

    assert run(args, TimeIsUp(), monkeypatch=monkeypatch) == 0
    found = find_checkpoint(tmp_path)
    assert torch.load(found, weights_only=True)["global_step"] == end
    assert "optimizer_states" in torch.load(found, weights_only=True)
    if how == "link":
        assert found.with_name("last.ckpt").resolve() == found.resolve()


def test_without_checkpoints_nothing_is_written(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in ("--trainer.enable_checkpointing=false", "--trainer.fast_dev_run=true"):
        assert run([*base(world, tmp_path), extra], monkeypatch=monkeypatch) == 0
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "case",
    ["interrupt", *(pytest.param(case, marks=pytest.mark.slow) for case in ("loading", "validation", "first step"))],
)
def test_signals_at_other_moments(
    case: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    moments = {
        "interrupt": (Sends(signal.SIGINT, 2), 130, [2]),
        "loading": (Sends(signal.SIGTERM, 1, "on_train_epoch_start"), 143, []),
        "validation": (Sends(signal.SIGTERM, 2, "on_validation_start"), 143, [1]),
        "first step": (Sends(signal.SIGTERM, 1), 143, [1]),
    }
    sends, status, saved = moments[case]
    never = ["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"]
    never += ["--trainer.callbacks.every_n_train_steps=1000", "--trainer.check_val_every_n_epoch=null"]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert run([*base(world, tmp_path, steps=4), *never], sends, monkeypatch=monkeypatch) == status
    assert sends.sent == 1
    said = capsys.readouterr().out
    assert ("saved in" in said) == bool(saved) and ("nothing new to save" in said) == (not saved)
    assert steps(tmp_path) == saved
    assert {number: signal.getsignal(number) for number in before} == before
    if saved:
        assert run([*base(world, tmp_path, steps=4), *never, f"--ckpt_path={tmp_path}"], monkeypatch=monkeypatch) == 0
        assert run([*base(world, tmp_path / "whole", steps=4), *never], monkeypatch=monkeypatch) == 0
        assert not differences(tmp_path, tmp_path / "whole")


def test_a_second_interrupt_stops_at_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [Sends(signal.SIGINT, 2, where) for where in ("on_before_zero_grad", "on_before_optimizer_step")]
    assert run(base(world, tmp_path, steps=4), *twice, monkeypatch=monkeypatch) == 130
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurms_requeue_is_lightnings_but_saves_between_two_steps(
    number: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {
        "JOB_ID": "17",
        "NTASKS": "1",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
        "JOB_NAME": "x",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    root = f"--trainer.default_root_dir={tmp_path / 'root'}"
    never = ["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint", root]
    never += ["--trainer.callbacks.every_n_train_steps=1000", "--trainer.check_val_every_n_epoch=null"]
    never += ["--trainer.val_check_interval=1000"]
    sends = Sends(number, 2, "on_before_optimizer_step")
    status = run([*base(world, tmp_path / "job", steps=3), *never], sends, monkeypatch=monkeypatch)
    assert sends.sent == 1
    if number == signal.SIGTERM:
        assert status == 143 and steps(tmp_path / "job") == [2] and not asked.exists()
        return
    assert status == 0 and steps(tmp_path / "job") == [3]  # it goes on until the scheduler ends it
    assert asked.read_text() == "requeue 17\n"
    saved = tmp_path / "root" / "hpc_ckpt_1.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 2
    assert run([*base(world, tmp_path / "again", steps=3), *never], monkeypatch=monkeypatch) == 0  # finds it by itself
    assert not differences(tmp_path / "job", tmp_path / "again")


def test_all_ranks_stop_for_one_of_them(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal reaches the second of two ranks only."""
    sends = Sends(signal.SIGTERM, 2, rank=1)
    with pytest.raises(Exception, match="exit code 143"):
        run([*base(world, tmp_path, steps=9), *DDP], sends, monkeypatch=monkeypatch)
    assert steps(tmp_path)[-1] == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_break_with_one_of_them(
    rank: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            if trainer.global_step == 2 and trainer.global_rank == rank:
                outputs["loss"].fill_(torch.nan)

    with pytest.raises(Exception, match="NaN or infinity in the"):
        run([*base(world, tmp_path, steps=9), *DDP], Breaks(), monkeypatch=monkeypatch)
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("what", ["loss", "gradient", "moment", "last step"])
def test_each_kind_of_broken_number_ends_a_run(
    what: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Breaks(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            parameter = next(p for p in module.parameters() if p.requires_grad)
            if trainer.global_step == 2 and what in ("gradient", "last step"):
                parameter.grad.view(-1)[0] = torch.inf
            if trainer.global_step == 2 and what == "moment":
                trainer.optimizers[0].state[parameter]["exp_avg_sq"].view(-1)[0] = torch.inf

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            if trainer.global_step == 3 and what == "loss":
                outputs["loss"].fill_(torch.inf)

    end = 3 if what == "last step" else 9
    assert run(base(world, tmp_path, steps=end), Breaks(), monkeypatch=monkeypatch) == 3
    names = {
        "loss": "the loss",
        "gradient": "the gradients",
        "last step": "the gradients",
        "moment": "optimizer state 0",
    }
    told = capsys.readouterr().err
    assert f"step 3: NaN or infinity in {names[what]}" in told
    assert f"continue from a checkpoint in {tmp_path}" in told
    assert steps(tmp_path) == [1, 2]


WINDOWS = {
    "validation": ["--trainer.val_check_interval=3"],
    "seconds": ["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
                "--trainer.callbacks.train_time_interval=00:00:00"],
}  # fmt: skip


@pytest.mark.parametrize("how", ["validation", pytest.param("seconds", marks=pytest.mark.slow)])
def test_a_checkpoint_inside_an_accumulation_window_resumes_exactly(
    how: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches make a step; checkpoints are written after every third batch, or every one. Weights equal those of the run left alone."""

    class Kill(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == kill_at:
                raise RuntimeError("killed")

    def go(out: Path, *extra: str, callbacks: tuple[Callback, ...] = ()) -> None:
        args = [*base(world, out, steps=3), "--trainer.accumulate_grad_batches=4", *WINDOWS[how], *extra]
        run(args, *callbacks, monkeypatch=monkeypatch)

    go(tmp_path / "whole")
    for kill_at in (6, 9):
        out = tmp_path / str(kill_at)
        with pytest.raises(RuntimeError, match="killed"):
            go(out, callbacks=(Kill(),))
        saved = torch.load(find_checkpoint(out), weights_only=True)
        ready = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
        assert ready == 4 * saved["global_step"]  # the position of the last step, not of the last batch
        go(out, f"--ckpt_path={out}")
        assert not differences(tmp_path / "whole", out), kill_at
