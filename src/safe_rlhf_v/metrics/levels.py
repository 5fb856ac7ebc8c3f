"""Metrics of an ordinal guard: how near the decided level is, and whether the stated distribution comes true.

Shapes: n rows, K levels, the lowest (most harmful) first.
"""

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_cohen_kappa,
    multiclass_confusion_matrix,
)

from safe_rlhf_v.functional.ordinal import median_level
from safe_rlhf_v.metrics.harm import BELOW_ONE


def level_values(log_probs: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """Every value by name; each is a scalar.

    ``level_accuracy`` and ``within_one`` are of the likeliest level. ``macro_mae`` and ``quadratic_kappa`` are of the median,
    which has the least expected absolute error. Kappa is left out where all rows and all decisions are of one level.

    Args:
        log_probs: (n, K) log-probability of each level.
        levels: (n,) int64 true class index.
    """
    k = log_probs.shape[1]
    mode = log_probs.argmax(-1)
    median = median_level(log_probs)
    values = {
        "level_accuracy": multiclass_accuracy(mode, levels, num_classes=k, average="micro"),
        "within_one": ((mode - levels).abs() <= 1).double().mean(),
        "macro_mae": macro_mae(median, levels, k),
        "ranked_probability_score": ranked_probability_score(log_probs, levels),
        "exceedance_calibration_error": exceedance_calibration_error(log_probs, levels),
    }
    if bool((torch.cat([median, levels]) != levels[0]).any()):
        values["quadratic_kappa"] = multiclass_cohen_kappa(median, levels, num_classes=k, weights="quadratic")
    return {name: value.float() for name, value in values.items()}


def macro_mae(decided: Tensor, levels: Tensor, k: int) -> Tensor:
    """() mean over the levels that occur of the mean distance of the decided level: rare levels count as much as frequent ones.

    Args:
        decided: (n,) int64 class index.
        levels: (n,) int64 true class index.
        k: Number of levels.
    """
    counts = multiclass_confusion_matrix(decided, levels, num_classes=k).double()  # rows: the true level
    index = torch.arange(k, device=levels.device)
    distances = (index[:, None] - index).abs()
    rows = counts.sum(1)
    return ((counts * distances).sum(1) / rows)[rows > 0].mean()


def ranked_probability_score(log_probs: Tensor, levels: Tensor) -> Tensor:
    r"""() mean of :math:`\sum_k (F_k - 1[y \le k])^2 / (K-1)`, in 0..1 (Epstein, J. Appl. Meteorol. 8, 1969).

    Proper, and a distant level costs more than a near one.

    Args:
        log_probs: (n, K) log-probability of each level.
        levels: (n,) int64 true class index.
    """
    stated = log_probs.double().exp().cumsum(-1)[:, :-1]  # (n, K-1)
    happened = levels[:, None] <= torch.arange(stated.shape[1], device=levels.device)
    return (stated - happened.double()).square().mean()


def exceedance_calibration_error(log_probs: Tensor, levels: Tensor, bins: int = 10) -> Tensor:
    """() expected calibration error of P(level > k), averaged over k: whether the whole distribution can be believed.

    Args:
        log_probs: (n, K) log-probability of each level.
        levels: (n,) int64 true class index.
        bins: Number of equal-width bins of each k.
    """
    above = log_probs.double().exp().flip(-1).cumsum(-1).flip(-1)[:, 1:].clamp(0, BELOW_ONE)  # (n, K-1)
    columns = above.t().contiguous()
    errors = [binary_calibration_error(p, (levels > k).long(), n_bins=bins) for k, p in enumerate(columns)]
    return torch.stack(errors).mean()
