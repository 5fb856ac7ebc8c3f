"""Metrics of an ordinal guard: how near the level is, and whether the stated distribution comes true.

All take log-probabilities (N, K) of the levels, lowest (most harmful) first, the true class index (N,) int64 (-1 unknown) and
``valid`` (N,) bool; unknown and invalid rows never count. States are sums, or gathered lists, so several ranks give what one
process gives.
"""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.functional.calibration import calibration_error, reliability_bins
from safe_rlhf_v.functional.ordinal import median_level


class LevelMetric(Metric):
    """What all of them share."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    @staticmethod
    def known(log_probs: Tensor, levels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(n, K) log-probabilities and (n,) levels of the rows that count."""
        keep = valid & (levels >= 0)
        return log_probs[keep].detach(), levels[keep]


class LevelConfusion(LevelMetric):
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


class RankedProbabilityScore(LevelMetric):
    r"""Mean of :math:`\sum_k (F_k - 1[y \le k])^2 / (K-1)`: proper, and aware of order (Epstein, J. Appl. Meteorol. 8, 1969)."""

    higher_is_better = False
    total: Tensor
    rows: Tensor

    def __init__(self, levels: int) -> None:
        """Start with nothing counted.

        Args:
            levels: K.
        """
        super().__init__()
        self.levels = levels
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor) -> None:
        """Count one batch: log_probs (N, K), levels (N,), valid (N,)."""
        log_probs, levels = self.known(log_probs, levels, valid)
        stated = log_probs.double().exp().cumsum(-1)[:, :-1]  # (n, K-1)
        happened = levels[:, None] <= torch.arange(self.levels - 1, device=levels.device)
        self.total += (stated - happened.double()).square().sum() / (self.levels - 1)
        self.rows += len(levels)

    def compute(self) -> Tensor:
        """() score in 0..1; NaN without rows."""
        return (self.total / self.rows).float()


class ExceedanceCalibrationError(LevelMetric):
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
