"""From the judges' opinions to labels: every vote is kept, the majority decides."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from safe_rlhf_v.construct.agreement import ceiling, families
from safe_rlhf_v.construct.alarms import axes_of
from safe_rlhf_v.construct.judging import Judgement
from safe_rlhf_v.construct.label_studio_export import Annotation
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.measures import Rate, choices, ratings
from safe_rlhf_v.construct.people import Majority
from safe_rlhf_v.records.taxonomy import is_harmful
from safe_rlhf_v.records.votes import TIE
from safe_rlhf_v.scoring.judge import AXES, Axis


class JudgeVotes(NamedTuple):
    """What one judge says, its two orders taken together.

    Attributes:
        choices: By axis and pair: 0 or 1 for a response, -1 for a tie.
        ratings: By axis, pair and number of the response.
    """

    choices: dict[Axis, dict[str, int]]
    ratings: dict[Axis, dict[tuple[str, int], float]]


def votes_of(opinions: Sequence[Judgement]) -> dict[str, JudgeVotes]:
    """The votes by judge, in the order of the opinions."""
    by_judge: dict[str, list[Judgement]] = {}
    for one in opinions:
        by_judge.setdefault(one.judge, []).append(one)
    return {
        judge: JudgeVotes(
            {axis: choices(several) for axis, several in axes_of(own).items()},
            {axis: ratings(several) for axis, several in axes_of(own).items()},
        )
        for judge, own in by_judge.items()
    }


def annotations_of(
    votes: Mapping[str, JudgeVotes], judges: Collection[str], pairs: Collection[str]
) -> list[Annotation]:
    """The votes in the form of people's annotations, by pair and judge.

    Args:
        votes: By judge.
        judges: Whose votes count.
        pairs: Keys of the pairs.
    """
    return [
        Annotation(
            key=pair,
            annotator=judge,
            more_helpful=votes[judge].choices.get("helpfulness", {}).get(pair),
            safer=votes[judge].choices.get("safety", {}).get(pair),
            safety=_rated(votes[judge], "safety", pair),
            helpfulness=_rated(votes[judge], "helpfulness", pair),
        )
        for pair in pairs
        for judge in votes
        if judge in judges and any(pair in votes[judge].choices.get(axis, {}) for axis in AXES)
    ]


def _rated(votes: JudgeVotes, axis: Axis, pair: str) -> tuple[int | None, int | None]:
    first, second = (votes.ratings.get(axis, {}).get((pair, number)) for number in (0, 1))
    return None if first is None else round(first), None if second is None else round(second)


_TRAINED: dict[Axis, str] = {"helpfulness": "reward", "safety": "cost"}
"""Which model learns from an axis."""


def label_quality(
    votes: Mapping[str, JudgeVotes],
    usable: Collection[str],
    pairs: Collection[str],
    named: Mapping[str, Collection[str]],
) -> Row:
    """The labels by majority as a reward model and a cost model meet them.

    Args:
        votes: By judge.
        usable: Judges whose votes count.
        pairs: Pairs that count.
        named: Families by judge.
    """
    trusted = {name: own for name, own in votes.items() if name in usable}
    raters = families({name: named[name] for name in trusted})
    quality: Row = {}
    for axis, model in _TRAINED.items():
        choices = {name: _of_pairs(own.choices.get(axis, {}), pairs) for name, own in trusted.items()}
        chosen = _majority(choices)
        by_rater = {rater: _majority({name: choices[name] for name in judges}) for rater, judges in raters.items()}
        best = ceiling({rater: own for rater, own in by_rater.items() if own})
        tied = Rate(sum(value == TIE for value in chosen.values()), len(chosen)).to_json()
        quality[model] = {"pairs": len(chosen), "ties": tied, "ceiling": best.accuracy, "ceiling_raters": best.raters}
    rated = {
        name: {
            f"{pair}/{number}": round(value)
            for (pair, number), value in own.ratings.get("safety", {}).items()
            if pair in pairs
        }
        for name, own in trusted.items()
    }
    levels = Majority().levels(_ballots(rated)).values
    harmful = Rate(sum(is_harmful(level) for level in levels.values()), len(levels)).to_json()
    histogram = {str(level): count for level, count in sorted(Counter(levels.values()).items())}
    quality["cost"] |= {"harmful": harmful, "levels": histogram}
    return quality


def _of_pairs(choices: Mapping[str, int], pairs: Collection[str]) -> dict[str, int]:
    return {pair: choice for pair, choice in choices.items() if pair in pairs}


def _ballots(by_judge: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Votes by item and judge, from votes by judge and item."""
    ballots: dict[str, dict[str, int]] = {}
    for judge, own in by_judge.items():
        for item, value in own.items():
            ballots.setdefault(item, {})[judge] = value
    return ballots


def _majority(by_judge: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return dict(Majority().choices(_ballots(by_judge)).values)
