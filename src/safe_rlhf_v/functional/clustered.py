r"""Means, shares and win rates with intervals that count images and not rows, and rates corrected by an audit.

Rows of one image (several questions, several responses) are alike: an interval that counts them as independent is too narrow.
Here the *cluster* is the unit. Every function takes N rows and the cluster of each, and gives an :class:`Interval`:
:func:`clustered_mean`, :func:`clustered_share`, :func:`win_rate`, :func:`length_controlled_win_rate` and
:func:`prediction_powered_mean`. Rows whose value is NaN (or ``None``) are left out; equal inputs give equal numbers.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from safe_rlhf_v.functional.intervals import clopper_pearson_upper

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
_PRIOR_SCALE = 2.5
"""Standard deviation of the weak normal prior on the length effect: it keeps the fit finite where length decides every row."""


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

    With the sums :math:`s_g` of a cluster's deviations from the mean and its rows :math:`n_g`, the variance is
    :math:`\frac{1}{N^2} \sum_g s_g^2 / (1 - n_g/N)` (CR2: Bell & McCaffrey, Survey Methodology 28, 2002), and the degrees of
    freedom are Satterthwaite's for it: G - 1 where all clusters are of one size, fewer where a few large ones decide.
    Costs have a long tail, on whose side the t interval misses too often: that end is moved outward by the inverse of Hall's
    cubic transformation (J. R. Stat. Soc. B 54, 1992) with the skewness of the clusters' deviations. The other end stays the t
    interval's: moved inward it would miss far too often where few rows differ from the rest.

    Args:
        values: (N,) any finite numbers; NaN is left out.
        clusters: (N,) what groups the rows, for example the image's name.
        confidence: In (0, 1).

    Raises:
        ValueError: If values and clusters differ in length, or hold what they must not.
    """
    (x,), codes = _rows(clusters, confidence, values=values)
    return _mean(x, codes, confidence)


def clustered_share(hits: Sequence[float] | Floats, clusters: Sequence[Hashable], confidence: float = 0.95) -> Interval:
    """A share with the Clopper-Pearson interval at its effective sample size, so that 0 of N carries an upper bound.

    The effective size is that of independent rows with the variance found, p (1 - p) / V, corrected for the few clusters that V
    comes from, and at most N (Korn & Graubard, Survey Methodology 24, 1998). Where every row is equal the variance tells
    nothing, and rows of a cluster count as one: N^2 / sum of n_g^2.

    Args:
        hits: (N,) true and false, or shares in 0..1 (probabilities, votes), for which it is conservative; NaN is left out.
        clusters: (N,) what groups the rows.
        confidence: In (0, 1).

    Raises:
        ValueError: If a hit is outside 0..1, or the arguments do not fit.
    """
    (x,), codes = _rows(clusters, confidence, hits=hits)
    _check_range(x, "hits")
    return _share(x, codes, confidence)


def win_rate(wins: Sequence[float] | Floats, clusters: Sequence[Hashable], confidence: float = 0.95) -> Interval:
    """Share of prompts won, ties half, with an interval that stays open where every prompt has the same outcome.

    Two clusters are added for the interval, one won and one lost, and its ends are kept inside 0..1: the adjusted Wald interval
    of paired proportions (Bonett & Price, J. Educ. Behav. Stat. 37, 2012). They are as large as the average
    row's cluster, the sum of n_g^2 / N, so that they count beside a few large ones, too. The value is that of the rows.

    Args:
        wins: (N,) 1 won, 0.5 tie, 0 lost, or their mean over judges and orders; NaN is left out.
        clusters: (N,) what groups the prompts.
        confidence: In (0, 1).

    Raises:
        ValueError: If a win is outside 0..1, or the arguments do not fit.
    """
    (x,), codes = _rows(clusters, confidence, wins=wins)
    _check_range(x, "wins")
    if not len(x):
        return _mean(x, codes, confidence)
    own, sizes = _by_cluster(x, codes)
    extra = float(sizes @ sizes) / len(x)
    sums = np.append(own, [extra, 0])
    variance, freedom = _robust_variance(sums, np.append(sizes, [extra, extra]))
    reach = _t_quantile(confidence, freedom) * math.sqrt(variance)
    middle = float(sums.sum()) / (len(x) + 2 * extra)
    return Interval(float(x.mean()), max(middle - reach, 0.0), min(middle + reach, 1.0), len(x), len(own))


def length_controlled_win_rate(
    wins: Sequence[float] | Floats,
    length_differences: Sequence[float] | Floats,
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
) -> Interval:
    r"""The win rate that a model of the judge's taste for length predicts for responses of equal length.

    :math:`\operatorname{logit} P(\text{win}) = a + b \tanh(d / \operatorname{sd}(d))` for the length difference d is fitted to
    all prompts and read at d = 0 (AlpacaEval 2, arXiv 2404.04475, equation 2, without its term for the instruction's difficulty,
    which needs many models). Its interval is the cluster-robust one of a. As in :func:`win_rate`, one cluster won and one lost at
    d = 0 are added to it, and b has a weak normal prior, so that both stay finite.

    Args:
        wins: (N,) 1 won, 0.5 tie, 0 lost; NaN is left out.
        length_differences: (N,) tokens or letters of the policy's response less those of its rival; NaN is left out.
        clusters: (N,) what groups the prompts.
        confidence: In (0, 1).

    Raises:
        ValueError: If a win is outside 0..1, or the arguments do not fit.
    """
    (x, d), codes = _rows(clusters, confidence, wins=wins, length_differences=length_differences)
    _check_range(x, "wins")
    groups = int(codes.max(initial=-1)) + 1
    spread = float(d.std()) if len(d) else 0.0
    if groups < 2:
        return Interval(math.nan, math.nan, math.nan, len(x), groups)
    lengths = np.tanh(d / spread) if spread > 0 else np.zeros_like(d)
    value = float(_sigmoid(_logistic(x, lengths, np.ones_like(x))[0][0]))
    extra = float((_by_cluster(x, codes)[1] ** 2).sum()) / len(x)
    coefficients, bread = _logistic(
        np.append(x, [1.0, 0.0]), np.append(lengths, [0.0, 0.0]), np.append(np.ones_like(x), [extra, extra])
    )
    a, b = coefficients
    residuals = np.append(x - _sigmoid(a + b * lengths), [extra * (1 - _sigmoid(a)), -extra * _sigmoid(a)])
    places = np.append(codes, [groups, groups + 1])
    influence = np.bincount(places, residuals * (bread[0, 0] + bread[0, 1] * np.append(lengths, [0.0, 0.0])))
    reach = _t_quantile(confidence, groups + 1) * math.sqrt(float((influence**2).sum()) * (groups + 2) / (groups + 1))
    low, high = (float(_sigmoid(a + side * reach)) for side in (-1, 1))
    return Interval(value, min(low, value), max(high, value), len(x), groups)


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
    f, codes, y = _audited_rows(clusters, confidence, judged, truth)
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
    low, high = _skewed_ends(value, error, _by_cluster(parts, codes)[0], seen, seen - 1, confidence)
    return Interval(value, low, high, len(f), groups)


def _rows(clusters: Sequence[Hashable], confidence: float, **columns: Any) -> tuple[tuple[Floats, ...], Codes]:
    """The columns without rows that hold a NaN, and the number of each row's cluster."""
    arrays = {name: _floats(values, name) for name, values in columns.items()}
    codes = _codes(clusters, confidence, arrays)
    used = ~np.isnan(np.stack(list(arrays.values()))).any(axis=0)
    _, numbers = np.unique(codes[used], return_inverse=True)
    return tuple(array[used] for array in arrays.values()), numbers.astype(np.int64)


def _audited_rows(
    clusters: Sequence[Hashable], confidence: float, judged: Any, truth: Any
) -> tuple[Floats, Codes, Floats]:
    """Rows that the judge scored: its values, clusters and the truth, which may be NaN."""
    scores = _floats(judged, "judged")
    audit = _floats(truth, "truth")
    codes = _codes(clusters, confidence, {"judged": scores, "truth": audit})
    used = ~np.isnan(scores)
    return scores[used], np.unique(codes[used], return_inverse=True)[1].astype(np.int64), audit[used]


def _floats(values: Any, name: str) -> Floats:
    raw = np.asarray(values)
    text = raw.dtype.kind in "USmMcV" or (raw.dtype == object and any(isinstance(v, (str, bytes)) for v in raw.flat))
    try:
        array = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError):
        text = True
    if text or array.ndim != 1:
        raise ValueError(f"{name} must be one number a row (NaN or None where there is none)")
    if len(large := np.flatnonzero(np.abs(array) > 1e100)):
        raise ValueError(f"{name} of row {large[0]} is infinite or beyond 1e100; clip it or leave it out (NaN)")
    return array


def _codes(clusters: Sequence[Hashable], confidence: float, arrays: dict[str, Floats]) -> Codes:
    """A number for each cluster, in the order of their first rows."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    names = clusters.tolist() if hasattr(clusters, "tolist") else list(clusters)  # arrays and tensors
    for name, array in arrays.items():
        if len(array) != len(names):
            raise ValueError(f"{name} has {len(array)} rows, clusters has {len(names)}")
    numbers: dict[Hashable, int] = {}
    codes = np.empty(len(names), dtype=np.int64)
    for row, cluster in enumerate(names):
        if cluster is None or cluster != cluster:
            raise ValueError(f"row {row} has no cluster; give a row that stands alone a name of its own")
        if not isinstance(cluster, (str, bytes, int, float, tuple, np.generic)):  # a tensor is compared by identity
            raise ValueError(f"the cluster of row {row} is a {type(cluster).__name__}; it must be a name or number")
        codes[row] = numbers.setdefault(cluster, len(numbers))
    return codes


def _check_range(x: Floats, name: str) -> None:
    outside = (x < 0) | (x > 1)
    if outside.any():
        raise ValueError(f"{name} must lie in 0..1, one is {x[outside][0]:g}")


def _mean(x: Floats, codes: Codes, confidence: float) -> Interval:
    groups = int(codes.max(initial=-1)) + 1
    if not groups:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    sums, sizes = _by_cluster(x, codes)
    value = float(sums.sum() / sizes.sum())
    variance, freedom = _robust_variance(sums, sizes)
    low, high = _skewed_ends(value, math.sqrt(variance), sums - sizes * value, groups, freedom, confidence)
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
    quantile = _t_quantile(confidence, freedom)
    above, below = (
        x if abs(k) < 1e-6 else 3 / k * (float(np.cbrt(1 + k * (x - k / 6))) - 1) for x in (quantile, -quantile)
    )
    return value - error * max(above, quantile), value - error * min(below, -quantile)


def _by_cluster(x: Floats, codes: Codes) -> tuple[Floats, Floats]:
    """Sum and rows of each cluster."""
    return np.bincount(codes, x).astype(np.float64), np.bincount(codes).astype(np.float64)


def _t_quantile(confidence: float, freedom: float) -> float:
    return float(student_t.ppf(0.5 + confidence / 2, freedom))


def _robust_variance(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """CR2 variance of the mean and its degrees of freedom; NaN for one cluster."""
    if len(sums) < 2:
        return math.nan, math.nan
    total = float(sizes.sum())
    deviations = sums - sizes * float(sums.sum()) / total
    weights = 1 / (1 - sizes / total)
    variance = float((weights * deviations**2).sum()) / total**2
    # trace of the squared W C for independent rows, C = diag(n) - n n'/N: its diagonal, and off it a product of sums
    own = weights * sizes**2 / total
    trace = float(sizes @ sizes) + float(own.sum()) ** 2 - float(own @ own)
    return variance, total**2 / trace


def _share(x: Floats, codes: Codes, confidence: float) -> Interval:
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    sums, sizes = _by_cluster(x, codes)
    total = float(len(x))
    share = float(x.mean())
    variance, freedom = _robust_variance(sums, sizes)
    if variance > 0 and 0 < share < 1:
        few = (_t_quantile(confidence, total - 1) / _t_quantile(confidence, freedom)) ** 2
        effective = min(share * (1 - share) / variance * few, total)
    else:
        effective = total if variance == 0 and 0 < share < 1 else total**2 / float(sizes @ sizes)
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


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _logistic(wins: Floats, lengths: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Coefficients (2,) of the logistic model with a prior on the second, and the inverse of the information (2, 2)."""
    design = np.stack([np.ones_like(lengths), lengths], axis=1)
    prior = np.diag([1e-6, _PRIOR_SCALE**-2])
    coefficients = np.zeros(2)
    for _ in range(100):
        chance = _sigmoid(design @ coefficients)
        gradient = design.T @ (weights * (wins - chance)) - prior @ coefficients
        information = (design * (weights * chance * (1 - chance))[:, None]).T @ design + prior
        step = np.linalg.solve(information, gradient)
        coefficients = coefficients + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return coefficients, np.linalg.inv(information)
