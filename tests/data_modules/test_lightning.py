"""Two real processes under the real trainer see disjoint training data and each validation sample once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RUN = Path(__file__).parents[1] / "tiny_run.py"


def seen(out: Path, kind: str, rank: int) -> list[list[str]]:
    return [json.loads(line) for line in (out / f"{kind}-{rank}.jsonl").read_text().splitlines()]


def test_two_processes(folder: Callable[..., Path], tmp_path: Path) -> None:
    root, out = folder(train=13, validation=5), tmp_path / "out"
    options = {"root": str(root), "out": str(out), "epochs": 2, "devices": 2, "every": 3, "workers": 1}
    run = subprocess.run([sys.executable, str(RUN), json.dumps([options])], capture_output=True, text=True, timeout=240)
    assert json.loads(run.stdout.splitlines()[-1]) == [0], run.stderr[-3000:]
    train = [seen(out, "train", rank) for rank in (0, 1)]
    assert [len(steps) for steps in train] == [6, 6]  # 13 samples, global batches of 4, two epochs
    epochs = [[key for steps in train for rows in steps[first : first + 3] for key in rows] for first in (0, 3)]
    assert [len(set(keys)) for keys in epochs] == [12, 12]
    assert epochs[0] != epochs[1]
    for epoch in (0, 1):
        rows = [seen(out, "validation", rank)[2 * epoch : 2 * epoch + 2] for rank in (0, 1)]
        assert [len(steps) for steps in rows] == [2, 2]
        assert sorted(sum(rows[0] + rows[1], [])) == [f"validation-{i:04d}" for i in range(5)]
