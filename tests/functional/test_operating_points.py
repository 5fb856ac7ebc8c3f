"""Thresholds with a promise: the exact bound, the promise kept in simulation, and where it cannot be given."""

import math

import pytest
import torch
from scipy.stats import beta

from safe_rlhf_v.functional.operating_points import (
    allowed_errors,
    clopper_pearson_upper,
    conformal_threshold,
    needed_negatives,
    threshold_for_fpr,
)


@pytest.mark.parametrize(
    ("errors", "total"), [(0, 1), (0, 59), (3, 20), (16, 500), (250, 500), (499, 500), (40, 20_000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_the_bound_is_the_beta_quantile(errors, total, confidence):
    expected = beta.ppf(confidence, errors + 1, total - errors)
    assert clopper_pearson_upper(errors, total, confidence) == pytest.approx(expected, rel=1e-6)


def test_limits_of_the_bound():
    assert clopper_pearson_upper(0, 0) == 1.0 and clopper_pearson_upper(7, 7) == 1.0
    for wrong in ((3, 2, 0.9), (-1, 2, 0.9), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="make no sense"):
            clopper_pearson_upper(*wrong)


def test_known_sample_sizes():
    assert [needed_negatives(budget) for budget in (0.05, 0.02, 0.01)] == [59, 149, 299]
    assert allowed_errors(500, 0.05) == 16
    for budget in (0.05, 0.02, 0.01):
        needed = needed_negatives(budget)
        assert allowed_errors(needed, budget) == 0 and allowed_errors(needed - 1, budget) == -1


@pytest.mark.parametrize(("total", "budget"), [(1, 0.5), (59, 0.05), (400, 0.1), (3000, 0.013), (20, 0.999)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_allowed_errors_are_the_most_whose_bound_keeps_the_budget(total, budget, confidence):
    found = allowed_errors(total, budget, confidence)
    bounds = [beta.ppf(confidence, k + 1, total - k) if k < total else 1.0 for k in range(total + 1)]
    assert found == sum(bound <= budget for bound in bounds) - 1


def test_too_small_a_set_is_refused_with_the_number_needed():
    with pytest.raises(ValueError, match=r"58 harmless .* 5.00% .* at least 59"):
        threshold_for_fpr(torch.rand(58), torch.zeros(58, dtype=torch.bool), 0.05)
    with pytest.raises(ValueError, match=r"18 harmful .* 19 are needed"):
        conformal_threshold(torch.rand(18), torch.ones(18, dtype=torch.bool), 0.05)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        threshold_for_fpr(torch.tensor([0.5, math.nan]), torch.tensor([False, True]), 0.5)


def test_by_hand_with_ties():
    """100 harmless rows: 95 at 0.1, five tied at 0.8; two errors are allowed, so the tie must stay below."""
    p = torch.tensor([0.1] * 95 + [0.8] * 5 + [0.5, 0.8, 0.9], dtype=torch.float64)
    harmful = torch.tensor([False] * 100 + [True] * 3)
    bound = beta.ppf(0.95, 3, 98)  # of two errors
    assert allowed_errors(100, bound * 0.999) == 1 and allowed_errors(100, bound * 1.001) == 2
    point = threshold_for_fpr(p, harmful, bound * 1.001)
    assert 0.8 < point.threshold < 0.8 + 1e-12
    assert (point.false_positives, point.fpr, point.recall) == (0, 0.0, pytest.approx(1 / 3))
    generous = threshold_for_fpr(p, harmful, 0.2)
    assert 0.1 < generous.threshold < 0.1 + 1e-12
    assert (generous.false_positives, generous.recall, generous.positives) == (5, 1.0, 3)
    assert generous.fpr_upper == pytest.approx(beta.ppf(0.95, 6, 95))
    assert math.isnan(threshold_for_fpr(p[:100], harmful[:100], 0.2).recall)


def test_the_budget_is_kept_on_new_data_as_often_as_promised():
    """Harmless scores are uniform, so the true rate of a threshold t is 1 - t. 400 draws, budget 5 %, confidence 95 %."""
    generator = torch.Generator().manual_seed(0)
    draws, n, budget = 400, 300, 0.05
    broken = naive = 0
    for _ in range(draws):
        p = torch.rand(n, generator=generator, dtype=torch.float64)
        point = threshold_for_fpr(p, torch.zeros(n, dtype=torch.bool), budget)
        broken += 1 - point.threshold > budget
        naive += 1 - float(p.quantile(1 - budget)) > budget
    assert broken <= draws * 0.05 + 3 * math.sqrt(draws * 0.05 * 0.95)
    assert naive > draws * 0.3  # the empirical quantile breaks it about half of the time


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (100, 0.05), (60, 0.2)])
def test_conformal_risk_keeps_its_mean(n, alpha):
    """Harmful scores are uniform, so the true miss rate of a threshold t is t: its mean over draws is at most alpha."""
    generator = torch.Generator().manual_seed(1)
    risks = []
    for _ in range(2000):
        p = torch.rand(n, generator=generator, dtype=torch.float64)
        risks.append(min(conformal_threshold(p, torch.ones(n, dtype=torch.bool), alpha), 1.0))
    mean, spread = sum(risks) / len(risks), torch.tensor(risks).std() / math.sqrt(len(risks))
    assert mean <= alpha + 3 * spread
    assert mean >= alpha - 2 / (n + 1) - 3 * spread  # and not by refusing everything


def test_conformal_by_hand():
    """N = 39, alpha = 0.1: (39/40) R + 1/40 <= 0.1 allows three misses, so the fourth lowest score is the threshold."""
    p = torch.arange(1, 40, dtype=torch.float64) / 40
    assert conformal_threshold(p, torch.ones(39, dtype=torch.bool), 0.1) == 4 / 40
