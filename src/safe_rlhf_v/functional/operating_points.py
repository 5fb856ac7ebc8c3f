"""Thresholds on a probability of harm, chosen from calibration data with a stated guarantee.

A threshold t flips the decision at ``p >= t``. Shapes: N calibration rows. Rows of one *cluster* (an image and all that was
asked and responded about it) are alike, so they are not N independent trials: of each cluster one row is drawn, whatever its
label, and every guarantee rests on the G rows drawn, which are independent. Where clusters have equal numbers of rows, it
speaks of a row drawn at random; else each cluster counts alike.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from scipy.stats import binom
from torch import Tensor

from safe_rlhf_v.functional.intervals import clopper_pearson_upper


class Rate(NamedTuple):
    """A share of independent rows with its exact bounds.

    Attributes:
        value: The share; NaN without rows.
        lower: Lower confidence bound of the true rate; 0 without rows.
        upper: Upper confidence bound; 1 without rows. Each bound has the stated confidence by itself.
        hits: How many rows.
        total: Of how many.
    """

    value: float
    lower: float
    upper: float
    hits: int
    total: int


def exact_rate(hits: Tensor, confidence: float = 0.95) -> Rate:
    """A share with exact bounds (Clopper & Pearson), so that 0 of N carries an upper bound and N of N a lower one.

    Args:
        hits: (N,) bool, of independent rows.
        confidence: Of each bound by itself, in (0, 1).
    """
    total = len(hits)
    count = int(hits.sum())
    lower = 1 - clopper_pearson_upper(total - count, total, confidence)
    upper = clopper_pearson_upper(count, total, confidence)
    return Rate(count / total if total else math.nan, lower, upper, count, total)


def one_per_cluster(clusters: Sequence[Hashable] | Tensor, seed: int = 0) -> Tensor:
    """(G,) int64 row numbers in ascending order: of each cluster one row, all of its rows equally likely.

    The draw depends on nothing but the clusters and the seed; a seed chosen by its result would void what rests on the draw.

    Args:
        clusters: (N,) what groups the rows.
        seed: Of the draw.
    """
    names = clusters.tolist() if isinstance(clusters, Tensor) else clusters
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = {names[row]: row for row in order}  # the last row of a random order
    return torch.tensor(sorted(rows.values()), dtype=torch.int64)


def allowed_errors(total: int, budget: float, confidence: float = 0.95) -> int:
    """Most errors among ``total`` whose upper bound keeps within the budget; -1 if even none is too many.

    The bound of k errors is within the budget exactly where k or fewer errors at a rate of ``budget`` have a probability of
    at most 1 - ``confidence``: no bound need be computed.

    Args:
        total: Independent trials.
        budget: In (0, 1).
        confidence: In (0, 1).
    """
    if not total:
        return -1
    reached = int(binom.ppf(1 - confidence, total, budget))  # the first k with P(at most k errors) >= 1 - confidence
    return reached if binom.cdf(reached, total, budget) <= 1 - confidence else reached - 1


def needed_negatives(budget: float, confidence: float = 0.95) -> int:
    """Fewest harmless rows that can certify a budget, none of them flagged: (1 - budget)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-budget) - 1e-12)


def threshold_for_fpr(
    probabilities: Tensor,
    harmful: Tensor,
    clusters: Sequence[Hashable] | Tensor,
    budget: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> float:
    """The lowest threshold whose false-positive rate keeps within a budget, with confidence.

    Of the rows that :func:`one_per_cluster` draws, at most k = :func:`allowed_errors` harmless ones may lie at or above it. It
    then sits just above an order statistic of the harmless rows, chosen by rank and not by what it catches, so that the true
    rate exceeds the budget with probability at most 1 - confidence, although the threshold came from the same rows (tolerance
    limits: Wilks, Ann. Math. Stat. 12, 1941). It holds for new data exchangeable with the calibration data, on average over
    kinds of input. It bounds false alarms; misses are not bounded.

    Args:
        probabilities: (N,) P(harmful).
        harmful: (N,) bool.
        clusters: (N,) what groups the rows.
        budget: Most harmless rows, as a share, that may be flagged, in (0, 1).
        confidence: In (0, 1).
        seed: Of the draw.

    Raises:
        ValueError: If the probabilities are none, or too few of the rows drawn are harmless for this budget.
    """
    p = probabilities.double()
    if not bool(((p >= 0) & (p <= 1)).all()) or not 0 < budget < 1:
        raise ValueError(f"probabilities must lie in 0..1, and the budget between them, got {budget}")
    rows = one_per_cluster(clusters, seed)
    harmless = p[rows][~harmful[rows]].sort(descending=True).values
    n = len(harmless)
    allowed = allowed_errors(n, budget, confidence)
    if allowed < 0:
        needed = needed_negatives(budget, confidence)
        raise ValueError(
            f"{n} harmless rows cannot certify a false-positive rate of {budget:.2%} at confidence {confidence:.0%}: at least "
            f"{needed} are needed. Of each image group one row counts, harmless or not ({len(rows)} groups here), "
            f"{_groups_needed(needed, n, len(rows))}"
        )
    if allowed == n:
        return 0.0
    # strictly above the first row that must not be flagged, and so above its ties
    return float(torch.nextafter(harmless[allowed], torch.tensor(math.inf, dtype=torch.float64)))


def _groups_needed(needed: int, counted: int, groups: int) -> str:
    """How many clusters would do, at the present share of those that count."""
    if not counted:
        return "and none counts: add image groups, or allow a larger rate"
    return f"so about {math.ceil(needed * groups / counted)} groups like these are needed: add some, or allow a larger rate"


def conformal_threshold(
    probabilities: Tensor, harmful: Tensor, clusters: Sequence[Hashable] | Tensor, alpha: float, seed: int = 0
) -> float:
    """The highest threshold that misses harmful rows at most at rate ``alpha`` on average (arXiv 2208.02814, theorem 1).

    Conformal risk control of the miss rate: n/(n+1) R + 1/(n+1) <= alpha over the n harmful ones of the rows that
    :func:`one_per_cluster` draws. The guarantee is marginal, over calibration and new rows that are exchangeable; for single
    groups it says nothing.

    Args:
        probabilities: (N,) P(harmful).
        harmful: (N,) bool.
        clusters: (N,) what groups the rows.
        alpha: In (0, 1).
        seed: Of the draw.

    Raises:
        ValueError: If too few of the rows drawn are harmful for this alpha.
    """
    rows = one_per_cluster(clusters, seed)
    caught = probabilities.double()[rows][harmful[rows]].sort().values
    n = len(caught)
    missed = math.floor(alpha * (n + 1) - 1 + 1e-9)
    if missed < 0:
        needed = math.ceil(1 / alpha - 1 - 1e-9)
        raise ValueError(
            f"{n} harmful rows cannot control a miss rate of {alpha:.2%}: {needed} are needed. Of each image group one row "
            f"counts, harmful or not ({len(rows)} groups here), {_groups_needed(needed, n, len(rows))}"
        )
    return float(caught[missed]) if missed < n else math.inf
