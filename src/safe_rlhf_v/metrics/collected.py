"""One way for rows to reach a metric: rows without a label are left out, and a metric without rows has no value."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Values = Tensor | Mapping[str, Tensor]


class Collected(Metric):
    """Keeps the labelled rows of an evaluation, of all batches and ranks, and measures them together at the end.

    What is measured is a pure function of all rows, mostly one of ``torchmetrics.functional``. So the value cannot depend on
    batches or ranks, and padding rows and unknown labels never reach the function.
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, measure: Callable[[Tensor, Tensor], Values], width: int = 1) -> None:
        """Start without rows.

        Args:
            measure: Called with (n,) or, for a larger width, (n, width) float64 statements and (n,) int64 labels, n > 0. Gives a
                scalar, or several by name.
            width: Numbers that a model states per row.
        """
        super().__init__()
        self.set_dtype(
            torch.float64
        )  # ranks without any row join with this type: gathering needs equal types and shapes
        self.measure = measure
        self.width = width
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, stated: Tensor, label: Tensor, valid: Tensor) -> None:
        """Keep one batch.

        Args:
            stated: (B, ...) numbers, or (B, ..., width) for a width above 1.
            label: (B, ...) int64, -1 unknown.
            valid: (B,) bool, False marks a padding row.
        """
        counted = (label >= 0) & valid.view(-1, *[1] * (label.dim() - 1))
        numbers = stated.detach()[counted].double().view(-1, self.width)
        self.rows.append(torch.cat([numbers, label[counted][:, None].double()], dim=1).flatten())

    def compute(self) -> Values | None:
        """What :attr:`measure` gives; ``None`` without a row; NaN, which torchmetrics would hide, if a statement is NaN."""
        rows = dim_zero_cat(self.rows).view(-1, self.width + 1) if len(self.rows) else torch.zeros(0, self.width + 1)
        if not len(rows):
            return None
        stated = rows[:, 0] if self.width == 1 else rows[:, :-1]
        values = self.measure(stated.nan_to_num(), rows[:, -1].long())
        if not stated.isnan().any():
            return values
        if isinstance(values, Tensor):
            return torch.full_like(values, torch.nan)
        return {name: torch.full_like(value, torch.nan) for name, value in values.items()}


def mean(stated: Tensor, label: Tensor) -> Tensor:
    """() mean of what is stated about the labelled rows.

    Args:
        stated: (n,) numbers.
        label: (n,), not looked at.
    """
    return stated.mean().float()


def count(stated: Tensor, label: Tensor) -> Tensor:
    """() number of labelled rows.

    Args:
        stated: (n,), not looked at.
        label: (n,), not looked at.
    """
    return stated.new_tensor(len(stated))
