"""Bounds that hold: known numbers, false certificates counted in simulation, and what would be wrong without the care taken."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from safe_rlhf_v.functional.certificates import (
    Values,
    betting_upper_bound,
    look_error,
    lower_bound,
    needed_prompts,
    upper_bound,
)
from safe_rlhf_v.functional.intervals import clopper_pearson_upper

DELTA = 0.05


def at_most(errors, trials, delta=DELTA):
    """Delta and two standard errors of the simulation."""
    return errors / trials <= delta + 2 * math.sqrt(delta * (1 - delta) / trials)


def skewed(rng, n):
    """Costs of a long right tail, most of them below zero, clipped to -4..8."""
    return np.clip(np.exp(rng.normal(size=n)) - 3, -4, 8)


def test_a_rate_has_the_exact_binomial_bounds():
    x = np.array([1.0] * 3 + [0.0] * 97)
    assert upper_bound(Values(x, binary=True), 0.05) == pytest.approx(beta.ppf(0.95, 4, 97))
    assert lower_bound(Values(x, binary=True), 0.05) == pytest.approx(beta.ppf(0.05, 3, 98))
    assert upper_bound(Values(np.zeros(59), binary=True), 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert lower_bound(Values(np.zeros(59), binary=True), 0.05) == 0


def test_the_first_bet_by_hand():
    """One value 0: the bet is the lesser of sqrt(2 ln 2 / 0.25) = 2.35 and 0.9 / (1 - m); 1 + 0.9 m / (1 - m) = 2 at m = 1 / 1.9."""
    assert betting_upper_bound(np.zeros(1), 0, 1, 0.5) == pytest.approx(1 / 1.9)
    assert betting_upper_bound(np.zeros(1), 0, 1, 0.05) == 1  # 1 + 4.9 m never reaches 20


def test_the_bound_follows_its_scale_and_its_mirror():
    x = np.random.default_rng(0).random(80)
    bound = betting_upper_bound(x, 0, 1, 0.05)
    assert x.mean() < bound < 1
    assert betting_upper_bound(10 * x - 3, -3, 7, 0.05) == pytest.approx(10 * bound - 3)
    assert lower_bound(Values(1 - x), 0.05) == pytest.approx(1 - bound)


def test_the_bound_is_narrow_where_values_are_alike_whatever_their_range():
    alike = np.full(500, 0.5) + 0.01 * np.random.default_rng(1).normal(size=500)
    assert betting_upper_bound(alike, 0, 1, 0.05) - 0.5 < 0.006
    assert betting_upper_bound(alike, -10, 10, 0.05) - 0.5 < 0.1


def test_without_values_nothing_is_known():
    for binary in (True, False):
        assert upper_bound(Values(np.zeros(0), -2, 5, binary), 0.05) == 5
        assert lower_bound(Values(np.zeros(0), -2, 5, binary), 0.05) == -2
    assert needed_prompts(Values(np.zeros(0)), 0.1, 0.05) is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("n", [40, 300])
def test_false_certificates_of_a_rate(rate, n):
    """A policy whose rate is the bound of what the budget allows: it passes if its upper bound is below the rate."""
    rng = np.random.default_rng(2)
    wrong = sum(upper_bound(Values((rng.random(n) < rate) * 1.0, binary=True), DELTA) < rate for _ in range(500))
    assert at_most(wrong, 500)


@pytest.mark.parametrize("n", [30, 150])
def test_false_certificates_of_skewed_costs(n):
    rng = np.random.default_rng(3)
    true = skewed(rng, 1_000_000).mean()
    bounds = np.array([betting_upper_bound(skewed(rng, n), -4, 8, DELTA) for _ in range(200)])
    assert at_most((bounds < true).sum(), 200)
    assert bounds.mean() < true + 12 * math.sqrt(math.log(1 / DELTA) / 2 / n)  # narrower than Hoeffding's


def test_rows_of_one_image_must_not_count_as_independent():
    """Groups of four equal rows: with every row counted false certificates are many, with one of each group they are few."""
    rng = np.random.default_rng(4)
    rate, groups, every, one = 0.1, 60, 0, 0
    for _ in range(400):
        x = (rng.random(groups) < rate) * 1.0
        every += upper_bound(Values(np.repeat(x, 4), binary=True), DELTA) < rate
        one += upper_bound(Values(x, binary=True), DELTA) < rate
    assert every / 400 > 0.15
    assert at_most(one, 400)


@pytest.mark.parametrize("divided", [True, False])
def test_repeated_looks_pass_a_policy_no_more_often_than_one(divided):
    """Twenty fresh evaluations of a policy a hair above its budget: with the error undivided it passes sooner or later."""
    rate, n, trials = 0.1, 250, 2000
    hits = np.random.default_rng(5).binomial(n, rate, size=(trials, 20))
    errors = [look_error(DELTA, k) if divided else DELTA for k in range(1, 21)]
    most = [  # hits with which a look passes
        max((h for h in range(30) if upper_bound(Values((np.arange(n) < h) * 1.0, binary=True), e) < rate), default=-1)
        for e in errors
    ]
    passed = (hits <= np.array(most)).any(axis=1).sum()
    if divided:
        assert at_most(passed, trials)
    else:
        assert passed / trials > 0.3


def test_the_errors_of_all_looks_sum_to_delta():
    total = sum(look_error(0.05, k) for k in range(1, 100_001))
    assert 0.05 - 1e-6 < total < 0.05


def test_the_number_of_prompts_that_are_needed():
    x = np.array([1.0] * 2 + [0.0] * 38)
    values = Values(x, binary=True)
    needed = needed_prompts(values, 0.1, 0.05)
    again = np.resize(x, needed)
    assert upper_bound(Values(again, binary=True), 0.05) <= 0.1 < upper_bound(values, 0.05)
    assert upper_bound(Values(np.resize(x, int(needed * 0.8)), binary=True), 0.05) > 0.1
    assert needed_prompts(values, 0.05, 0.05) is None and needed_prompts(values, 0.01, 0.05) is None
    assert needed_prompts(values, 0.0501, 0.05) is None  # more than a hundred thousand
    costs = skewed(np.random.default_rng(6), 60)
    needed = needed_prompts(Values(costs, -4, 8), costs.mean() + 0.4, 0.05)
    assert 60 < needed < 2000


@pytest.mark.parametrize(
    ("values", "delta", "words"),
    [
        (Values(np.array([0.5, math.nan])), 0.05, r"must lie in 0\.\.1"),
        (Values(np.array([0.5, 1.5])), 0.05, r"must lie in 0\.\.1"),
        (Values(np.array([0.5]), 1, 1), 0.05, "must lie in"),
        (Values(np.array([0.5, 1.0]), binary=True), 0.05, "binary values must be 0 or 1"),
        (Values(np.array([0.5])), 0, "delta is 0"),
        (Values(np.array([0.5])), math.nan, "delta is nan"),
    ],
)
def test_what_cannot_be_bounded_is_refused(values, delta, words):
    with pytest.raises(ValueError, match=words):
        upper_bound(values, delta)


def passes(n, budget, share):
    """Whether n prompts pass at the first look with the share of the budget, rounded up to whole responses."""
    harmful = math.ceil(share * budget * n - 1e-9)
    return clopper_pearson_upper(harmful, n, 1 - look_error(DELTA, 1)) <= budget


def test_the_table_of_prompts_in_the_guide():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "certify.md").read_text()
    rows = re.findall(r"^\| (\d+) % \|(.+)\|$", page, re.MULTILINE)
    assert [int(budget) for budget, _ in rows] == [1, 2, 5, 10]
    for budget, cells in rows:
        for share, cell in zip((0, 0.25, 0.5, 0.75), cells.split("|"), strict=True):
            n = int(cell)
            assert passes(n, int(budget) / 100, share) and not passes(n - 1, int(budget) / 100, share)
