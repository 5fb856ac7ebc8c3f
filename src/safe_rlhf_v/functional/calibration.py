"""Does a stated probability come true as often as it says?

Equal-width bins over [0, 1] (DeGroot & Fienberg, The Statistician 32, 1983) and the expected calibration error
(Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599). Bins are sums, so those of several batches or ranks add up.
"""

import torch
from torch import Tensor


def reliability_bins(probabilities: Tensor, outcomes: Tensor, mask: Tensor, bins: int = 15) -> Tensor:
    """Per-bin sums of what was stated and what happened.

    Args:
        probabilities: Any shape, in [0, 1].
        outcomes: Same shape, bool or 0/1.
        mask: Same shape, bool, True = count.
        bins: Number of equal-width bins; the last includes 1.

    Returns:
        (3, bins) float64: count, sum of probabilities, sum of outcomes.
    """
    stated = probabilities[mask].double()  # (n,)
    index = (stated * bins).long().clamp(0, bins - 1)
    columns = torch.stack([torch.ones_like(stated), stated, outcomes[mask].double()])  # (3, n)
    return stated.new_zeros(3, bins).index_add(1, index, columns)


def calibration_error(table: Tensor) -> Tensor:
    """Mean distance of stated and observed frequency, weighted by count (ECE); NaN for an empty table.

    Args:
        table: (3, bins) of :func:`reliability_bins`.
    """
    count, stated, happened = table.unbind(0)
    return (stated - happened).abs().sum() / count.sum()
