"""A policy run killed by SIGKILL and resumed ends where the run left alone ends, bit for bit; two ranks stay one model."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import stage_command

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
OPTIONS = (
    "--model.init_args.start.prompts=8",
    "--model.init_args.start.min_sign_accuracy=0",
    "--model.init_args.sampling.max_new_tokens=8",
    "--model.init_args.samples=2",  # packed rows
    "--model.init_args.update.epochs=2",
    "--model.init_args.update.minibatch_size=2",  # shuffled minibatches
    "--model.init_args.dual.init_args.smoothing=0.5",
    "--data.init_args.demonstration_batch_size=5",
    "--trainer.limit_val_batches=1",
    "--trainer.callbacks.every_n_train_steps=1",
)
STEPS = 4


def execute(*runs: dict[str, Any]) -> list[int]:
    command = [sys.executable, str(HERE / "policy_run.py"), json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=HERE.parent)
    assert done.stdout.strip(), done.stderr[-3000:]
    ends: list[int] = json.loads(done.stdout.splitlines()[-1])
    assert not {1, 2} & set(ends), done.stderr[-3000:]
    return ends


@pytest.fixture(scope="module")
def ends(policy_stages: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Final states of a whole run, and of a killed and resumed one."""
    out = tmp_path_factory.mktemp("resume")

    def command(name: str, *extra: str) -> list[str]:
        save = f"--trainer.logger.init_args.save_dir={out / name}"
        return stage_command("ppo_lag", world, policy_stages, *OPTIONS, save, *extra, steps=STEPS)

    resume = f"--ckpt_path={out / 'killed'}"
    other = (resume, "--model.init_args.seed=9")
    done = execute(
        {"args": command("whole"), "out": str(out / "whole.pt")},
        {"args": command("killed"), "out": str(out / "killed.pt"), "kill_at": 3},
        {"args": command("resumed", resume), "out": str(out / "resumed.pt")},
        {"args": command("other", *other), "out": str(out / "other.pt")},
    )
    assert done == [0, -signal.SIGKILL, 0, 0]
    return out


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_killed_and_resumed_equals_uninterrupted(ends: Path) -> None:
    whole, resumed = load(ends / "whole.pt"), load(ends / "resumed.pt")
    assert whole["step"] == resumed["step"] == STEPS
    for part in ("weights", "optimizer", "data", "rate"):
        assert same(whole[part], resumed[part]), part
    moving = {"dual.lam", "dual.window_costs", "dual.smoothed", "scale.spread"}
    assert moving <= set(whole["weights"])
    assert whole["data"]["ptx"] == [0, STEPS] and whole["data"]["batch"] == STEPS


def test_with_another_sampling_stream_it_would_end_elsewhere(ends: Path) -> None:
    """The comparison above can fail."""
    assert not same(load(ends / "whole.pt")["weights"], load(ends / "other.pt")["weights"])


SINGLE_UPDATE = (  # then critics learn before the advantages are known; in micro-batches, of which ranks exchange the last
    "--model.init_args.update.epochs=1",
    "--model.init_args.update.micro_batch_size=1",
)


@pytest.mark.parametrize("extra", [(), SINGLE_UPDATE], ids=["epochs", "micro-batches"])
def test_two_ranks_sample_apart_and_learn_as_one(
    extra: tuple[str, ...], policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    save = f"--trainer.logger.init_args.save_dir={tmp_path}"
    small = "--data.init_args.batch_size=2"
    args = stage_command("ppo_lag", world, policy_stages, *OPTIONS, *extra, save, small, steps=2)
    assert execute({"args": args, "devices": 2, "gather": True, "out": str(tmp_path / "rank")}) == [0]
    first, second = (load(tmp_path / f"rank-{rank}") for rank in (0, 1))
    assert same(first["weights"], second["weights"])
    assert first["texts"] != second["texts"]
    kept = first["weights"]["dual.window_valid"].sum()
    assert int(kept) == 2 * 2 * 2 * 2  # ranks x steps x prompts x samples: costs of both ranks move lambda
