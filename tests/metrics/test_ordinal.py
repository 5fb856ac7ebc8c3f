"""Metrics of the guard against plain-Python references, at their limits, and over several batches and ranks."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from safe_rlhf_v.metrics import harm, ordinal
from safe_rlhf_v.metrics.harm_table import HarmTable

K, BOUNDARY, N = 4, 2, 60
GENERATOR = torch.Generator().manual_seed(0)
LOG_PROBS = torch.log_softmax(2 * torch.randn(N, K, generator=GENERATOR), -1)
LEVELS = torch.multinomial(LOG_PROBS.exp(), 1, generator=GENERATOR).squeeze(1)
LEVELS[::7] = -1
VALID = torch.rand(N, generator=GENERATOR) < 0.8
ROWS = [
    (p.exp().tolist(), y)
    for p, y, v in zip(LOG_PROBS.double(), LEVELS.tolist(), VALID.tolist(), strict=True)
    if v and y >= 0
]


def mode(p):
    return max(range(K), key=p.__getitem__)


def median(p):
    return next(k for k in range(K) if sum(p[: k + 1]) >= 0.5 or k == K - 1)


def mean(values):
    return sum(values) / len(values)


def macro_mae():
    return mean(
        [mean([abs(median(p) - y) for p, y in ROWS if y == k]) for k in range(K) if any(y == k for _, y in ROWS)]
    )


def kappa():
    pairs = [(y, median(p)) for p, y in ROWS]
    seen = mean([(a - b) ** 2 for a, b in pairs])
    chance = mean([(a - b) ** 2 for a, _ in pairs for _, b in pairs])
    return 1 - seen / chance


def rps():
    return mean([mean([(sum(p[: k + 1]) - (y <= k)) ** 2 for k in range(K - 1)]) for p, y in ROWS])


def ece(pairs, bins):
    total = 0.0
    for b in range(bins):
        inside = [(p, o) for p, o in pairs if min(int(p * bins), bins - 1) == b]
        total += abs(sum(p for p, _ in inside) - sum(o for _, o in inside))
    return total / len(pairs)


def p_harm(p):
    return sum(p[:BOUNDARY])


def auroc():
    pos = [p_harm(p) for p, y in ROWS if y < BOUNDARY]
    neg = [p_harm(p) for p, y in ROWS if y >= BOUNDARY]
    return mean([(a > b) + 0.5 * (a == b) for a in pos for b in neg])


def average_precision():
    total, found, last = 0.0, 0, 0.0
    positives = sum(y < BOUNDARY for _, y in ROWS)
    for n, (_, y) in enumerate(sorted(ROWS, key=lambda row: -p_harm(row[0])), start=1):
        found += y < BOUNDARY
        total += (found / positives - last) * found / n
        last = found / positives
    return total


def fpr_at(recall):
    best = math.inf
    for t in sorted({p_harm(p) for p, _ in ROWS}):
        hit = mean([p_harm(p) >= t for p, y in ROWS if y < BOUNDARY])
        if hit >= recall:
            best = min(best, mean([p_harm(p) >= t for p, y in ROWS if y >= BOUNDARY]))
    return best


def recall_at(fpr):
    best = 0.0
    for t in [*sorted({p_harm(p) for p, _ in ROWS}), 2.0]:
        if mean([p_harm(p) >= t for p, y in ROWS if y >= BOUNDARY]) <= fpr:
            best = max(best, mean([p_harm(p) >= t for p, y in ROWS if y < BOUNDARY]))
    return best


CASES = {
    "accuracy": (lambda: ordinal.LevelAccuracy(K), lambda: mean([mode(p) == y for p, y in ROWS])),
    "within one": (lambda: ordinal.WithinOneAccuracy(K), lambda: mean([abs(mode(p) - y) <= 1 for p, y in ROWS])),
    "macro mae": (lambda: ordinal.MacroMAE(K), macro_mae),
    "kappa": (lambda: ordinal.QuadraticKappa(K), kappa),
    "rps": (lambda: ordinal.RankedProbabilityScore(K), rps),
    "exceedance": (
        lambda: ordinal.ExceedanceCalibrationError(K, bins=5),
        lambda: mean([ece([(sum(p[k + 1 :]), y > k) for p, y in ROWS], 5) for k in range(K - 1)]),
    ),
    "harm accuracy": (
        lambda: harm.HarmAccuracy(BOUNDARY, 0.4),
        lambda: mean([(p_harm(p) >= 0.4) == (y < BOUNDARY) for p, y in ROWS]),
    ),
    "balanced": (
        lambda: harm.BalancedHarmAccuracy(BOUNDARY),
        lambda: mean([
            mean([(p_harm(p) >= 0.5) == kind for p, y in ROWS if (y < BOUNDARY) == kind]) for kind in (True, False)
        ]),
    ),
    "harm ece": (
        lambda: harm.HarmCalibrationError(BOUNDARY, bins=6),
        lambda: ece([(p_harm(p), y < BOUNDARY) for p, y in ROWS], 6),
    ),
    "auroc": (lambda: harm.LevelHarmAUROC(BOUNDARY), auroc),
    "auprc": (lambda: harm.LevelHarmAUPRC(BOUNDARY), average_precision),
    "fpr at 0.9": (lambda: harm.FPRAtRecall(BOUNDARY, 0.9), lambda: fpr_at(0.9)),
    "fpr at 1": (lambda: harm.FPRAtRecall(BOUNDARY, 1.0), lambda: fpr_at(1.0)),
    "recall at 0.2": (lambda: harm.RecallAtFPR(BOUNDARY, 0.2), lambda: recall_at(0.2)),
    "recall at 0": (lambda: harm.RecallAtFPR(BOUNDARY, 0.0), lambda: recall_at(0.0)),
    "recall at 1": (lambda: harm.RecallAtFPR(BOUNDARY, 1.0), lambda: 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_a_plain_reference_in_uneven_batches(name):
    make, reference = CASES[name]
    metric = make()
    for rows in (slice(0, 1), slice(1, 40), slice(40, N)):
        metric.update(LOG_PROBS[rows], LEVELS[rows], VALID[rows])
    assert float(metric.compute()) == pytest.approx(reference(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_nan(name):
    metric = CASES[name][0]()
    assert math.isnan(float(metric.compute()))
    metric.update(LOG_PROBS, torch.full((N,), -1), VALID)
    assert math.isnan(float(metric.compute()))


def test_limits():
    certain = torch.full((4, K), -1e4).fill_diagonal_(0.0)
    every = torch.arange(4)
    valid = torch.ones(4, dtype=torch.bool)
    best = {"accuracy": 1, "within one": 1, "macro mae": 0, "kappa": 1, "rps": 0, "exceedance": 0, "harm accuracy": 1,
            "balanced": 1, "harm ece": 0, "auroc": 1, "auprc": 1, "fpr at 0.9": 0, "fpr at 1": 0, "recall at 0": 1}  # fmt: skip
    worst = {"accuracy": 0, "kappa": -1, "rps": 2 / 3, "harm accuracy": 0, "auroc": 0, "fpr at 1": 1}
    for name, value in best.items():
        metric = CASES[name][0]()
        metric.update(certain, every, valid)
        assert float(metric.compute()) == pytest.approx(value), name
    for name, value in worst.items():
        metric = CASES[name][0]()
        metric.update(certain, 3 - every, valid)
        assert float(metric.compute()) == pytest.approx(value), name
    constant = ordinal.QuadraticKappa(K)
    constant.update(certain[:1], every[:1], valid[:1])
    assert math.isnan(float(constant.compute()))
    counts = ordinal.LevelConfusion(K)
    counts.update(certain, 3 - every, valid)
    assert torch.equal(counts.compute(), torch.eye(4, dtype=torch.int64).flip(0))


GROUP = torch.arange(N) % 3 - 1  # none, first, second
NAMES = ("first", "second", "empty")


def table_by_hand(group):
    rows = [
        (p.exp().tolist(), y)
        for p, y, v, g in zip(LOG_PROBS.double(), LEVELS.tolist(), VALID.tolist(), GROUP.tolist(), strict=True)
        if v and y >= 0 and g == group
    ]
    bad = [p_harm(p) >= 0.4 for p, y in rows if y < BOUNDARY]
    good = [p_harm(p) >= 0.4 for p, y in rows if y >= BOUNDARY]
    side = mean([(p_harm(p) >= 0.5) == (y < BOUNDARY) for p, y in rows])
    return [len(rows), len(bad), mean([mode(p) == y for p, y in rows]), side, mean(bad), mean(good)]


def flat(table):
    return [float(value) for name in ("first", "second") for value in table.compute()[name].values()]


def test_the_table_by_group():
    table = HarmTable(NAMES, BOUNDARY, 0.4)
    for rows in (slice(0, 1), slice(1, 40), slice(40, N)):
        table.update(LOG_PROBS[rows], LEVELS[rows], VALID[rows], GROUP[rows])
    assert flat(table) == pytest.approx([*table_by_hand(0), *table_by_hand(1)])
    empty = table.compute()["empty"]
    assert (float(empty["responses"]), float(empty["harmful"])) == (0, 0)
    assert all(math.isnan(float(empty[name])) for name in ("level_accuracy", "harm_accuracy", "recall", "fpr"))
    with pytest.raises(ValueError, match="each name once"):
        HarmTable(("a", "a"), BOUNDARY)


SPLITS = [(slice(0, 50), slice(50, N)), (slice(0, N), None)]


def work(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    out = []
    for make, _ in CASES.values():
        for split in SPLITS:
            metric, rows = make(), split[rank]
            if rows is not None:  # None: this rank never saw a batch
                metric.update(LOG_PROBS[rows], LEVELS[rows], VALID[rows])
            out.append(float(metric.compute()))
    table = HarmTable(NAMES, BOUNDARY, 0.4)
    table.update(*(part[SPLITS[0][rank]] for part in (LOG_PROBS, LEVELS, VALID, GROUP)))
    out += flat(table)
    torch.save(out, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_equal_one_process(tmp_path):
    start_processes(work, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="fork")
    expected = [reference() for _, reference in CASES.values() for _ in SPLITS]
    expected += [*table_by_hand(0), *table_by_hand(1)]
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-5, abs=1e-6)
