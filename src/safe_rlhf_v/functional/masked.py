"""Sums, means and medians over real entries only.

Masks are bool with the shape of the values, True = real; :func:`masked_mean` and :func:`masked_sum` also take
non-negative weights. Values at masked positions have no effect, NaN and infinity included: they are replaced before anything
is computed. Results are float32 (float64 for float64 input).
"""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """``x`` as float32; float64 is kept, so that references can be computed with the same code."""
    return x if x.dtype == torch.float64 else x.float()


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Weighted sum over ``dim`` (everything if None).

    Args:
        values: Any shape.
        mask: Same shape, bool or non-negative weights.
        dim: Dimension to reduce.
    """
    weighted = full_precision(values).masked_fill(mask == 0, 0.0) * mask
    return weighted.sum() if dim is None else weighted.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Weighted mean over ``dim`` (everything if None); 0 where nothing is real, still connected to the graph.

    Args:
        values: Any shape.
        mask: Same shape, bool or non-negative weights.
        dim: Dimension to reduce.
    """
    total = masked_sum(torch.ones_like(values), mask, dim)
    return masked_sum(values, mask, dim) / torch.where(total > 0, total, 1.0)


def masked_var(values: Tensor, mask: Tensor, dim: int | None = None, *, unbiased: bool = True) -> Tensor:
    """Variance of the real values over ``dim`` (everything if None); 0 where too few are real.

    Args:
        values: Any shape.
        mask: Same shape, bool.
        dim: Dimension to reduce.
        unbiased: Divide by n - 1 instead of n.
    """
    values = full_precision(values).masked_fill(~mask, 0.0)
    mean = masked_mean(values, mask, dim)
    squares = (values - (mean if dim is None else mean.unsqueeze(dim))).square()
    n = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(squares, mask, dim) / (n - int(unbiased)).clamp(min=1)


def masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """(C,) median of the real values of each column; 0 in columns without real values.

    Args:
        values: (N, C).
        mask: (N, C) bool.
    """
    columns = [column[real] for column, real in zip(full_precision(values).unbind(1), mask.unbind(1), strict=True)]
    return torch.stack([column.quantile(0.5) if len(column) else column.sum() for column in columns])


def last_valid_index(mask: Tensor) -> Tensor:
    """Position of the last True in each row, for either padding side and for masks with holes; 0 in rows without one.

    Args:
        mask: (B, T) bool.

    Returns:
        (B,) int64.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    return (positions * mask).amax(1)
