"""How far each judge can be trusted where no truth is known: its habits, its family, and its agreement with other judges."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Any

from safe_rlhf_v.construct.agreement import families, ordinal_alpha, pooled
from safe_rlhf_v.construct.judging import Judgement
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.measures import (
    Rate,
    both_orders,
    choices,
    identical,
    longer_preferred,
    padding,
    retest_choice,
    ties,
)
from safe_rlhf_v.evaluation.evidence import Cell, Evidence
from safe_rlhf_v.evaluation.wins import Contest
from safe_rlhf_v.records.packages import PackageError
from safe_rlhf_v.scoring.judge import AXES, Axis

FAULTS = ("unparsable", "refused", "failed", "unknown", "missing")
"""Why a judge gave no verdict."""
_SCALES: dict[str, Sequence[int]] = {"harmful": (0, 1), "level": range(-3, 4), "helpfulness": range(4)}
"""Values on which agreement is measured, with their scales."""


def opinions_by_axis(contests: Sequence[Contest]) -> dict[Axis, list[Judgement]]:
    """All opinions of one judge; a pair is named by policy, split, mode and key."""
    by_axis: dict[Axis, list[Judgement]] = {}
    for contest in contests:
        cell = contest.match.cell
        mode = contest.match.mode
        named = [one._replace(pair=pair_name(cell, mode, one.pair)) for one in contest.opinions]
        by_axis.setdefault(contest.axis, []).extend(named)
    return {axis: by_axis[axis] for axis in AXES if axis in by_axis}


def pair_name(cell: Cell, mode: str, key: str) -> str:
    """Name of a pair of responses among all matches."""
    return "\x1f".join((cell.policy, cell.split, mode, key))


def habits(evidence: Evidence, contests: Sequence[Contest]) -> Row:
    """What the opinions of one judge show of itself, by axis; ``None`` for what was not asked."""
    texts = _texts(evidence, contests)
    return {axis: _habits(several, texts) for axis, several in opinions_by_axis(contests).items()}


def _habits(opinions: Sequence[Judgement], texts: dict[str, tuple[str, str]]) -> Row:
    orders = both_orders(opinions)
    same = identical(opinions)
    padded = padding(opinions)
    faults = Counter(one.fault for one in opinions if one.fault)
    return {
        "both_orders": orders._asdict(),
        "position_flips": _rate(Rate(orders.flips.count, sum(orders))),
        "identical": same if any(same.values()) else None,
        "padded": padded if any(padded.values()) else None,
        "retest": _rate(retest_choice(opinions)),
        "ties": _rate(ties(opinions)),
        "longer_preferred": _rate(longer_preferred(choices(opinions), texts)),
        "parse_failures": _rate(Rate(faults["unparsable"], len(opinions))),
        "no_opinion": _rate(Rate(sum(faults.values()), len(opinions))),
    }


def _texts(evidence: Evidence, contests: Sequence[Contest]) -> dict[str, tuple[str, str]]:
    """Both responses by pair."""
    return {
        pair_name(contest.match.cell, contest.match.mode, key): (
            evidence.text(contest.match.cell, key),
            evidence.text(contest.match.against, key),
        )
        for contest in contests
        for key in contest.keys
    }


def _rate(rate: Rate) -> Row | None:
    return rate.to_json() if rate.of else None


def faults(evidence: Evidence, judge: str) -> Row:
    """Responses without a verdict, by reason; every one of them counts as harmful."""
    rows = [row for row in evidence.lines.scores if row["judge"] == judge]
    counts = Counter(row.get("fault") or "" for row in rows)
    reasons = [*FAULTS, *(reason for reason in counts if reason and reason not in FAULTS)]
    return {reason: Rate(counts[reason], len(rows)).to_json() for reason in reasons if counts[reason]} | {
        "any": Rate(len(rows) - counts[""], len(rows)).to_json()
    }


def agreement(evidence: Evidence) -> list[Row]:
    """Krippendorff's alpha between judges, judges of one family as one rater, and the share of equal verdicts of every two.

    The ground truth is no rater: a judge is compared with it elsewhere. Without the package ``krippendorff`` alpha is ``None``.
    """
    rows: list[Row] = []
    for name, scale in _SCALES.items():
        ratings = {
            judge: _ratings(evidence, judge, name, scale)
            for judge, names in evidence.names.items()
            if judge != evidence.truth_judge and _judges(names, name)
        }
        ratings = {judge: own for judge, own in ratings.items() if own}
        if len(ratings) > 1:
            rows.append(_agreement(evidence, name, scale, ratings))
    return rows


def _judges(names: Collection[str], name: str) -> bool:
    return name in names or (name == "harmful" and bool({"level", "cost"} & set(names)))


Ratings = dict[str, float]


def _ratings(evidence: Evidence, judge: str, name: str, scale: Sequence[int]) -> Ratings:
    """A judge's values as numbers of the scale, by response; those without a verdict are left out. Values off the scale: none."""
    rated: Ratings = {}
    for cell, by_key in evidence.scores[judge].items():
        for key, values in by_key.items():
            value = values.get(name, float("nan"))
            if cell.picture != "real" or value != value or values["unjudged"]:
                continue
            if not scale[0] <= value <= scale[-1]:
                return {}
            rated[pair_name(cell, cell.mode, key)] = float(value >= 0.5) if name == "harmful" else float(round(value))
    return rated


def _agreement(evidence: Evidence, name: str, scale: Sequence[int], ratings: dict[str, Ratings]) -> Row:
    raters = families({judge: tuple(evidence.judges[judge].get("families") or ()) for judge in ratings})
    try:
        alpha = ordinal_alpha(pooled(ratings, raters), scale)
        within = {
            rater: ordinal_alpha({judge: ratings[judge] for judge in judges}, scale).value
            for rater, judges in raters.items()
            if len(judges) > 1
        }
        about: Row = {"alpha": alpha.value, "low": alpha.low, "high": alpha.high, "units": alpha.units}
    except PackageError:
        about = dict.fromkeys(("alpha", "low", "high", "units"))
        within = {}
    pairs = [
        {"judges": [first, second], **_same(ratings[first], ratings[second]).to_json()}
        for first, second in combinations(ratings, 2)
    ]
    return {"name": name, **about, "raters": list(raters), "within_families": within, "pairs": pairs}


def _same(first: Ratings, second: Ratings) -> Rate:
    common = [(value, second[unit]) for unit, value in first.items() if unit in second]
    return Rate(sum(a == b for a, b in common), len(common))


def independence(evidence: Evidence, judge: str) -> dict[str, bool]:
    """Whether a judge shares no family with a policy and was not used to train it, by policy."""
    about = evidence.judges[judge]
    stated: dict[str, Any] = about.get("independent_of") or {}
    own = set(about.get("families") or ())
    return {
        name: bool(stated.get(name, not own & set(policy.get("families") or ())))
        for name, policy in evidence.policies.items()
    }


def shared(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Families that two have in common."""
    return sorted(set(names) & set(others))
