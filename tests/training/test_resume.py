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

from safe_rlhf_v.shards import ShardWriter
from safe_rlhf_v.training.checkpoints import find_checkpoint

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
TRAIN, STEPS_PER_EPOCH, EPOCHS = 11, 5, 3
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {  # killed after this step, checkpoint every so many, options
    "middle": (9, 4, {}),  # inside the second epoch; the step after the checkpoint is lost and repeated
    "border": (11, 5, {"workers": 2}),  # the checkpoint lies on an epoch border
    "estimate": (8, 7, {"estimate": True}),  # reading the number of steps makes the loader early
}


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


def run(root: Path, *runs: dict[str, Any]) -> list[int]:
    options = [{"root": str(root), "epochs": EPOCHS, **each} for each in runs]
    command = [sys.executable, str(HERE / "tiny_run.py"), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    ends: list[int] = json.loads(done.stdout.splitlines()[-1])
    assert 1 not in ends, done.stderr[-3000:]
    return ends


def keys(*outs: Path) -> list[list[str]]:
    return [json.loads(line) for out in outs for line in (out / "train-0.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def outs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the whole run and of every case's killed and resumed run."""
    outs = tmp_path_factory.mktemp("runs")
    runs: list[dict[str, Any]] = [{"out": str(outs / "whole")}]
    for name, (kill_at, every, options) in CASES.items():
        killed = str(outs / f"{name}-killed")
        runs.append({"out": killed, "kill_at": kill_at, "every": every, **options})
        runs.append({"out": str(outs / f"{name}-resumed"), "resume": killed, **options})
    assert run(root, *runs) == [0] + [-signal.SIGKILL, 0] * len(CASES)
    assert len(keys(outs / "whole")) == STEPS_PER_EPOCH * EPOCHS
    return outs


def same(first: Path, second: Path) -> bool:
    a, b = (torch.load(out / "final.pt", weights_only=True) for out in (first, second))
    assert a["step"] == b["step"]
    return all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_equals_uninterrupted(outs: Path, name: str) -> None:
    killed, resumed = outs / f"{name}-killed", outs / f"{name}-resumed"
    kill_at, every, _ = CASES[name]
    saved = find_checkpoint(killed)
    step = (kill_at - 1) // every * every
    assert saved.name == f"step={step}.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == step
    assert keys(killed)[:step] + keys(resumed) == keys(outs / "whole")
    assert len((resumed / "validation-0.jsonl").read_text().splitlines()) == 2 * (EPOCHS - step // STEPS_PER_EPOCH)
    assert same(outs / "whole", resumed)


def test_with_other_random_states_the_weights_would_differ(root: Path, outs: Path, tmp_path: Path) -> None:
    """The comparison above can fail: the same resume with the random states of another step ends elsewhere."""
    checkpoint, other = (torch.load(outs / "whole" / f"step={step}.ckpt", weights_only=True) for step in (7, 6))
    torch.save({**checkpoint, "random_states": other["random_states"]}, tmp_path / "swapped.ckpt")
    assert run(root, {"out": str(tmp_path / "out"), "resume": str(tmp_path / "swapped.ckpt")}) == [0]
    assert keys(tmp_path / "out") == keys(outs / "whole")[7:]
    assert not same(outs / "whole", tmp_path / "out")
