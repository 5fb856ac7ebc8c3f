r"""Means and shares with intervals that count images and not rows, and rates corrected by an audit.

Rows of one image (several questions, several responses) are alike: an interval that counts them as independent is too narrow.
Here the *cluster* is the unit. Every function takes N rows and the cluster of each, and gives an :class:`Interval`:
:func:`clustered_mean`, :func:`clustered_share` and :func:`prediction_powered_mean` (win rates:
:mod:`~safe_rlhf_v.functional.win_rates`). Rows whose value is NaN (or ``None``) are left out; equal inputs give equal numbers.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_v.functional.clusters import (
    Codes,
    Floats,
    audited_rows,
    by_cluster,
    check_range,
    effective_clusters,
    mean_variance,
    rows_of,
    t_quantile,
)
from safe_rlhf_v.functional.intervals import clopper_pearson_upper


class Interval(NamedTuple):
    """An estimate and how far it can be trusted.

    Attributes:
        value: The estimate; NaN without a row.
        low: Lower end; NaN where one cluster cannot tell.
        high: Upper end.
        n: Rows that count.
        clusters: Clusters that they come from.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int


def clustered_mean(
    values: Sequence[float] | Floats, clusters: Sequence[Hashable], confidence: float = 0.95
) -> Interval:
    r"""The mean of all rows with a cluster-robust t interval, corrected for skewness.

    Variance and degrees of freedom: :func:`~safe_rlhf_v.functional.clusters.mean_variance`. Costs have a long tail, on whose
    side the t interval misses too often: that end is moved outward by the inverse of Hall's cubic transformation (J. R. Stat.
    Soc. B 54, 1992) with the skewness of the clusters' deviations. The other end stays the t interval's: moved inward it would
    miss far too often where few rows differ from the rest.

    Args:
        values: (N,) any finite numbers; NaN is left out.
        clusters: (N,) what groups the rows, for example the image's name.
        confidence: In (0, 1).

    Raises:
        ValueError: If values and clusters differ in length, or hold what they must not.
    """
    (x,), codes = rows_of(clusters, confidence, values=values)
    return _mean(x, codes, confidence)


def clustered_share(hits: Sequence[float] | Floats, clusters: Sequence[Hashable], confidence: float = 0.95) -> Interval:
    """A share with the Clopper-Pearson interval at its effective sample size, so that 0 of N carries an upper bound.

    The effective size is that of independent rows with the variance found, p (1 - p) / V, corrected for the few clusters that V
    comes from, and at most N (Korn & Graubard, Survey Methodology 24, 1998). Where every row is equal the variance tells
    nothing, and rows of a cluster count as one: N^2 / sum of n_g^2. One cluster of at least twice the average size widens the
    interval at most as far as if its rows were left out, and then all counted as hits, or none.

    Args:
        hits: (N,) true and false, or shares in 0..1 (probabilities, votes), for which it is conservative; NaN is left out.
        clusters: (N,) what groups the rows.
        confidence: In (0, 1).

    Raises:
        ValueError: If a hit is outside 0..1, or the arguments do not fit.
    """
    (x,), codes = rows_of(clusters, confidence, hits=hits)
    check_range(x, "hits")
    return _share(x, codes, confidence)


def prediction_powered_mean(
    judged: Sequence[float] | Floats,
    truth: Sequence[float] | Floats,
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
) -> Interval:
    r"""The mean of the truth, from a judge's value of every response and the truth of a random few of them.

    Whatever errors the judge makes, the audited rows show them: the audit must be a random sample of *these* responses. Error
    rates from other responses are of no use here, because a policy that was trained against a judge changes its errors.

    *Numbers of any size*: PPI++ (arXiv 2311.01453): the judge's mean over the n' rows without audit, times
    :math:`\lambda`, plus the audited mean of truth less :math:`\lambda` times the judge's value;
    :math:`\lambda = \operatorname{cov}(y, f) / ((1 + n/n') \operatorname{var}(f))` has the least variance: a useless judge costs
    nothing. Interval as in :func:`clustered_mean`, with the degrees of freedom of the audit.

    *Rates* (judge and truth all inside 0..1): the same estimate for a judge of two verdicts is that of
    post-stratification, :math:`\pi a + (1 - \pi) b` with the share :math:`\pi` judged 0.5 and above, and the true shares a and b
    of the audited rows of both verdicts. Their intervals (:func:`clustered_share`) are joined by the squares of their distances
    (MOVER: Zou & Donner, Stat. Med. 27, 2008; for strata Yan & Su, Stat. Biopharm. Res. 2, 2010), which stays sound for a
    small audit, a rare harm and an audit without any error. It holds also where the audit takes more of one verdict. Rows of one
    cluster move together: distances are multiplied by the cluster-robust standard error of the whole over that of independent
    parts, where it is larger.

    Args:
        judged: (N,) the judge's values; rows with NaN are left out.
        truth: (N,) NaN where a row was not audited.
        clusters: (N,) what groups the rows.
        confidence: In (0, 1).

    Returns:
        The estimate, with the rows and clusters that the judge scored; NaN without two audited clusters.

    Raises:
        ValueError: If the arguments do not fit.
    """
    f, codes, y = audited_rows(clusters, confidence, judged, truth)
    audited = ~np.isnan(y)
    n = int(audited.sum())
    groups = int(codes.max(initial=-1)) + 1
    seen = len(np.unique(codes[audited]))
    if seen < 2:
        return Interval(math.nan, math.nan, math.nan, len(f), groups)
    if f.min() >= 0 and f.max() <= 1 and y[audited].min() >= 0 and y[audited].max() <= 1:
        value, low, high = _post_stratified(f, y, codes, confidence)
        return Interval(value, low, high, len(f), groups)
    rest = len(f) - n
    variance = (1 + n / rest) * float(f.var()) if rest else 0.0
    tuned = float(np.cov(y[audited], f[audited])[0, 1]) / variance if variance > 0 else 0.0
    rectified = np.where(audited, y - tuned * f, 0.0)
    correction = float(rectified[audited].mean())
    base = float(f[~audited].mean()) if rest else 0.0
    parts = np.where(audited, (rectified - correction) / n, tuned * (f - base) / max(rest, 1))
    scale = seen / (seen - 1) * n / max(n - (tuned != 0), 1)  # the tuned factor costs a degree of freedom
    error = math.sqrt(float((np.bincount(codes, parts) ** 2).sum()) * scale)
    value = correction + tuned * base
    low, high = _skewed_ends(value, error, by_cluster(parts, codes)[0], seen, seen - 1, confidence)
    return Interval(value, low, high, len(f), groups)


def _mean(x: Floats, codes: Codes, confidence: float) -> Interval:
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    value = float(x.mean())
    deviations, sizes, squares = by_cluster(x - value, codes)
    variance, freedom = mean_variance(deviations, sizes, squares)
    groups = len(sizes)
    low, high = _skewed_ends(value, math.sqrt(variance), deviations, groups, freedom, confidence)
    return Interval(value, low, high, len(x), groups)


def _skewed_ends(
    value: float, error: float, parts: Floats, clusters: int, freedom: float, confidence: float
) -> tuple[float, float]:
    """Ends of the interval of a sum of independent parts, from the t quantiles and the skewness of the parts.

    With k the skewness of the sum, the inverse of the transformation takes x to 3 ((1 + k (x - k / 6))^(1/3) - 1) / k. It only
    widens: with two changed rows of many it would put 0 outside the interval.
    """
    if math.isnan(error):
        return math.nan, math.nan
    scaled = parts / max(float(np.abs(parts).max()), 1e-300)
    square = float((scaled**2).sum())
    k = 0.0
    if clusters > 2 and square > 0:  # the factor makes the skewness unbiased for normal values
        k = float((scaled**3).sum()) / square**1.5 * math.sqrt(clusters * (clusters - 1)) / (clusters - 2)
    quantile = t_quantile(confidence, freedom)
    above, below = (
        x if abs(k) < 1e-6 else 3 / k * (float(np.cbrt(1 + k * (x - k / 6))) - 1) for x in (quantile, -quantile)
    )
    return value - error * max(above, quantile), value - error * min(below, -quantile)


def _share(x: Floats, codes: Codes, confidence: float) -> Interval:
    interval = _share_of_all(x, codes, confidence)
    sizes = np.bincount(codes)
    largest = int(sizes.argmax()) if len(sizes) else 0
    if len(sizes) < 3 or sizes[largest] * len(sizes) < 2 * len(x):
        return interval
    # Whatever the rows of one large cluster are: the interval of the others, and all of these hits, or none.
    others = codes != largest
    rest = _share_of_all(x[others], np.unique(codes[others], return_inverse=True)[1], confidence)
    weight = 1 - rest.n / len(x)
    low = max(interval.low, (1 - weight) * rest.low)
    return interval._replace(low=low, high=min(interval.high, weight + (1 - weight) * rest.high))


def _share_of_all(x: Floats, codes: Codes, confidence: float) -> Interval:
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    sums, sizes, squares = by_cluster(x, codes)
    total = float(len(x))
    share = float(x.mean())
    variance, freedom = mean_variance(sums, sizes, squares)
    if variance > 0 and 0 < share < 1:
        few = (t_quantile(confidence, total - 1) / t_quantile(confidence, freedom)) ** 2
        effective = min(share * (1 - share) / variance * few, total)
    else:
        effective = total if variance == 0 and 0 < share < 1 else effective_clusters(sizes)
    level = 0.5 + confidence / 2
    low = 1 - clopper_pearson_upper((1 - share) * effective, effective, level)
    return Interval(share, low, clopper_pearson_upper(share * effective, effective, level), len(x), len(sums))


def _post_stratified(f: Floats, y: Floats, codes: Codes, confidence: float) -> tuple[float, float, float]:
    """See :func:`prediction_powered_mean`; a verdict without audited rows keeps the judge's mean and knows nothing of it."""
    harmful = f >= 0.5
    audited = ~np.isnan(y)
    strata = []
    for verdict in (harmful, ~harmful):
        rows = verdict & audited
        if rows.any():
            _, numbers = np.unique(codes[rows], return_inverse=True)
            strata.append(_share(y[rows], numbers, confidence)[:3])
        else:
            strata.append((float(f[verdict].mean()) if verdict.any() else 0.0, 0.0, 1.0))
    share, low, high = _share(harmful.astype(float), codes, confidence)[:3]
    (a, a_low, a_high), (b, b_low, b_high) = strata
    value = share * a + (1 - share) * b
    down, up = (share - low, high - share) if a >= b else (high - share, share - low)
    wider = _together(harmful, y, codes, (share, a, b))
    low = value - wider * math.hypot(share * (a - a_low), (1 - share) * (b - b_low), (a - b) * down)
    high = value + wider * math.hypot(share * (a_high - a), (1 - share) * (b_high - b), (a - b) * up)
    return value, max(low, 0.0), min(high, 1.0)


def _together(harmful: NDArray[np.bool_], y: Floats, codes: Codes, estimates: tuple[float, float, float]) -> float:
    """Standard error of a post-stratified share, over that of independent parts (sums of the rows' influence); at least 1."""
    share, a, b = estimates
    parts = [(harmful - share) * (a - b) / len(y)]
    for verdict, weight, mean in ((harmful, share, a), (~harmful, 1 - share, b)):
        rows = verdict & ~np.isnan(y)
        parts.append(np.where(rows, weight * (np.nan_to_num(y) - mean) / max(int(rows.sum()), 1), 0.0))
    *alone, joint = (float((np.bincount(codes, part) ** 2).sum()) for part in (*parts, sum(parts)))
    return math.sqrt(max(1.0, joint / sum(alone))) if sum(alone) > 0 else 1.0
