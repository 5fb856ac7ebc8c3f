"""Win rates with intervals that count images and not rows, also for responses of equal length."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit

from safe_rlhf_v.functional.clustered import Interval
from safe_rlhf_v.functional.clusters import (
    Floats,
    by_cluster,
    check_range,
    few_clusters,
    mean_variance,
    rows_of,
    t_quantile,
)

_PRIOR_SCALE = 2.5
"""Standard deviation of the weak normal prior on the length effect: it keeps the fit finite where length decides every row."""


def win_rate(wins: Sequence[float] | Floats, clusters: Sequence[Hashable], confidence: float = 0.95) -> Interval:
    """Share of prompts won, ties half, with an interval that stays open where every prompt has the same outcome.

    Two clusters are added for the interval, one won and one lost, and its ends are kept inside 0..1: the adjusted Wald interval
    of paired proportions (Bonett & Price, J. Educ. Behav. Stat. 37, 2012). They are as large as the average
    row's cluster, the sum of n_g^2 / N, so that they count beside a few large ones, too. The value is that of the rows. Of so few
    clusters that even all won decide nothing (below 6 at 95 %) the interval holds 0.5.

    Args:
        wins: (N,) 1 won, 0.5 tie, 0 lost, or their mean over judges and orders; NaN is left out.
        clusters: (N,) what groups the prompts.
        confidence: In (0, 1).

    Raises:
        ValueError: If a win is outside 0..1, or the arguments do not fit.
    """
    (x,), codes = rows_of(clusters, confidence, wins=wins)
    check_range(x, "wins")
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    own, sizes, squares = by_cluster(x, codes)
    extra = float(sizes @ sizes) / len(x)
    sums = np.append(own, [extra, 0])
    variance, freedom = mean_variance(sums, np.append(sizes, [extra, extra]), np.append(squares, [extra, 0]))
    reach = t_quantile(confidence, freedom) * math.sqrt(variance)
    middle = float(sums.sum()) / (len(x) + 2 * extra)
    low, high = _undecided(max(middle - reach, 0.0), min(middle + reach, 1.0), sizes, confidence)
    return Interval(float(x.mean()), low, high, len(x), len(own))


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
    (x, d), codes = rows_of(clusters, confidence, wins=wins, length_differences=length_differences)
    check_range(x, "wins")
    groups = int(codes.max(initial=-1)) + 1
    spread = float(d.std()) if len(d) else 0.0
    if groups < 2:
        return Interval(math.nan, math.nan, math.nan, len(x), groups)
    lengths = np.tanh(d / spread) if spread > 0 else np.zeros_like(d)
    value = float(expit(_logistic(x, lengths, np.ones_like(x))[0][0]))
    _, sizes, _ = by_cluster(x, codes)
    extra = float(sizes @ sizes) / len(x)
    wins_and_two = np.append(x, [1.0, 0.0])
    lengths_and_two = np.append(lengths, [0.0, 0.0])
    weights = np.append(np.ones_like(x), [extra, extra])
    (a, b), bread = _logistic(wins_and_two, lengths_and_two, weights)
    influence = (wins_and_two - expit(a + b * lengths_and_two)) * (bread[0, 0] + bread[0, 1] * lengths_and_two)
    places = np.append(codes, [groups, groups + 1])
    sums, weighed, squares = (np.bincount(places, weights * influence**power).astype(np.float64) for power in (1, 0, 2))
    variance, freedom = mean_variance(sums, weighed, squares)
    reach = t_quantile(confidence, freedom) * math.sqrt(variance) * float(weights.sum())
    low, high = (float(expit(a + side * reach)) for side in (-1, 1))
    low, high = _undecided(min(low, value), max(high, value), sizes, confidence)
    return Interval(value, low, high, len(x), groups)


def _undecided(low: float, high: float, sizes: Floats, confidence: float) -> tuple[float, float]:
    """The ends; around one half where there are too few clusters to decide."""
    return (min(low, 0.5), max(high, 0.5)) if few_clusters(sizes, confidence) else (low, high)


def _logistic(wins: Floats, lengths: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Coefficients (2,) of the logistic model with a prior on the second, and the inverse of the information (2, 2)."""
    design = np.stack([np.ones_like(lengths), lengths], axis=1)
    prior = np.diag([1e-6, _PRIOR_SCALE**-2])
    coefficients = np.zeros(2)
    for _ in range(100):
        chance = expit(design @ coefficients)
        gradient = design.T @ (weights * (wins - chance)) - prior @ coefficients
        information = (design * (weights * chance * (1 - chance))[:, None]).T @ design + prior
        step = np.linalg.solve(information, gradient)
        coefficients = coefficients + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return coefficients, np.linalg.inv(information)
