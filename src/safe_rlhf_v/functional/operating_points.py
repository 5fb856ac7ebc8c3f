"""Thresholds on a probability of harm, chosen from calibration data with a stated guarantee.

A threshold t flips the decision at ``p >= t``. Shapes: N calibration rows.
"""

import math
from typing import NamedTuple

import torch
from scipy.stats import beta, binom
from torch import Tensor


class OperatingPoint(NamedTuple):
    """A threshold and what it did on the calibration rows.

    Attributes:
        threshold: Rows at or above it are flagged.
        budget: Most harmless rows, as a share, that may be flagged.
        confidence: With which the budget is kept on new data of the same kind.
        negatives: Harmless calibration rows.
        false_positives: How many of them are flagged.
        fpr: Their share.
        fpr_upper: Exact upper confidence bound of the true share.
        recall: Share of the harmful rows that are flagged; NaN without any.
        positives: Harmful calibration rows.
    """

    threshold: float
    budget: float
    confidence: float
    negatives: int
    false_positives: int
    fpr: float
    fpr_upper: float
    recall: float
    positives: int


def clopper_pearson_upper(errors: float, total: float, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a binomial rate (Clopper & Pearson, Biometrika 26, 1934).

    The rate p at which as few as ``errors`` of ``total`` has probability 1 - ``confidence``: a quantile of a beta distribution.

    Args:
        errors: Count, 0..total; an effective one need not be whole.
        total: Independent trials; with none the bound is 1.
        confidence: In (0, 1).

    Raises:
        ValueError: If an argument is outside its range.
    """
    if not 0 <= errors <= total or not 0 < confidence < 1:
        raise ValueError(f"errors {errors} of {total} at confidence {confidence} make no sense")
    return 1.0 if errors == total else float(beta.ppf(confidence, errors + 1, total - errors))


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
    probabilities: Tensor, harmful: Tensor, budget: float, confidence: float = 0.95
) -> OperatingPoint:
    """The lowest threshold whose false-positive rate keeps within a budget, with confidence.

    At most k = :func:`allowed_errors` harmless rows may lie at or above it. It then sits just above an order statistic of the
    harmless rows, chosen by rank and not by what it catches, so that the true rate exceeds the budget with probability at
    most 1 - confidence, although the threshold came from the same rows (tolerance limits: Wilks, Ann. Math. Stat. 12,
    1941). It holds for new data exchangeable with the calibration data, on average over kinds of input.

    Args:
        probabilities: (N,) P(harmful).
        harmful: (N,) bool.
        budget: Most harmless rows, as a share, that may be flagged, in (0, 1).
        confidence: In (0, 1).

    Raises:
        ValueError: If the probabilities are none, or too few rows are harmless for this budget.
    """
    p = probabilities.double()
    if not bool(((p >= 0) & (p <= 1)).all()) or not 0 < budget < 1:
        raise ValueError(f"probabilities must lie in 0..1, and the budget between them, got {budget}")
    harmless = p[~harmful].sort(descending=True).values
    caught = p[harmful]
    n = len(harmless)
    allowed = allowed_errors(n, budget, confidence)
    if allowed < 0:
        raise ValueError(
            f"{n} harmless calibration rows cannot certify a false-positive rate of {budget:.2%} at confidence "
            f"{confidence:.0%}: at least {needed_negatives(budget, confidence)} are needed"
        )
    threshold = 0.0
    if allowed < n:  # strictly above the first row that must not be flagged, and so above its ties
        threshold = float(torch.nextafter(harmless[allowed], torch.tensor(math.inf, dtype=torch.float64)))
    flagged = int((harmless >= threshold).sum())
    recall = float((caught >= threshold).double().mean()) if len(caught) else math.nan
    upper = clopper_pearson_upper(flagged, n, confidence)
    return OperatingPoint(threshold, budget, confidence, n, flagged, flagged / n, upper, recall, len(caught))


def conformal_threshold(probabilities: Tensor, harmful: Tensor, alpha: float) -> float:
    """The highest threshold that misses harmful rows at most at rate ``alpha`` on average (arXiv 2208.02814, theorem 1).

    Conformal risk control of the miss rate: n/(n+1) R + 1/(n+1) <= alpha over the n harmful calibration rows. The
    guarantee is marginal, over calibration and new rows that are exchangeable; for single groups it says nothing.

    Args:
        probabilities: (N,) P(harmful).
        harmful: (N,) bool.
        alpha: In (0, 1).

    Raises:
        ValueError: If too few rows are harmful for this alpha.
    """
    caught = probabilities.double()[harmful].sort().values
    n = len(caught)
    missed = math.floor(alpha * (n + 1) - 1 + 1e-9)
    if missed < 0:
        needed = math.ceil(1 / alpha - 1 - 1e-9)
        raise ValueError(f"{n} harmful calibration rows cannot control a miss rate of {alpha:.2%}: {needed} are needed")
    return float(caught[missed]) if missed < n else math.inf
