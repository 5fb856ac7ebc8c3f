"""Several ranks with one adapter: the first one hands it to the engine, and none waits for a rank that failed."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from safe_rlhf_v.engine.adapters import ServedAdapter


class Broken(ServedAdapter):
    """Fails to write, as with a full disk, if it is told to."""

    error: Exception | None = None

    def _change(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error
        (self.folder / f"changed-by-{torch.distributed.get_rank()}").touch()


def rank(number: int, folder: Path, error: Exception | None, results: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=2)
    adapter = Broken(folder)
    adapter.error = error
    try:
        adapter._change_once("name", None, {}, None)  # type: ignore[arg-type]  # the stand-in reads neither
        results.put((number, "done"))
    except ValueError as problem:
        results.put((number, str(problem)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "done"), (ValueError("no such route"), "no such route"), (OSError(28, "full"), "[Errno 28] full"), (OSError(), "OSError")],
    ids=["fine", "refused", "full disk", "without words"],
)  # fmt: skip
def test_all_ranks_end_alike(tmp_path: Path, error: Exception | None, outcome: str) -> None:
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    processes = [context.Process(target=rank, args=(i, tmp_path, error, results)) for i in range(2)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=60) for _ in processes) == [(0, outcome), (1, outcome)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "changed-by-0").exists() is (error is None) and not (tmp_path / "changed-by-1").exists()
