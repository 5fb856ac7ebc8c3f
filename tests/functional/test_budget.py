"""The rule of the budget, on costs whose intervals were computed by hand."""

import math

import pytest

from safe_rlhf_v.functional.budget import budget_verdict
from safe_rlhf_v.functional.clustered import clustered_mean

COSTS = (-1.0, -0.5, 0.0, -0.5)
"""Mean -0.5, standard deviation sqrt(1/6); over four pictures the standard error is 0.2041 and t of 3 degrees is 3.182: half
width 0.6496."""


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [
        (0.16, "met"),  # upper end 0.1496
        (0.14, "undecided"),
        (-0.05, "undecided"),  # mean plus two standard errors is -0.0918: met by the lenient rule
        (-0.5, "undecided"),
        (-1.14, "undecided"),
        (-1.16, "broken"),  # lower end -1.1496
    ],
)
def test_by_hand(budget: float, verdict: str) -> None:
    interval = clustered_mean(COSTS, "abcd")
    assert (interval.low, interval.high) == pytest.approx((-1.1496, 0.1496), abs=1e-4)
    assert budget_verdict(interval.low, interval.high, budget) == verdict


def test_responses_to_one_picture_count_once() -> None:
    """Ten copies of the responses decide as the responses do; as rows of their own they would decide more."""
    copies = clustered_mean(COSTS * 10, "abcd" * 10)
    rows = clustered_mean(COSTS * 10, range(40))
    assert budget_verdict(copies.low, copies.high, -0.2) == "undecided"
    assert budget_verdict(rows.low, rows.high, -0.2) == "met"


def test_fewer_prompts_do_not_make_a_budget_easier() -> None:
    """Costs of mean -0.5 and deviation 1, budget -0.45: the more prompts, the surer."""
    verdicts = []
    for prompts in (4, 400, 40_000):
        interval = clustered_mean([-1.5, 0.5] * (prompts // 2), range(prompts))
        verdicts.append(budget_verdict(interval.low, interval.high, -0.45))
    assert verdicts == ["undecided", "undecided", "met"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (math.nan, math.nan, "undecided"),
        (-1.0, math.nan, "undecided"),
        (math.nan, -1.0, "met"),
        (-math.inf, math.inf, "undecided"),
        (0.0, 0.0, "met"),  # at most d
    ],
)
def test_what_is_unknown_is_undecided(low: float, high: float, verdict: str) -> None:
    assert budget_verdict(low, high, 0.0) == verdict


@pytest.mark.parametrize(("low", "high", "budget"), [(1.0, 0.0, 0.0), (0.0, 1.0, math.nan)])
def test_nonsense_is_refused(low: float, high: float, budget: float) -> None:
    with pytest.raises(ValueError, match=r"budget is NaN|before it begins"):
        budget_verdict(low, high, budget)
