"""Two ranks with unequal row counts give what one process gives (mean of means would not)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from torchmetrics import Metric

from safe_rlhf_v.metrics import (
    BalancedSignAccuracy,
    CalibrationError,
    CounterfactualAccuracy,
    GroundingGap,
    GroupedAccuracy,
    HarmAUROC,
    PairwiseAccuracy,
    SignAccuracy,
)

ROWS = 7
GENERATOR = torch.Generator().manual_seed(0)
SCORES, OTHER = torch.randn(2, ROWS, 2, generator=GENERATOR)
TARGET = torch.tensor([0, 1, 1, -1, 0, 0, 1])
IS_SAFE = torch.tensor([[0, 1], [1, 1], [0, 0], [1, -1], [0, 1], [1, 0], [1, 1]])
VALID = torch.tensor([True] * 6 + [False])
CORRECT, GROUP = torch.tensor([True, False, True, True, False, True, True]), torch.tensor([0, 1, 1, 0, -1, 1, 0])
RULES = [("x", "y"), ("x", "x"), ("", "y"), ("y", "y"), ("x", ""), ("", ""), ("x", "y")]

Feed = Callable[[Any, slice], None]
CASES: dict[str, tuple[Callable[[], Metric], Feed]] = {
    "pairs": (PairwiseAccuracy, lambda m, r: m.update(SCORES[r], TARGET[r], VALID[r])),
    "gap": (GroundingGap, lambda m, r: m.update(SCORES[r], OTHER[r], TARGET[r], VALID[r])),
    "sign": (SignAccuracy, lambda m, r: m.update(SCORES[r], IS_SAFE[r], VALID[r])),
    "balanced": (BalancedSignAccuracy, lambda m, r: m.update(SCORES[r], IS_SAFE[r], VALID[r])),
    "auroc": (HarmAUROC, lambda m, r: m.update(SCORES[r], IS_SAFE[r], VALID[r])),
    "calibration": (CalibrationError, lambda m, r: m.update(SCORES[r], IS_SAFE[r], VALID[r])),
    "groups": (lambda: GroupedAccuracy(("a", "b")), lambda m, r: m.update(CORRECT[r], GROUP[r], VALID[r])),
    "rules": (lambda: CounterfactualAccuracy(("x", "y")), lambda m, r: m.update(CORRECT[r], RULES[r], VALID[r])),
}
SPLITS = [(slice(0, 5), slice(5, 7)), (slice(0, 7), slice(7, 7)), (slice(0, 7), None)]


def flat(metric: Metric) -> list[float]:
    value = metric.compute()
    return [float(v) for v in value.values()] if isinstance(value, dict) else [float(value)]


def work(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    out = []
    for make, feed in CASES.values():
        for split in SPLITS:
            metric, rows = make(), split[rank]
            if rows is not None:  # None: this rank never saw a batch
                feed(metric, rows)
            out.append(flat(metric))
    torch.save(out, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    expected = []
    for make, feed in CASES.values():
        metric = make()
        feed(metric, slice(0, ROWS))
        expected += [flat(metric)] * len(SPLITS)
    start_processes(work, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="fork")
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt")
        for name, a, b in zip([n for n in CASES for _ in SPLITS], got, expected, strict=True):
            assert a == pytest.approx(b, rel=1e-6), name
