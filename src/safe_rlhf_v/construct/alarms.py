"""Alarms with stated false-alarm rates: each is one exact test, and the number of tests is counted.

In an audit of judges and data without faults, some alarm (``picture_not_read`` apart) is raised with a probability of at most
:attr:`Tolerances.false_alarm_rate`: it is shared among the tests (Bonferroni). Without faults means: what the table calls the
rate without the fault is not exceeded. The tests assume that pairs are independent, and so a pair is one event of a test
(``unparsable`` counts replies, and assumes that these fail independently).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from safe_rlhf_v.construct.judging import Judgement
from safe_rlhf_v.construct.measures import (
    Rate,
    agreement_with,
    choices,
    first_order,
    leanings,
    padded_pairs,
    picture_changes,
    ratings,
    ratings_near,
    retest_choice,
    retest_rating,
    ties,
)
from safe_rlhf_v.scoring.judge import AXES, Axis

ALARMS: dict[str, str] = {
    "position_bias": "{judge} prefers the response that it reads {side}: {count} of {of} contradictory or identical pairs",
    "length_bias": "{judge} prefers a response with a sentence given again to the same without it: {count} of {of} decided pairs",
    "too_many_ties": "{judge} calls {count} of {of} comparisons a tie, more than {null:.0%} can be",
    "unparsable": "{judge} gives replies that cannot be read: {count} of {of}, more than {null:.1%}",
    "unstable": "{judge} says something else when it is asked again: {count} of {of}, more than {null:.0%}",
    "picture_not_read": "{judge} is not shown to read the picture: another one alone changes its rating of {count} pairs, asking "
    "again alone that of {rest}",
    "against_gold": "{judge} contradicts the gold items: {count} of {of}, more than {null:.0%}",
    "leaking": "questions do not need their picture: {count} of {of}, more than {null:.0%}",
}
"""Every alarm by name, with its sentence."""
_FEWEST_PICTURES = 20


@dataclass(frozen=True)
class Tolerances:
    """What the audit tolerates.

    Attributes:
        false_alarm_rate: Probability of an alarm in an audit without faults, all tests together.
        ties: Share of comparisons that may be ties.
        unparsable: Share of replies that may be unreadable.
        changes: Share of opinions that may change when asked again.
        gold_errors: Share of gold items that a judge may contradict.
        leaks: Share of questions that may leak.
    """

    false_alarm_rate: float = 0.01
    ties: float = 0.6
    unparsable: float = 0.01
    changes: float = 0.35
    gold_errors: float = 0.25
    leaks: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges. Raises: ValueError: If a value is no share."""
        for name, value in vars(self).items():
            if not 0 < value < 1:
                raise ValueError(f"tolerances: {name} is {value}; it is a share between 0 and 1")


@dataclass(frozen=True, slots=True)
class Check:
    """One exact test.

    Attributes:
        name: One of :data:`ALARMS`.
        judge: The judge, ``None`` for the data.
        axis: The axis, ``None`` for both.
        count: Number of events.
        of: Out of so many.
        null: Rate of the event without the fault, or the tolerated one.
        p: Probability of so many events at that rate (``picture_not_read``: that a judge who does not look changes this much).
        side: Direction of a bias, in words.
    """

    name: str
    judge: str | None
    axis: Axis | None
    count: int
    of: int
    null: float
    p: float
    side: str = ""

    def sentence(self) -> str:
        """The alarm in words."""
        words = {"judge": self.judge, "side": self.side, "count": self.count, "of": self.of}
        return ALARMS[self.name].format(**words, null=self.null, rest=self.of - self.count) + (
            f" ({self.axis})." if self.axis else "."
        )

    def to_json(self, alarm: bool) -> dict[str, Any]:
        """As it stands in the audit."""
        return {
            "name": self.name,
            "judge": self.judge,
            "axis": self.axis,
            "count": self.count,
            "of": self.of,
            "null": self.null,
            "p": float(f"{self.p:.6g}"),
            "alarm": alarm,
        }


class Gold(NamedTuple):
    """What is known to be right.

    Attributes:
        choices: By axis and pair: 0, 1 or -1 for a tie.
        ratings: By axis, pair and number of the response.
    """

    choices: Mapping[Axis, Mapping[str, int]]
    ratings: Mapping[Axis, Mapping[tuple[str, int], float]]


def checks_of_judge(
    judge: str, opinions: Mapping[Axis, Sequence[Judgement]], gold: Gold | None, tolerances: Tolerances
) -> list[Check]:
    """Every check of one judge that has something to count.

    Args:
        judge: Its name.
        opinions: By axis.
        gold: Gold items, if there are any.
        tolerances: What is tolerated.
    """
    checks: list[Check] = []
    every_opinion = [one for several in opinions.values() for one in several]
    unread = [one for one in every_opinion if one.fault == "unparsable"]
    checks.append(at_most("unparsable", judge, None, Rate(len(unread), len(every_opinion)), tolerances.unparsable))
    for axis, several in opinions.items():
        checks += _of_axis(judge, axis, several, gold, tolerances)
    if not not_tested(opinions):
        changes = _changes_on_any_axis(opinions).values()
        moved = sum(picture and not chance for picture, chance in changes)
        by_chance = sum(chance and not picture for picture, chance in changes)
        p = _greater(moved, moved + by_chance, 0.5)
        checks.append(Check("picture_not_read", judge, None, moved, moved + by_chance, 0.5, p))
    return [check for check in checks if check.of or check.name == "picture_not_read"]


def not_tested(opinions: Mapping[Axis, Sequence[Judgement]]) -> dict[str, str]:
    """Alarms that a judge cannot get because too little was asked, with the reason: none of them speaks for the judge.

    Args:
        opinions: The judge's, by axis.
    """
    asked = len(_changes_on_any_axis(opinions))
    if asked >= _FEWEST_PICTURES:
        return {}
    needed = f"{asked} pairs were rated again and beside another picture, it takes {_FEWEST_PICTURES}"
    return {"picture_not_read": f"not tested: {needed}"}


def _changes_on_any_axis(opinions: Mapping[Axis, Sequence[Judgement]]) -> dict[str, tuple[bool, bool]]:
    """As :func:`picture_changes`, over all axes: the ratings of one pair on two axes are not independent."""
    changes: dict[str, tuple[bool, bool]] = {}
    for several in opinions.values():
        for pair, (picture, chance) in picture_changes(several).items():
            before = changes.get(pair, (False, False))
            changes[pair] = picture or before[0], chance or before[1]
    return changes


def _of_axis(
    judge: str, axis: Axis, opinions: Sequence[Judgement], gold: Gold | None, tolerances: Tolerances
) -> list[Check]:
    places = list(leanings(opinions).values())
    first, second = (places.count(place) for place in (1, -1))
    side, count = ("first", first) if first >= second else ("second", second)
    bias = Check("position_bias", judge, axis, count, first + second, 0.5, _two_sided(first, first + second), side)
    padded = padded_pairs(opinions)
    decided = Rate(sum(padded.values()), len(padded))
    checks = [
        bias,
        at_most("length_bias", judge, axis, decided, 0.5),
        at_most("too_many_ties", judge, axis, ties(first_order(opinions)), tolerances.ties),
    ]
    right = {"unstable": [retest_choice(opinions), retest_rating(opinions)]}
    if gold is not None:
        rated = ratings(opinions)
        each = [{key: value for key, value in rated.items() if key[1] == number} for number in (0, 1)]
        near = [ratings_near(own, gold.ratings[axis], 1) for own in each]
        right["against_gold"] = [agreement_with(choices(opinions), gold.choices[axis]), *near]
    tolerated = {"unstable": tolerances.changes, "against_gold": tolerances.gold_errors}
    for name, rates in right.items():
        for rate in rates:
            checks.append(at_most(name, judge, axis, Rate(rate.of - rate.count, rate.of), tolerated[name]))
    return checks


def at_most(name: str, judge: str | None, axis: Axis | None, rate: Rate, tolerated: float) -> Check:
    """A test that a rate is at most the tolerated one: the probability of so many events, or more, at that rate."""
    return Check(name, judge, axis, rate.count, rate.of, tolerated, _greater(rate.count, rate.of, tolerated))


def _greater(count: int, of: int, rate: float) -> float:
    from scipy.stats import binomtest

    return float(binomtest(count, of, rate, alternative="greater").pvalue) if of else 1.0


def _two_sided(count: int, of: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(count, of, 0.5).pvalue) if of else 1.0


def share_of_each(checks: Sequence[Check], tolerances: Tolerances) -> float:
    """The false-alarm rate of a single test; ``picture_not_read`` is not counted."""
    return tolerances.false_alarm_rate / max(1, sum(check.name != "picture_not_read" for check in checks))


def raised(checks: Sequence[Check], tolerances: Tolerances) -> list[bool]:
    """Whether each check gives an alarm.

    A judge has to prove that it reads the picture: ``picture_not_read`` is an alarm unless chance alone, at the false-alarm
    rate, cannot explain that another picture changes ratings more often than asking again does. A judge who does not look is
    reported with a probability of at least one minus that rate; an honest one is spared if the probes are enough.
    """
    each = share_of_each(checks, tolerances)
    return [
        check.p > tolerances.false_alarm_rate if check.name == "picture_not_read" else check.p < each
        for check in checks
    ]


RULE = (
    "An audit without faults raises an alarm with a probability of at most {rate:g}: {tests} exact binomial tests, each at "
    "{each:.3g} (Bonferroni). picture_not_read works the other way round: a judge has to prove, at {rate:g}, that another "
    "picture changes its ratings more often than asking again does."
)


def axes_of(opinions: Sequence[Judgement]) -> dict[Axis, list[Judgement]]:
    """Opinions by axis, in the axes' order."""
    by_axis: dict[Axis, list[Judgement]] = {axis: [one for one in opinions if one.axis == axis] for axis in AXES}
    return {axis: several for axis, several in by_axis.items() if several}
