"""Metrics of levels against plain-Python references, and at their limits."""

import pytest
import torch

from safe_rlhf_v.metrics import level_values

K, N = 4, 60
GENERATOR = torch.Generator().manual_seed(0)
LOG_PROBS = torch.log_softmax(2 * torch.randn(N, K, generator=GENERATOR), -1)
LEVELS = torch.multinomial(LOG_PROBS.exp(), 1, generator=GENERATOR).squeeze(1)
ROWS = [(p.exp().tolist(), y) for p, y in zip(LOG_PROBS.double(), LEVELS.tolist(), strict=True)]


def mode(p):
    return max(range(K), key=p.__getitem__)


def median(p):
    return next(k for k in range(K) if sum(p[: k + 1]) >= 0.5 or k == K - 1)


def mean(values):
    return sum(values) / len(values)


def kappa(rows):
    pairs = [(y, median(p)) for p, y in rows]
    seen = mean([(a - b) ** 2 for a, b in pairs])
    return 1 - seen / mean([(a - b) ** 2 for a, _ in pairs for _, b in pairs])


def ece(pairs, bins):
    total = 0.0
    for b in range(bins):
        inside = [(p, o) for p, o in pairs if min(int(p * bins), bins - 1) == b]
        total += abs(sum(p for p, _ in inside) - sum(o for _, o in inside))
    return total / len(pairs)


def references(rows):
    levels = {y for _, y in rows}
    return {
        "level_accuracy": mean([mode(p) == y for p, y in rows]),
        "within_one": mean([abs(mode(p) - y) <= 1 for p, y in rows]),
        "macro_mae": mean([mean([abs(median(p) - y) for p, y in rows if y == k]) for k in levels]),
        "quadratic_kappa": kappa(rows),
        "ranked_probability_score": mean([
            mean([(sum(p[: k + 1]) - (y <= k)) ** 2 for k in range(K - 1)]) for p, y in rows
        ]),
        "exceedance_calibration_error": mean([
            ece([(sum(p[k + 1 :]), y > k) for p, y in rows], 10) for k in range(K - 1)
        ]),
    }  # fmt: skip


def found(log_probs, levels):
    return {name: float(value) for name, value in level_values(log_probs, levels).items()}


def test_against_plain_references():
    assert found(LOG_PROBS.double(), LEVELS) == pytest.approx(references(ROWS), rel=1e-5, abs=1e-6)


def test_levels_that_do_not_occur_do_not_count():
    keep = LEVELS != 2
    rows = [row for row, kept in zip(ROWS, keep.tolist(), strict=True) if kept]
    assert found(LOG_PROBS[keep].double(), LEVELS[keep]) == pytest.approx(references(rows), rel=1e-5, abs=1e-6)


def test_limits():
    certain = torch.full((4, K), -1e4).fill_diagonal_(0.0)
    every = torch.arange(4)
    best = {"level_accuracy": 1, "within_one": 1, "macro_mae": 0, "quadratic_kappa": 1}
    best |= {"ranked_probability_score": 0, "exceedance_calibration_error": 0}
    assert found(certain, every) == pytest.approx(best)
    worst = found(certain, 3 - every)
    assert (worst["level_accuracy"], worst["quadratic_kappa"]) == pytest.approx((0, -1))
    assert worst["ranked_probability_score"] == pytest.approx(2 / 3)


def test_kappa_needs_two_levels():
    """Where all rows and all decisions are of one level there is no agreement beyond chance to speak of."""
    certain = torch.full((2, K), -1e4)
    certain[:, 1] = 0.0
    assert "quadratic_kappa" not in found(certain, torch.tensor([1, 1]))
    assert found(certain, torch.tensor([1, 2]))["quadratic_kappa"] == 0.0  # one decision only: no better than chance
