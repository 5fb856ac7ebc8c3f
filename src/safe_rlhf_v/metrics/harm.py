"""Metrics of an ordinal guard as a detector: is P(level < boundary) on the right side, and does it come true?

The same arguments as in :mod:`safe_rlhf_v.metrics.ordinal`.
"""

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from safe_rlhf_v.functional.calibration import calibration_error, reliability_bins
from safe_rlhf_v.metrics.ordinal import LevelMetric


class HarmAccuracy(LevelMetric):
    """Share of rows on the right side of "harmful": P(level < boundary) at or above a threshold."""

    total: Tensor
    rows: Tensor

    def __init__(self, boundary: int, threshold: float = 0.5) -> None:
        """Start with nothing counted.

        Args:
            boundary: Class indices below it are harmful.
            threshold: From which probability on a row is called harmful.
        """
        super().__init__()
        self.boundary, self.threshold = boundary, threshold
        self.add_state("total", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")  # harmful, harmless
        self.add_state("rows", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor) -> None:
        """Count one batch: log_probs (N, K), levels (N,), valid (N,)."""
        log_probs, levels = self.known(log_probs, levels, valid)
        harmful = levels < self.boundary
        right = (_harm(log_probs, self.boundary) >= self.threshold) == harmful
        for i, kind in enumerate((harmful, ~harmful)):
            self.total[i] += (right & kind).sum()
            self.rows[i] += kind.sum()

    def compute(self) -> Tensor:
        """() share; NaN without rows."""
        return (self.total.sum() / self.rows.sum()).float()


class BalancedHarmAccuracy(HarmAccuracy):
    """Mean of the shares of harmful and of harmless rows called so; NaN unless both occur."""

    def compute(self) -> Tensor:
        """() balanced accuracy."""
        return (self.total / self.rows).mean().float()


class HarmCalibrationError(LevelMetric):
    """Expected calibration error of P(level < boundary) in equal-width bins."""

    higher_is_better = False
    table: Tensor

    def __init__(self, boundary: int, bins: int = 15) -> None:
        """Start with empty bins.

        Args:
            boundary: Class indices below it are harmful.
            bins: Number of bins.
        """
        super().__init__()
        self.boundary, self.bins = boundary, bins
        self.add_state("table", torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor) -> None:
        """Count one batch: log_probs (N, K), levels (N,), valid (N,)."""
        log_probs, levels = self.known(log_probs, levels, valid)
        everything = torch.ones_like(levels, dtype=torch.bool)
        self.table += reliability_bins(_harm(log_probs, self.boundary), levels < self.boundary, everything, self.bins)

    def compute(self) -> Tensor:
        """() error in 0..1; NaN without rows."""
        return calibration_error(self.table).float()


class _HarmDetection(LevelMetric):
    """Keeps P(harmful) and the truth of every row."""

    harm: list[Tensor]
    harmful: list[Tensor]

    def __init__(self, boundary: int) -> None:
        """Start with nothing kept.

        Args:
            boundary: Class indices below it are harmful.
        """
        super().__init__()
        self.boundary = boundary
        # Both float32, the type torchmetrics gives a rank that saw nothing: gathering needs equal types.
        self.add_state("harm", [], dist_reduce_fx="cat")
        self.add_state("harmful", [], dist_reduce_fx="cat")

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor) -> None:
        """Keep one batch: log_probs (N, K), levels (N,), valid (N,)."""
        log_probs, levels = self.known(log_probs, levels, valid)
        self.harm.append(_harm(log_probs, self.boundary).float())
        self.harmful.append((levels < self.boundary).float())

    def compute(self) -> Tensor:
        """() value of the metric; NaN unless harmful and harmless rows were seen."""
        nothing = torch.zeros(0, device=self.device)
        harm, harmful = (dim_zero_cat(state) if len(state) else nothing for state in (self.harm, self.harmful))
        if not 0 < harmful.sum() < len(harmful):
            return torch.full((), torch.nan, device=self.device)
        return self.measure(harm, harmful.long())

    def measure(self, harm: Tensor, harmful: Tensor) -> Tensor:
        """() value from (n,) probabilities and (n,) int64 truth with both kinds."""
        raise NotImplementedError


class LevelHarmAUROC(_HarmDetection):
    """Area under the ROC curve of P(level < boundary)."""

    def measure(self, harm: Tensor, harmful: Tensor) -> Tensor:
        """See the base."""
        return binary_auroc(harm, harmful)


class LevelHarmAUPRC(_HarmDetection):
    """Average precision of P(level < boundary)."""

    def measure(self, harm: Tensor, harmful: Tensor) -> Tensor:
        """See the base."""
        return binary_average_precision(harm, harmful)


class FPRAtRecall(_HarmDetection):
    """Smallest share of harmless rows called harmful at a threshold that finds at least this share of the harmful ones.

    Chosen on the measured data itself: for comparing models, not an operating point.
    """

    higher_is_better = False

    def __init__(self, boundary: int, recall: float = 0.95) -> None:
        """Start with nothing kept.

        Args:
            boundary: Class indices below it are harmful.
            recall: Share of harmful rows that must be found.
        """
        super().__init__(boundary)
        self.recall = recall

    def measure(self, harm: Tensor, harmful: Tensor) -> Tensor:
        """See the base."""
        found = harm[harmful == 1].sort(descending=True).values
        needed = int(torch.ceil(torch.tensor(self.recall, dtype=torch.float64) * len(found) - 1e-9))
        return (harm[harmful == 0] >= found[max(needed, 1) - 1]).float().mean()


class RecallAtFPR(_HarmDetection):
    """Largest share of harmful rows found at a threshold that calls at most this share of the harmless ones harmful.

    Chosen on the measured data itself: for comparing models, not an operating point.
    """

    def __init__(self, boundary: int, fpr: float = 0.05) -> None:
        """Start with nothing kept.

        Args:
            boundary: Class indices below it are harmful.
            fpr: Share of harmless rows that may be flagged.
        """
        super().__init__(boundary)
        self.fpr = fpr

    def measure(self, harm: Tensor, harmful: Tensor) -> Tensor:
        """See the base."""
        harmless = harm[harmful == 0].sort(descending=True).values
        allowed = int(torch.tensor(self.fpr, dtype=torch.float64) * len(harmless) + 1e-9)
        if allowed >= len(harmless):
            return torch.ones((), device=harm.device)
        return (harm[harmful == 1] > harmless[allowed]).float().mean()


def _harm(log_probs: Tensor, boundary: int) -> Tensor:
    """(N,) float64 P(level < boundary)."""
    return log_probs[:, :boundary].double().exp().sum(-1).clamp(0, 1)
