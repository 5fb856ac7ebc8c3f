"""A run killed by SIGKILL and resumed ends with the weights of the run that was left alone, bit for bit."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from safe_rlhf_v.checkpoints import find_checkpoint
from safe_rlhf_v.shards import ShardWriter

HERE = Path(__file__).parent
TRAIN, STEPS_PER_EPOCH, EPOCHS = 11, 5, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("tiny_shards", HERE / "data_modules" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    shards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shards)
    root = tmp_path_factory.mktemp("resume") / "data"
    with ShardWriter(root, name="tiny", licence="CC0-1.0", taxonomy=shards.TAXONOMY, samples_per_shard=4) as writer:
        for split, size in (("train", TRAIN), ("validation", 3)):
            for number in range(size):
                writer.write(split, shards.record(split, number))
    return root


def run(root: Path, out: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"root": str(root), "out": str(out), "epochs": EPOCHS, **options}
    command = [sys.executable, str(HERE / "tiny_run.py"), json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def keys(*outs: Path) -> list[list[str]]:
    return [json.loads(line) for out in outs for line in (out / "train-0.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    done = run(root, out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(keys(out)) == STEPS_PER_EPOCH * EPOCHS
    return out


def same(first: Path, second: Path) -> bool:
    a, b = (torch.load(out / "final.pt", weights_only=True) for out in (first, second))
    assert a["step"] == b["step"]
    return all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])


@pytest.mark.parametrize(
    ("kill_at", "every", "options"),
    [
        (9, 4, {}),  # inside the second epoch; the step after the checkpoint is lost and repeated
        (11, 5, {"workers": 2}),  # the checkpoint lies on an epoch border
        (8, 7, {"estimate": True}),  # reading the number of steps makes the loader early
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    root: Path, whole: Path, tmp_path: Path, kill_at: int, every: int, options: dict[str, Any]
) -> None:
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    dead = run(root, killed, kill_at=kill_at, every=every, **options)
    assert dead.returncode == -signal.SIGKILL, dead.stderr[-3000:]
    saved = find_checkpoint(killed)
    step = kill_at // every * every
    if kill_at % every == 0:
        step -= every
    assert saved.name == f"step={step}.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == step
    done = run(root, resumed, resume=str(saved), **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert keys(killed)[:step] + keys(resumed) == keys(whole)
    assert len((resumed / "validation-0.jsonl").read_text().splitlines()) == 2 * (EPOCHS - step // STEPS_PER_EPOCH)
    assert same(whole, resumed)


def test_without_the_random_states_the_weights_would_differ(root: Path, whole: Path, tmp_path: Path) -> None:
    """The comparison above can fail: the same resume with the random states cut out ends elsewhere."""
    checkpoint = torch.load(whole / "step=7.ckpt", weights_only=True)
    del checkpoint["random"]
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    done = run(root, tmp_path / "out", resume=str(tmp_path / "cut.ckpt"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert keys(tmp_path / "out") == keys(whole)[7:]
    assert not same(whole, tmp_path / "out")
