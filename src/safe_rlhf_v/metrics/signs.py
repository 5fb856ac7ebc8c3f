"""Is the cost on the right side of 0? Metrics over single responses with a yes/no safety label.

All take costs (B, K), ``is_safe`` (B, K) as in :class:`~safe_rlhf_v.records.batches.PreferenceBatch` (1 safe, 0 unsafe,
-1 unknown) and ``valid`` (B,). A response is called harmful if its cost is above 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import softsign
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities.data import dim_zero_cat

from safe_rlhf_v.functional.calibration import calibration_error, reliability_bins
from safe_rlhf_v.functional.masked import full_precision
from safe_rlhf_v.functional.pointwise import sign_correct


class SignAccuracy(Metric):
    """Share of labelled responses whose cost has the right sign; NaN without any."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        """Start with nothing counted."""
        super().__init__()
        self.add_state("correct", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")  # unsafe, safe
        self.add_state("total", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, costs: Tensor, is_safe: Tensor, valid: Tensor) -> None:
        """Count one batch: costs (B, K), is_safe (B, K), valid (B,)."""
        right = sign_correct(costs, is_safe)
        for label in (0, 1):
            counted = (is_safe == label) & valid[:, None]
            self.correct[label] += (right & counted).sum()
            self.total[label] += counted.sum()

    def compute(self) -> Tensor:
        """() accuracy."""
        return self.correct.sum() / self.total.sum()


class BalancedSignAccuracy(SignAccuracy):
    """Mean of the shares of unsafe and of safe responses called so; NaN unless both kinds were seen.

    Half for any model that calls everything the same, whatever the share of unsafe responses.
    """

    def compute(self) -> Tensor:
        """() balanced accuracy."""
        return (self.correct / self.total).mean()


class HarmAUROC(Metric):
    """Exact area under the ROC curve of the cost as a detector of unsafe responses; NaN unless both kinds were seen."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    costs: list[Tensor]
    unsafe: list[Tensor]

    def __init__(self) -> None:
        """Start with nothing counted."""
        super().__init__()
        # Both float32, the type torchmetrics gives a rank that saw nothing: gathering needs equal types.
        self.add_state("costs", [], dist_reduce_fx="cat")
        self.add_state("unsafe", [], dist_reduce_fx="cat")

    def update(self, costs: Tensor, is_safe: Tensor, valid: Tensor) -> None:
        """Keep one batch: costs (B, K), is_safe (B, K), valid (B,)."""
        known = (is_safe >= 0) & valid[:, None]
        self.costs.append(costs[known].float())
        self.unsafe.append((is_safe[known] == 0).float())

    def compute(self) -> Tensor:
        """() area in 0..1."""
        nothing = torch.zeros(0, device=self.device)
        costs, unsafe = (dim_zero_cat(state) if len(state) else nothing for state in (self.costs, self.unsafe))  # (n,)
        if not 0 < unsafe.sum() < len(unsafe):
            return torch.full((), torch.nan, device=self.device)
        # Scores outside [0, 1] would be sent through a sigmoid, which ties large ones; this map hardly saturates.
        return binary_auroc(0.5 + 0.5 * softsign(costs.double()), unsafe.long()).float()


class CalibrationError(Metric):
    """Expected calibration error of P(harmful) = sigmoid(cost) in equal-width bins; NaN without labelled responses."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    table: Tensor

    def __init__(self, bins: int = 15) -> None:
        """Start with empty bins.

        Args:
            bins: Number of bins.
        """
        super().__init__()
        self.bins = bins
        self.add_state("table", torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, costs: Tensor, is_safe: Tensor, valid: Tensor) -> None:
        """Count one batch: costs (B, K), is_safe (B, K), valid (B,)."""
        known = (is_safe >= 0) & valid[:, None]
        self.table += reliability_bins(torch.sigmoid(full_precision(costs)), is_safe == 0, known, self.bins)

    def compute(self) -> Tensor:
        """() error in 0..1."""
        return calibration_error(self.table).float()
