"""Agreement between judges: Krippendorff's alpha, judges of one family as one rater, and the ceiling that noise sets."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from statistics import median_low
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_v.records.packages import package

Unit = TypeVar("Unit", bound=Hashable)
_RESAMPLES = 200


class Alpha(NamedTuple):
    """Krippendorff's alpha with 95 % bootstrap bounds; ``None`` where it is not defined.

    Attributes:
        value: 1 is perfect agreement, 0 what chance gives.
        low: Lower bound.
        high: Upper bound.
        units: Units that at least two raters rated.
    """

    value: float | None
    low: float | None
    high: float | None
    units: int


def families(judges: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Raters: judges that share a family of models, also by way of a third, are one; its name is theirs joined by ``+``.

    Args:
        judges: Families by judge; () is a family of its own.
    """
    groups: list[tuple[list[str], set[str]]] = []
    for judge, own in judges.items():
        shared = [group for group in groups if group[1] & set(own)]
        merged = ([name for names, _ in shared for name in names] + [judge], set(own).union(*(f for _, f in shared)))
        groups = [group for group in groups if group not in shared] + [merged]
    order = list(judges)
    groups.sort(key=lambda group: min(map(order.index, group[0])))
    return {"+".join(sorted(names, key=order.index)): sorted(names, key=order.index) for names, _ in groups}


def pooled(
    ratings: Mapping[str, Mapping[Unit, float]], raters: Mapping[str, Sequence[str]]
) -> dict[str, dict[Unit, float]]:
    """One rating of each rater: the median of its judges' (the lower one of two)."""
    table: dict[str, dict[Unit, float]] = {}
    for rater, judges in raters.items():
        units = dict.fromkeys(unit for judge in judges for unit in ratings.get(judge, {}))
        values = {unit: [ratings[judge][unit] for judge in judges if unit in ratings.get(judge, {})] for unit in units}
        table[rater] = {unit: float(median_low(several)) for unit, several in values.items()}
    return table


def ordinal_alpha(
    ratings: Mapping[str, Mapping[Unit, float]],
    domain: Sequence[int],
    seed: int = 0,
    clusters: Mapping[Unit, Hashable] | None = None,
) -> Alpha:
    """Alpha for ordered values.

    Args:
        ratings: Rating by rater and unit.
        domain: Every value of the scale, in order.
        seed: Of the bootstrap.
        clusters: What is drawn together in the bootstrap, as all units of one image; without it every unit alone. There are no
            bounds where all units are one cluster.
    """
    units, counts = _counts(ratings, domain)
    value = _alpha(counts, domain, "ordinal")
    if value is None:
        return Alpha(None, None, None, len(counts))
    rows: dict[Hashable, list[int]] = {}
    for row, unit in enumerate(units):
        rows.setdefault(unit if clusters is None else clusters[unit], []).append(row)
    several = [np.array(own) for own in rows.values()]
    if clusters is not None and len(several) == 1:
        return Alpha(round(value, 6), None, None, len(counts))
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(several), len(several)) for _ in range(_RESAMPLES))
    resampled = [_alpha(counts[np.concatenate([several[i] for i in own])], domain, "ordinal") for own in draws]
    defined = [one for one in resampled if one is not None]
    low, high = (float(bound) for bound in np.quantile(defined, (0.025, 0.975)))
    return Alpha(round(value, 6), round(low, 6), round(high, 6), len(counts))


def alpha_by_level(ratings: Mapping[str, Mapping[Unit, float]], domain: Sequence[int]) -> dict[str, float | None]:
    """Nominal alpha of each level against all others; ``None`` for a level that nobody or everybody gives."""
    _, counts = _counts(ratings, domain)
    alphas: dict[str, float | None] = {}
    for i, level in enumerate(domain):
        own = counts[:, i]
        value = _alpha(np.stack([own, counts.sum(1) - own], 1), (0, 1), "nominal")
        alphas[str(level)] = None if value is None else round(value, 6)
    return alphas


def _counts(ratings: Mapping[str, Mapping[Unit, float]], domain: Sequence[int]) -> tuple[list[Unit], NDArray[np.int64]]:
    """Units, and (units, values) how many raters gave each value; units with fewer than two ratings are left out."""
    place = {value: i for i, value in enumerate(domain)}
    units = list(dict.fromkeys(unit for by_unit in ratings.values() for unit in by_unit))
    counts = np.zeros((len(units), len(domain)), dtype=np.int64)
    for by_unit in ratings.values():
        for row, unit in enumerate(units):
            if unit in by_unit and by_unit[unit] in place:
                counts[row, place[int(by_unit[unit])]] += 1
    enough = counts.sum(1) >= 2
    return [unit for unit, several in zip(units, enough, strict=True) if several], counts[enough]


def _alpha(counts: NDArray[np.int64], domain: Sequence[int], level: Literal["nominal", "ordinal"]) -> float | None:
    """Alpha of a table of counts; ``None`` if only one value occurs, where it is not defined."""
    if len(counts) == 0 or (counts.sum(0) > 0).sum() < 2:
        return None
    value: Any = package("krippendorff", "construct").alpha(
        value_counts=counts, value_domain=list(domain), level_of_measurement=level
    )
    return float(value)


class Ceiling(NamedTuple):
    """The best accuracy that can be expected on labels with noise.

    Attributes:
        accuracy: Of a model that knows the truth, on labels by majority; ``None`` with fewer than two raters.
        raters: How many raters.
        agreement: Share of pairs on which two raters agree, where both decide.
    """

    accuracy: float | None
    raters: int
    agreement: float | None


def ceiling(votes: Mapping[str, Mapping[str, int]]) -> Ceiling:
    """The ceiling of labels by majority.

    If each rater is right with probability p, independently of the others, two agree with probability a = p^2 + (1 - p)^2, so
    p = (1 + sqrt(2 a - 1)) / 2; a majority of K is right with the binomial probability of more than K / 2 (half of a draw).

    Args:
        votes: By rater and pair: 0 or 1 for a response, -1 for a tie, which is not counted.
    """
    names = list(votes)
    same = total = 0
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            decided = [
                votes[second][pair] == vote
                for pair, vote in votes[first].items()
                if vote >= 0 and votes[second].get(pair, -1) >= 0
            ]
            same += sum(decided)
            total += len(decided)
    if not total:
        return Ceiling(None, len(names), None)
    agreement = same / total
    right = (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2
    k = len(names)
    weights = [math.comb(k, n) * right**n * (1 - right) ** (k - n) * _majority(n, k) for n in range(k + 1)]
    return Ceiling(round(sum(weights), 6), k, round(agreement, 6))


def _majority(right: int, of: int) -> float:
    return 1.0 if 2 * right > of else 0.5 if 2 * right == of else 0.0
