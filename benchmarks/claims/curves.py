"""Curves of one seed, and what six seeds say about a difference: pure functions."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from safe_rlhf_v.functional.clustered import Interval, clustered_mean

Point = tuple[float, float]
Outcome = Literal["passes", "fails", "undecided"]


def between(curve: Sequence[Point], x: float) -> float | None:
    """Y at x of the points joined in the order of x; ``None`` outside their range.

    Args:
        curve: (x, y); points of equal x count as their mean.
        x: Where.
    """
    by_x: dict[float, list[float]] = {}
    for at, y in curve:
        by_x.setdefault(at, []).append(y)
    points = [(at, sum(ys) / len(ys)) for at, ys in sorted(by_x.items())]
    return crossing(points, x)


def crossing(path: Sequence[Point], x: float) -> float | None:
    """Y where a path first reaches x, linear between its points, which stand in the order of time; ``None`` if it never does.

    Args:
        path: (x, y).
        x: Where.
    """
    if path and path[0][0] == x:
        return path[0][1]
    for (x0, y0), (x1, y1) in pairwise(path):
        if min(x0, x1) <= x <= max(x0, x1):
            share = (x - x0) / (x1 - x0) if x1 != x0 else 0.0
            return y0 + share * (y1 - y0)
    return None


def over_seeds(values: Sequence[float | None]) -> Interval:
    """Mean of the seeds that have a value, with its 95 % t interval."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return clustered_mean(known, range(len(known)))


def outcome(interval: Interval, above: float | None = None, below: float | None = None) -> Outcome:
    """Whether a claim holds: that a difference is above a number, or below one.

    Args:
        interval: Of the difference.
        above: The claim is that it is above this.
        below: The claim is that it is below this.
    """
    if above is not None:
        return "passes" if interval.low > above else "fails" if interval.high < above else "undecided"
    assert below is not None
    return "passes" if interval.high < below else "fails" if interval.low > below else "undecided"


def of_verdicts(verdicts: Sequence[str]) -> Outcome:
    """A budget is kept if it is met on all seeds, and not kept if it is broken on one."""
    if not verdicts:
        return "undecided"
    return "fails" if "broken" in verdicts else "passes" if {*verdicts} == {"met"} else "undecided"
