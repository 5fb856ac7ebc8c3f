"""Thresholds that bound false alarms: the exact bound, the bound kept in simulation, and where it cannot be given."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm

from safe_rlhf_v.functional.intervals import clopper_pearson_upper
from safe_rlhf_v.functional.operating_points import (
    allowed_errors,
    conformal_threshold,
    exact_rate,
    needed_negatives,
    one_per_cluster,
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


def test_shares_carry_both_bounds():
    none = exact_rate(torch.zeros(300, dtype=torch.bool))
    assert none[:2] == (0.0, 0.0) and none.upper == pytest.approx(1 - 0.05 ** (1 / 300)) and none[3:] == (0, 300)
    every = exact_rate(torch.ones(59, dtype=torch.bool))
    assert every.value == every.upper == 1.0 and every.lower == pytest.approx(0.05 ** (1 / 59)) and every.lower > 0.95
    some = exact_rate(torch.arange(500) < 16, 0.9)
    assert some.lower == pytest.approx(beta.ppf(0.1, 16, 485)) and some.upper == pytest.approx(beta.ppf(0.9, 17, 484))
    nothing = exact_rate(torch.zeros(0, dtype=torch.bool))
    assert math.isnan(nothing.value) and nothing[1:] == (0.0, 1.0, 0, 0)


def test_one_row_of_each_cluster_and_all_rows_equally_likely():
    clusters = ["a", "b", "a", "c", "a", "b"]
    counts = np.zeros(6)
    for seed in range(3000):
        rows = one_per_cluster(clusters, seed).tolist()
        assert rows == sorted(rows) and sorted(clusters[row] for row in rows) == ["a", "b", "c"]
        counts[rows] += 1
    assert counts[3] == 3000 and np.abs(counts / 3000 - [1 / 3, 1 / 2, 1 / 3, 1, 1 / 3, 1 / 2]).max() < 0.04
    assert one_per_cluster(clusters).tolist() == one_per_cluster(torch.tensor([7, 1, 7, 3, 7, 1])).tolist()
    assert one_per_cluster([]).tolist() == []


def test_too_small_a_set_is_refused_with_the_groups_needed():
    harmless = torch.zeros(116, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"58 harmless .* 5.00% .* at least 59 are needed.*58 groups here.*about 59 groups"
    ):
        threshold_for_fpr(torch.rand(116), harmless, torch.arange(116) // 2, 0.05)  # 116 rows, 58 pictures
    half = torch.arange(200) % 4 < 2  # of 100 groups every second one is harmful
    with pytest.raises(ValueError, match=r"50 harmless .*100 groups here.*about 118 groups like these"):
        threshold_for_fpr(torch.rand(200), half, torch.arange(200) // 2, 0.05)
    with pytest.raises(ValueError, match=r"0 harmless .* none counts: add image groups"):
        threshold_for_fpr(torch.rand(9), torch.ones(9, dtype=torch.bool), range(9), 0.05)
    with pytest.raises(ValueError, match=r"18 harmful .* 19 are needed.*18 groups here.*about 19 groups"):
        conformal_threshold(torch.rand(36), torch.ones(36, dtype=torch.bool), torch.arange(36) // 2, 0.05)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        threshold_for_fpr(torch.tensor([0.5, math.nan]), torch.tensor([False, True]), [0, 1], 0.5)


def test_by_hand_with_ties():
    """100 harmless rows: 95 at 0.1, five tied at 0.8; two errors are allowed, so the tie must stay below."""
    p = torch.tensor([0.1] * 95 + [0.8] * 5 + [0.5, 0.8, 0.9], dtype=torch.float64)
    harmful = torch.tensor([False] * 100 + [True] * 3)
    bound = beta.ppf(0.95, 3, 98)  # of two errors
    assert allowed_errors(100, bound * 0.999) == 1 and allowed_errors(100, bound * 1.001) == 2
    assert 0.8 < threshold_for_fpr(p, harmful, range(103), bound * 1.001) < 0.8 + 1e-12
    assert 0.1 < threshold_for_fpr(p, harmful, range(103), 0.2) < 0.1 + 1e-12
    assert (
        threshold_for_fpr(p[:100], harmful[:100], range(100), 0.99) == 0.1 + 2**-56
    )  # five errors more than there are


def correlated(rng, groups, size, rho, mixed):
    """Rows of image groups: each harmless score is uniform, so the true rate of a threshold t is 1 - t; rows of a group agree.

    Where labels are mixed, a harmless row beside a harmful one has a score of another kind: its square root.
    """
    shared = rng.standard_normal((groups, 1))
    z = math.sqrt(rho) * shared + math.sqrt(1 - rho) * rng.standard_normal((groups, size))
    p = norm.cdf(z)
    harmful = rng.random((groups, size)) < 0.4 * mixed
    p = np.where(harmful.any(1, keepdims=True), np.sqrt(p), p)
    clusters = np.repeat(np.arange(groups), size)
    return tuple(torch.from_numpy(column.ravel()) for column in (p, harmful, clusters))


def true_rate(threshold, size, mixed):
    """Of the harmless rows of :func:`correlated`: the others of the group decide which kind a row is of."""
    alone = (1 - 0.4 * mixed) ** (size - 1)
    return alone * (1 - threshold) + (1 - alone) * (1 - threshold**2)


@pytest.mark.parametrize(
    ("groups", "size", "rho", "mixed"),
    [(300, 1, 0.0, False), (300, 2, 1.0, False), (150, 5, 0.6, False), (150, 5, 0.9, True)],
)
def test_the_budget_is_kept_with_correlated_rows(groups, size, rho, mixed):
    """250 calibration sets, budget 5 %, confidence 95 %: broken by at most 5 % of them and two standard errors.

    The old rule, which counted every row, breaks it more often wherever rows of a group are alike.
    """
    rng = np.random.default_rng(0)
    draws = 250
    budget = 0.05
    most = 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    broken = old = empirical = 0
    for draw in range(draws):
        p, harmful, clusters = correlated(rng, groups, size, rho, mixed)
        broken += true_rate(threshold_for_fpr(p, harmful, clusters, budget, seed=draw), size, mixed) > budget
        old += true_rate(threshold_for_fpr(p, harmful, range(len(p)), budget), size, mixed) > budget
        empirical += true_rate(float(p[~harmful].quantile(1 - budget)), size, mixed) > budget
    assert broken / draws <= most
    assert old / draws > most if size > 1 else old == broken
    assert empirical > draws * 0.3  # the empirical quantile breaks it about half of the time


def test_groups_of_different_sizes_count_alike():
    """Three of four pictures have one row, the others 30 that are all flagged alike: the rate is that of a picture's random row."""
    rng = np.random.default_rng(1)
    draws = 300
    broken = 0
    for draw in range(draws):
        sizes = np.where(rng.random(300) < 0.25, 30, 1)
        p = torch.from_numpy(np.repeat(rng.random(300), sizes))
        clusters = np.repeat(np.arange(300), sizes).tolist()
        broken += 1 - threshold_for_fpr(p, torch.zeros(len(p), dtype=torch.bool), clusters, 0.05, seed=draw) > 0.05
    assert broken / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize(("n", "alpha", "size"), [(19, 0.05, 1), (100, 0.05, 3), (60, 0.2, 2)])
def test_conformal_risk_keeps_its_mean(n, alpha, size):
    """Harmful scores are uniform, so the true miss rate of a threshold t is t: its mean over draws is at most alpha."""
    generator = torch.Generator().manual_seed(1)
    clusters = torch.arange(n * size) // size
    risks = []
    for _ in range(2000):
        p = torch.rand(n, generator=generator, dtype=torch.float64).repeat_interleave(size)
        risks.append(min(conformal_threshold(p, torch.ones(n * size, dtype=torch.bool), clusters, alpha), 1.0))
    mean, spread = sum(risks) / len(risks), torch.tensor(risks).std() / math.sqrt(len(risks))
    assert mean <= alpha + 3 * spread
    assert mean >= alpha - 2 / (n + 1) - 3 * spread  # and not by refusing everything


def test_conformal_by_hand():
    """N = 39, alpha = 0.1: (39/40) R + 1/40 <= 0.1 allows three misses, so the fourth lowest score is the threshold."""
    p = torch.arange(1, 40, dtype=torch.float64) / 40
    assert conformal_threshold(p, torch.ones(39, dtype=torch.bool), range(39), 0.1) == 4 / 40
