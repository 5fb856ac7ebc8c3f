"""Win rates: each policy against the start on the same prompts, by every judge and axis, in both orders."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from safe_rlhf_v.construct.judging import Judgement, opinions_in
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.measures import both_orders, choices
from safe_rlhf_v.evaluation.evidence import Cell, Evidence
from safe_rlhf_v.evaluation.figures import rounded, written
from safe_rlhf_v.functional.clustered import Interval, clustered_share
from safe_rlhf_v.functional.win_rates import length_controlled_win_rate, win_rate
from safe_rlhf_v.scoring.judge import AXES, Axis


class Match(NamedTuple):
    """A policy against the start.

    Attributes:
        cell: How the policy was asked.
        against: How the start was asked.
        mode: The mode of the lines: ``sampled``, ``greedy`` or ``matched:NAME``.
    """

    cell: Cell
    against: Cell
    mode: str


class Contest(NamedTuple):
    """What one judge says of a match on one axis.

    Attributes:
        match: Who against whom.
        judge: The judge.
        axis: The axis.
        opinions: Its opinions; a pair is named by the key of its prompt.
        keys: Prompts of the match: all that were compared, and those with the same response twice.
    """

    match: Match
    judge: str
    axis: Axis
    opinions: list[Judgement]
    keys: list[str]


def contests(evidence: Evidence) -> list[Contest]:
    """Every match, judge and axis that there are comparisons of, in the order of the lines."""
    rows: dict[tuple[str, str, str, str], list[Row]] = {}
    every: list[Contest] = []
    for row in evidence.lines.comparisons:
        at = (row["policy"], row["split"], row.get("mode") or "sampled", row["judge"])
        rows.setdefault(at, []).append({**row, "pair": row["key"]})
    for (policy, split, mode, judge), several in rows.items():
        match = match_of(evidence, policy, split, mode)
        if match is None:
            continue
        opinions = opinions_in(several)
        equal = {row["key"] for row in several if same(evidence, match, row["key"])}
        for axis in AXES:
            own = [one for one in opinions if one.axis == axis]
            asked = {one.pair for one in own if one.probe == "compare"} | equal
            if any(one.fault != "unknown" for one in own):
                every.append(Contest(match, judge, axis, own, [row["key"] for row in several if row["key"] in asked]))
    return every


def match_of(evidence: Evidence, policy: str, split: str, mode: str) -> Match | None:
    """Who is compared in the lines of a mode; ``None`` without a start."""
    if evidence.start is None:
        return None
    if mode.startswith("matched:"):
        return Match(Cell(policy, split, "sampled"), Cell(evidence.start, split, mode), mode)
    cell = Cell(policy, split, mode)
    against = evidence.counterpart(cell)
    return None if against is None else Match(cell, against, mode)


def wins_of(evidence: Evidence, contest: Contest) -> dict[str, float]:
    """1 for a prompt that the policy wins, 0 for one that it loses, 0.5 for a tie, by key.

    Both orders together decide: two that contradict each other are a tie, and so are equal responses and, in the value, pairs
    that the judge gave no two opinions of.
    """
    votes = choices(contest.opinions)
    points = {0: 1.0, 1: 0.0, -1: 0.5}
    return {key: 0.5 if same(evidence, contest.match, key) else points[votes.get(key, -1)] for key in contest.keys}


def same(evidence: Evidence, match: Match, key: str) -> bool:
    """Whether both gave the same response."""
    return evidence.text(match.cell, key) == evidence.text(match.against, key)


def unanswered(evidence: Evidence, match: Match) -> list[str]:
    """Keys of the prompts to which the start has a response and the policy has none: nobody is asked, and the policy loses."""
    own, others = (evidence.responses.get(cell, {}) for cell in (match.cell, match.against))
    return [key for key in own if own[key].get("fault") and key in others and not others[key].get("fault")]


def comparisons(evidence: Evidence, several: Sequence[Contest]) -> list[Row]:
    """The win rate of every match, judge and axis, also for responses of equal length."""
    return [_row(evidence, contest, wins_of(evidence, contest)) for contest in several]


def _open(rate: Callable[[Sequence[float]], Interval], points: Sequence[float], unjudged: Sequence[bool]) -> Interval:
    """A rate whose interval ends where all pairs without an opinion are lost, and where all are won."""
    if not any(unjudged):
        return rate(points)
    low, high = (
        rate([end if one else point for point, one in zip(points, unjudged, strict=True)]) for end in (0.0, 1.0)
    )
    return rate(points)._replace(low=low.low, high=high.high)


def _times(rate: Interval, share: Interval) -> Interval:
    """Product of two shares; the distances to its ends are joined by their squares (MOVER, as in clustered.py)."""
    value = rate.value * share.value
    below, above = (
        math.hypot(share.value * (rate.value - rate_end), rate.value * (share.value - share_end))
        for rate_end, share_end in ((rate.low, share.low), (rate.high, share.high))
    )
    return rate._replace(value=value, low=max(value - below, 0.0), high=min(value + above, 1.0))


def _row(evidence: Evidence, contest: Contest, wins: Mapping[str, float]) -> Row:
    match = contest.match
    judged = choices(contest.opinions).keys()
    lost = unanswered(evidence, match)
    groups = evidence.groups(match.cell, [*wins, *lost])
    points = [*wins.values(), *(0.0 for _ in lost)]
    lengths = [len(evidence.text(match.cell, key)) - len(evidence.text(match.against, key)) for key in wins]
    unjudged = [not same(evidence, match, key) and key not in judged for key in wins]

    def plain(decided: Sequence[float]) -> Interval:
        return win_rate([*decided, *(0.0 for _ in lost)], groups)

    def controlled(decided: Sequence[float]) -> Interval:
        rate = length_controlled_win_rate(decided, lengths, groups[: len(wins)])
        # No response is no short one: that loss has nothing to do with a taste for length.
        if not lost:
            return rate
        if math.isnan(rate.value):  # of one image nothing follows but that it is won or lost
            rate = rate._replace(value=0.5, low=0.0, high=1.0)
        return _times(rate, clustered_share([1.0] * len(wins) + [0.0] * len(lost), groups))

    won, at_equal_length = (_open(one, list(wins.values()), unjudged) for one in (plain, controlled))
    return {
        "policy": match.cell.policy,
        "against": match.against.policy,
        "split": match.cell.split,
        "mode": match.mode,
        "judge": contest.judge,
        "axis": contest.axis,
        "wins": points.count(1.0),
        "ties": points.count(0.5),
        "losses": points.count(0.0),
        "missing": len(evidence.responses.get(match.cell, {}).keys() - wins.keys()),
        "identical": sum(same(evidence, match, key) for key in wins),
        "flips": both_orders(contest.opinions).flips.count,
        "unjudged": sum(unjudged),
        **written(won),
        "length_controlled": {name: rounded(getattr(at_equal_length, name)) for name in ("value", "low", "high")},
    }
