"""Metrics of an ordinal guard: levels, harmful or not, and whether the stated probabilities come true.

All take log-probabilities (N, K) of the levels, lowest (most harmful) first, the true class index (N,) int64 (-1 unknown) and
``valid`` (N,) bool; unknown and invalid rows never count. States are sums, or gathered lists, so several ranks give what one
process gives.
"""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from safe_rlhf_v.functional.calibration import calibration_error, reliability_bins
from safe_rlhf_v.functional.ordinal import median_level


class _LevelMetric(Metric):
    """What all of them share."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    @staticmethod
    def known(log_probs: Tensor, levels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(n, K) log-probabilities and (n,) levels of the rows that count."""
        keep = valid & (levels >= 0)
        return log_probs[keep].detach(), levels[keep]


class LevelConfusion(_LevelMetric):
    """(K, K) counts, rows the true level, columns the decided one."""

    counts: Tensor

    def __init__(self, levels: int, decision: Literal["mode", "median"] = "mode") -> None:
        """Start with nothing counted.

        Args:
            levels: K.
            decision: The likeliest level, or the median of the distribution (least expected absolute error).
        """
        super().__init__()
        self.decision = decision
        self.add_state("counts", torch.zeros(levels, levels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor) -> None:
        """Count one batch: log_probs (N, K), levels (N,), valid (N,)."""
        log_probs, levels = self.known(log_probs, levels, valid)
        decided = log_probs.argmax(-1) if self.decision == "mode" else median_level(log_probs)
        k = len(self.counts)
        self.counts += torch.bincount(levels * k + decided, minlength=k * k).view(k, k)

    def compute(self) -> Tensor:
        """(K, K) int64 counts."""
        return self.counts

    def distances(self) -> Tensor:
        """(K, K) float64 absolute difference of the levels."""
        k = torch.arange(len(self.counts), device=self.counts.device, dtype=torch.float64)
        return (k[:, None] - k).abs()


class LevelAccuracy(LevelConfusion):
    """Share of rows whose likeliest level is the true one."""

    def compute(self) -> Tensor:
        """() accuracy; NaN without rows."""
        return self.counts.diagonal().sum() / self.counts.sum()


class WithinOneAccuracy(LevelConfusion):
    """Share of rows whose likeliest level is at most one from the true one."""

    def compute(self) -> Tensor:
        """() share; NaN without rows."""
        return self.counts[self.distances() <= 1].sum() / self.counts.sum()


class MacroMAE(LevelConfusion):
    """Mean over the levels that occur of the mean distance of the decided level, so that rare levels count alike."""

    higher_is_better = False

    def __init__(self, levels: int, decision: Literal["mode", "median"] = "median") -> None:
        """See :class:`LevelConfusion`; the median makes the error small."""
        super().__init__(levels, decision)

    def compute(self) -> Tensor:
        """() distance in levels; NaN without rows."""
        rows = self.counts.sum(1)
        per_level = (self.counts * self.distances()).sum(1) / rows
        return per_level[rows > 0].mean().float()


class QuadraticKappa(LevelConfusion):
    """Agreement beyond chance with quadratic weights (Cohen, Psychol. Bull. 70, 1968)."""

    def __init__(self, levels: int, decision: Literal["mode", "median"] = "median") -> None:
        """See :class:`LevelConfusion`."""
        super().__init__(levels, decision)

    def compute(self) -> Tensor:
        """() kappa, 1 for perfect agreement, 0 for chance; NaN where all rows and all decisions are of one level."""
        counts, weights = self.counts.double(), self.distances().square()
        chance = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
        return (
            (1 - (weights * counts).sum() / (weights * chance).sum())
            .float()
            .nan_to_num(nan=torch.nan, neginf=torch.nan)
        )


class _Mean(_LevelMetric):
    """A mean over rows."""

    total: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")


class RankedProbabilityScore(_Mean):
    r"""Mean of :math:`\sum_k (F_k - 1[y \le k])^2 / (K-1)`: proper, and aware of order (Epstein, J. Appl. Meteorol. 8, 1969)."""

    higher_is_better = False

    def __init__(self, levels: int) -> None:
        """Start with nothing counted.

        Args:
            levels: K.
        """
        super().__init__()
        self.levels = levels

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor) -> None:
        """Count one batch: log_probs (N, K), levels (N,), valid (N,)."""
        log_probs, levels = self.known(log_probs, levels, valid)
        stated = log_probs.double().exp().cumsum(-1)[:, :-1]  # (n, K-1)
        happened = levels[:, None] <= torch.arange(self.levels - 1, device=levels.device)
        self.total[0] += (stated - happened.double()).square().sum() / (self.levels - 1)
        self.rows[0] += len(levels)

    def compute(self) -> Tensor:
        """() score in 0..1; NaN without rows."""
        return (self.total[0] / self.rows[0]).float()


class HarmAccuracy(_Mean):
    """Share of rows on the right side of "harmful": P(level < boundary) at or above a threshold."""

    def __init__(self, boundary: int, threshold: float = 0.5) -> None:
        """Start with nothing counted.

        Args:
            boundary: Class indices below it are harmful.
            threshold: From which probability on a row is called harmful.
        """
        super().__init__()
        self.boundary, self.threshold = boundary, threshold

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


class HarmCalibrationError(_LevelMetric):
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


class ExceedanceCalibrationError(_LevelMetric):
    """Expected calibration error of P(level > k), averaged over k: whether the whole distribution can be believed."""

    higher_is_better = False
    tables: Tensor

    def __init__(self, levels: int, bins: int = 10) -> None:
        """Start with empty bins.

        Args:
            levels: K.
            bins: Number of bins of each k.
        """
        super().__init__()
        self.bins = bins
        self.add_state("tables", torch.zeros(levels - 1, 3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor) -> None:
        """Count one batch: log_probs (N, K), levels (N,), valid (N,)."""
        log_probs, levels = self.known(log_probs, levels, valid)
        above = log_probs.double().exp().flip(-1).cumsum(-1).flip(-1)[:, 1:].clamp(0, 1)  # (n, K-1)
        everything = torch.ones_like(levels, dtype=torch.bool)
        for k in range(len(self.tables)):
            self.tables[k] += reliability_bins(above[:, k], levels > k, everything, self.bins)

    def compute(self) -> Tensor:
        """() error in 0..1; NaN without rows."""
        return torch.stack([calibration_error(table) for table in self.tables]).mean().float()


class _HarmDetection(_LevelMetric):
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


def _harm(log_probs: Tensor, boundary: int) -> Tensor:
    """(N,) float64 P(level < boundary)."""
    return log_probs[:, :boundary].double().exp().sum(-1).clamp(0, 1)
