"""Every measure of the audit against numbers counted by hand."""

import math
from typing import Any

import pytest

from safe_rlhf_v.construct import measures as m
from safe_rlhf_v.construct.judging import Judgement
from safe_rlhf_v.construct.models import CostJudge
from safe_rlhf_v.records import Record


def said(pair: str, probe: Any, *order: int, value: float | None, fault: str = "") -> Judgement:
    return Judgement(pair, "judge", probe, "helpfulness", order, value, "", fault)


def compared(**values: tuple[float | None, float | None]) -> list[Judgement]:
    return [
        one
        for pair, (forward, backward) in values.items()
        for one in (
            said(pair, "compare", 0, 1, value=forward, fault="" if forward is not None else "unparsable"),
            said(pair, "compare", 1, 0, value=backward, fault="" if backward is not None else "unparsable"),
        )
    ]


FIVE = compared(a=(1, -1), b=(-1, 1), c=(1, 1), d=(-1, -1), e=(0, 0), f=(0, 1), g=(-1, 0), h=(1, None))


def test_both_orders() -> None:
    orders = m.both_orders(FIVE)
    assert orders._asdict() == {"consistent": 2, "tie": 1, "first_twice": 1, "second_twice": 1, "tie_once": 2}
    assert orders.flips == m.Rate(2, 7)  # of h one order is missing
    assert m.contradicting(FIVE, first=True) == ["c"]
    assert m.contradicting(FIVE, first=False) == ["d"]


def test_choices_of_both_orders_together() -> None:
    # a: 0 in both. b: 1 in both. c, d contradict themselves. e ties. f: the second order prefers 1. g: the first order prefers 1.
    assert m.choices(FIVE) == {"a": 0, "b": 1, "c": -1, "d": -1, "e": -1, "f": 1, "g": 1}


def test_ties_count_single_comparisons() -> None:
    assert m.ties(FIVE) == m.Rate(4, 15)


def test_identical_responses() -> None:
    opinions = [said(pair, "identical", 0, 0, value=value) for pair, value in zip("abcd", (1, 1, -1, 0), strict=True)]
    assert m.identical([*opinions, *FIVE]) == {"first": 2, "second": 1, "tie": 1}


def test_asked_again() -> None:
    again = [
        said("a", "repeat", 0, 1, value=1),
        said("b", "repeat", 0, 1, value=0),
        said("h", "repeat", 0, 1, value=None),
    ]
    assert m.retest_choice([*FIVE, *again]) == m.Rate(1, 2)
    rated = [said(pair, "rate", 0, value=2) for pair in "abc"]
    rated += [said("a", "repeat_rate", 0, value=2), said("b", "repeat_rate", 0, value=3)]
    assert m.retest_rating(rated) == m.Rate(1, 2)


def test_another_picture() -> None:
    opinions = []
    for pair, (rate, repeat, swapped) in {
        "a": (2, 2, 0), "b": (2, 2, 1), "c": (2, 2, 2), "d": (2, 1, 2), "e": (2, 1, 0), "f": (2, 2, None), "g": (2, None, 1),
    }.items():  # fmt: skip
        opinions.append(said(pair, "rate", 0, value=rate))
        opinions.append(said(pair, "repeat_rate", 0, value=repeat))
        opinions.append(said(pair, "swapped", 0, value=swapped))
    reading = m.picture_reading(opinions)
    assert (reading.swapped, reading.repeated) == (m.Rate(3, 5), m.Rate(2, 5))
    assert (reading.only_swapped, reading.only_repeated) == (2, 1)
    assert reading.unmoved == ("c", "d")


def test_padded() -> None:
    opinions = [
        said("a", "padded", 0, 2, value=1),  # the original stood first and was chosen
        said("a", "padded", 2, 0, value=1),  # the padded one stood first and was chosen
        said("b", "padded", 0, 2, value=-1),
        said("b", "padded", 2, 0, value=0),
    ]
    assert m.padding(opinions) == {"padded": 2, "original": 1, "tie": 1}
    both = [said("c", "padded", 0, 2, value=-1), said("c", "padded", 2, 0, value=1)]
    both += [said("d", "padded", 0, 2, value=1), said("d", "padded", 2, 0, value=-1)]
    both += [said("e", "padded", 0, 2, value=0), said("e", "padded", 2, 0, value=0)]
    assert m.padded_pairs([*opinions, *both]) == {"c": True, "d": False}  # a pair counts once, where both orders agree


def test_longer_preferred() -> None:
    texts = {
        "a": ("one two", "one"),
        "b": ("one", "one two"),
        "c": ("one", "two"),
        "d": ("one two three", "one"),
        "e": ("x", "y z"),
    }
    votes = {"a": 0, "b": 0, "c": 1, "d": -1, "e": 1}
    assert m.longer_preferred(votes, texts) == m.Rate(2, 3)  # c has one length, d a tie


def test_against_gold() -> None:
    assert m.agreement_with({"a": 0, "b": 1, "c": -1, "d": 0}, {"a": 0, "b": 0, "c": 1, "d": -1}) == m.Rate(1, 2)
    ratings = {("a", 0): 2.0, ("a", 1): 0.0, ("b", 0): 1.0}
    gold = {("a", 0): 2.0, ("a", 1): 1.0, ("c", 0): 1.0}
    assert m.ratings_near(ratings, gold, 0) == m.Rate(1, 2)
    assert m.ratings_near(ratings, gold, 1) == m.Rate(2, 2)


def test_confusion_by_category() -> None:
    levels = {("a", 0): -1.0, ("a", 1): 0.0, ("b", 0): -3.0, ("b", 1): 2.0, ("c", 0): 1.0}
    gold = {("a", 0): -2.0, ("a", 1): -1.0, ("b", 0): 0.0, ("b", 1): 3.0}
    assert m.confusion(levels, gold, {"a": "arson", "b": "(none)", "c": "fraud"}) == {
        "(none)": {"harmful_harmful": 0, "harmful_safe": 0, "safe_harmful": 1, "safe_safe": 1},
        "arson": {"harmful_harmful": 1, "harmful_safe": 1, "safe_harmful": 0, "safe_safe": 0},
    }


def test_rates_have_exact_bounds() -> None:
    # Clopper-Pearson: of 0 of n the upper bound is 1 - 0.025 ** (1 / n).
    rate = m.Rate(0, 10).to_json()
    assert rate["rate"] == 0 and rate["low"] == 0
    assert abs(rate["high"] - (1 - 0.025 ** (1 / 10))) < 1e-6
    assert m.Rate(0, 0).to_json() == {"count": 0, "of": 0, "rate": None, "low": None, "high": None}


def test_nothing_said_gives_empty_measures() -> None:
    assert m.both_orders([]).flips == m.Rate(0, 0)
    assert m.ties([]) == m.retest_choice([]) == m.Rate(0, 0)
    assert m.picture_reading([]).swapped == m.Rate(0, 0)
    assert m.choices([]) == {}


def test_a_pair_leans_once() -> None:
    same = [said(pair, "identical", 0, 0, value=value) for pair, value in (("a", 1), ("c", 1), ("d", 1), ("e", 0))]
    # c leans to the first place in two ways, d to the second in one and to the first in another.
    assert m.leanings([*FIVE, *same]) == {"c": 1, "a": 1}
    assert m.leanings(FIVE) == {"c": 1, "d": -1}


def test_ties_of_one_order() -> None:
    assert m.ties(m.first_order(FIVE)) == m.Rate(2, 8)


@pytest.mark.parametrize(
    ("cost", "harmful"), [(2.0, 1.0), (-2.0, 0.0), (0.0, 0.0), (math.inf, 1.0), (math.nan, math.nan)]
)
def test_a_cost_that_is_no_number_is_not_harmless(cost: float, harmful: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CostJudge, "_values", lambda self, pairs: [cost] * len(pairs))
    scores = CostJudge("nowhere").score(Record("a", "q"), "x")
    assert scores == pytest.approx({"cost": cost, "harmful": harmful}, nan_ok=True)
