"""P(harmful) against harmful or not: how good a detector is, and whether its probability comes true.

Cost models (P(harmful) = sigmoid(cost)) and guards (P(level < 0)) are measured by the same functions.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softsign
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
    binary_recall,
    binary_sensitivity_at_specificity,
    binary_specificity,
    binary_specificity_at_sensitivity,
)

BELOW_ONE = 1 - 2.0**-53
"""The largest float64 below 1. torchmetrics gives a probability of exactly 1 a bin of its own; here it belongs to the last bin,
as in the reliability diagram."""


def harm_values(harm: Tensor, harmful: Tensor, order: Tensor | None = None, bins: int = 15) -> dict[str, Tensor]:
    """Every value that one set of rows can give, by name; each is a scalar.

    ``accuracy`` (harmful where P > 0.5) and ``calibration_error`` (expected calibration error, equal-width bins) need a row of
    any kind. The others need harmful and harmless rows, and are left out otherwise: ``balanced_accuracy`` (mean of recall and
    specificity), ``auroc``, ``auprc`` (average precision), ``fpr_at_95_recall`` and ``recall_at_5_fpr``. The thresholds of the
    last two are chosen on the measured rows themselves: they compare models and are no operating points.

    Args:
        harm: (n,) P(harmful) in 0..1.
        harmful: (n,) int64, 1 harmful, 0 harmless.
        order: (n,) what ranks the rows instead of ``harm``, in 0..1, where ``harm`` rounds different scores to the same number.
        bins: Bins of the calibration error.
    """
    if not len(harm):
        return {}
    harm = harm.double().clamp(0, BELOW_ONE)
    order = harm if order is None else order.double()
    values = {
        "accuracy": binary_accuracy(harm, harmful),
        "calibration_error": binary_calibration_error(harm, harmful, n_bins=bins),
    }
    if 0 < int(harmful.sum()) < len(harmful):
        values |= {
            "balanced_accuracy": (binary_recall(harm, harmful) + binary_specificity(harm, harmful)) / 2,
            "auroc": binary_auroc(order, harmful),
            "auprc": binary_average_precision(order, harmful),
            "fpr_at_95_recall": 1 - binary_specificity_at_sensitivity(order, harmful, min_sensitivity=0.95)[0],
            "recall_at_5_fpr": binary_sensitivity_at_specificity(order, harmful, min_specificity=0.95)[0],
        }
    return {name: value.float() for name, value in values.items()}


def score_values(scores: Tensor, harmful: Tensor) -> dict[str, Tensor]:
    """As :func:`harm_values` for scores whose sigmoid is P(harmful): costs, or logits.

    Ranks are those of the scores themselves: the sigmoid ties scores above 37.

    Args:
        scores: (n,) any finite numbers.
        harmful: (n,) int64, 1 harmful, 0 harmless.
    """
    return harm_values(torch.sigmoid(scores.double()), harmful, order=0.5 + 0.5 * softsign(scores.double()))


def harmful_label(is_safe: Tensor) -> Tensor:
    """1 harmful, 0 safe, -1 unknown, from 1 safe, 0 harmful, -1 unknown; any shape, int64."""
    return (1 - is_safe).masked_fill(is_safe < 0, -1)


def harm_by_group(
    log_probs: Tensor, levels: Tensor, groups: Sequence[Collection[str]], boundary: int
) -> dict[str, dict[str, float]]:
    """By group: how many responses, and how well their levels and sides are judged.

    ``responses`` and ``harmful`` are counts; ``level_accuracy`` and ``harm_accuracy`` (at one half) are shares.

    Args:
        log_probs: (n, K) log-probability of each level, the lowest first.
        levels: (n,) int64 true class index.
        groups: n collections of group names; a row counts in each of its groups.
        boundary: Class indices below it are harmful.
    """
    harmful = levels < boundary
    level_right = log_probs.argmax(-1) == levels
    side_right = (log_probs[:, :boundary].double().exp().sum(-1) >= 0.5) == harmful
    table = {}
    for name in sorted({name for names in groups for name in names}):
        inside = torch.tensor([name in names for names in groups])
        table[name] = {
            "responses": float(inside.sum()),
            "harmful": float(harmful[inside].sum()),
            "level_accuracy": float(level_right[inside].double().mean()),
            "harm_accuracy": float(side_right[inside].double().mean()),
        }
    return table
