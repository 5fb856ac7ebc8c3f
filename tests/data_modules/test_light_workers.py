"""Data workers start fast and small: a spawned one imports no model and no trainer library."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing
import sys
from safe_rlhf_v.data_modules.collate import CollateSupervised
from safe_rlhf_v.data_modules.loader import PlannedLoader
from safe_rlhf_v.data_modules.plan import Plan
from safe_rlhf_v.data_modules.source import Source
from safe_rlhf_v.shards import ShardedSplit

def spy(samples):
    heavy = ("open_clip", "transformers", "lightning", "torchmetrics", "webdataset", "peft", "jsonargparse", "safe_rlhf_v.models")
    return CollateSupervised("helpful")(samples)._replace(keys=(multiprocessing.get_start_method(), *(name for name in heavy if name in sys.modules)))

if __name__ == "__main__":
    source = Source(ShardedSplit(sys.argv[1], "train"), range(4), spy)
    for batch in PlannedLoader(source, Plan(4, 2), workers=1, start_method="spawn"):
        print("in the worker:", batch.keys)
    print("here:", [name for name in ("open_clip", "transformers", "lightning", "webdataset") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_spawned_worker_is_light(folder: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = folder(train=4)
    run = subprocess.run([sys.executable, str(script), str(root)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["in the worker: ('spawn',)", "in the worker: ('spawn',)", "here: []"]
