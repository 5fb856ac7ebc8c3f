"""The rows that count reach a measure: no padding, no unknown label, whatever the batches and ranks."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from safe_rlhf_v.functional.shares import Share
from safe_rlhf_v.metrics import (
    Collected,
    GroundingGap,
    LossMean,
    PairwiseAccuracy,
    count,
    level_values,
    mean,
    score_values,
)
from safe_rlhf_v.modules.cost import sign_values
from safe_rlhf_v.modules.guard import guard_values, prompt_values

N, K = 61, 7
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def pick(low, high, *shape):
    return torch.randint(low, high, shape, generator=GENERATOR)


# Scores in and out of 0..1, large and equal ones; unknown labels; rows that do not count, all of them at the start.
SCORES, OTHER = 40 * draw(N, 2).round(decimals=2), draw(N, 2)
SCORES[::5] = torch.rand(len(SCORES[::5]), 2, generator=GENERATOR)
VALID = torch.rand(N, generator=GENERATOR) < 0.8
VALID[:4] = False
TARGET, HARMFUL, LEVELS = pick(-1, 2, N), pick(-1, 2, N, 2), pick(-1, K, N)
LOG_PROBS = torch.log_softmax(3 * draw(N, K), -1)

CASES = {
    "pairs": (PairwiseAccuracy, (SCORES, TARGET, VALID)),
    "gap": (GroundingGap, (SCORES, OTHER, TARGET, VALID)),
    "scores": (lambda: Collected(score_values), (SCORES, HARMFUL, VALID)),
    "signs": (lambda: Collected(sign_values), (SCORES, HARMFUL, VALID)),
    "prompts": (lambda: Collected(prompt_values), (SCORES[:, 0], TARGET, VALID)),
    "levels": (lambda: Collected(level_values, K), (LOG_PROBS, LEVELS, VALID)),
    "guard": (lambda: Collected(guard_values, K), (LOG_PROBS, LEVELS, VALID)),
    "mean": (lambda: Collected(mean), (SCORES, HARMFUL, VALID)),
    "count": (lambda: Collected(count), (SCORES, HARMFUL, VALID)),
}


def numbers(value):
    """Values by name; nothing where there is no value."""
    if value is None:
        return {}
    return {name: float(x) for name, x in (value if isinstance(value, dict) else {"": value}).items()}


def measured(make, columns, sizes):
    metric, start = make(), 0
    for size in sizes:
        metric.update(*(column[start : start + size] for column in columns))
        start += size
    assert start >= N
    return numbers(metric.compute())


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_that_of_one_batch(name):
    make, columns = CASES[name]
    whole = measured(make, columns, [N])
    assert whole and all(math.isfinite(value) for value in whole.values())
    for sizes in ([1] * N, [7] * (N // 7 + 1), [3, 30, 1, 27], [N, 0, 0]):
        assert measured(make, columns, sizes) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_what_does_not_count_changes_nothing_and_nothing_has_no_value(name):
    make, columns = CASES[name]
    *stated, label, valid = columns
    junk = [x.masked_fill(~valid.view(-1, *[1] * (x.dim() - 1)), torch.nan) for x in stated]
    whole = measured(make, columns, [N])
    assert measured(make, (*junk, label, valid), [N]) == pytest.approx(whole)
    keep = valid if label.dim() > 1 else valid & (label >= 0)
    assert measured(make, tuple(x[keep] for x in columns), [N]) == pytest.approx(whole, rel=1e-6)
    assert make().compute() is None
    for empty in ((*stated, label, torch.zeros_like(valid)), (*stated, torch.full_like(label, -1), valid)):
        assert measured(make, empty, [N]) == {}
    metric = make()
    metric.update(*columns)
    metric.reset()
    metric.update(*columns)
    assert numbers(metric.compute()) == whole


@pytest.mark.parametrize("name", sorted(set(CASES) - {"pairs", "gap", "count"}))
def test_a_statement_of_nan_is_not_hidden(name):
    make, (stated, label, valid) = CASES[name]
    row = int((valid & (label if label.dim() == 1 else label[:, 0]).ge(0)).nonzero()[0])
    stated = stated.clone()
    stated[row] = torch.nan
    values = measured(make, (stated, label, valid), [N])
    assert set(values) == set(measured(make, CASES[name][1], [N])) and all(math.isnan(v) for v in values.values())


def test_a_loss_without_labels_has_no_value():
    metric = LossMean({"pair": 1.0, "sign": 0.5})
    nothing = Share(torch.tensor(0.0), torch.tensor(0.0))
    metric.update({"pair": nothing, "sign": nothing})
    assert metric.compute() is None
    metric.update({"pair": nothing, "sign": Share(torch.tensor(6.0), torch.tensor(3.0))})
    assert float(metric.compute()) == 1.0


SPLITS = [(slice(0, 50), slice(50, N)), (slice(0, N), slice(N, N)), (slice(0, N), None)]


def work(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = []
    for make, columns in CASES.values():
        for split in SPLITS:
            metric, rows = make(), split[rank]
            if rows is not None:  # None: this rank never saw a batch
                metric.update(*(column[rows] for column in columns))
            found.append(numbers(metric.compute()))
    torch.save(found, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_equal_one_process(tmp_path):
    """Ranks with unequal rows, one of them none at all; means of means would differ."""
    start_processes(work, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="fork")
    for rank in (0, 1):
        found = iter(torch.load(tmp_path / f"{rank}.pt"))
        for name, (make, columns) in CASES.items():
            for _ in SPLITS:
                assert next(found) == pytest.approx(measured(make, columns, [N]), rel=1e-6), name
