"""Links from a head's outputs to the probability of each ordered level.

Shapes: N rows, F features a link reads, K levels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safe_rlhf_v.functional.ordinal import corn_log_probs, gaps_from_thresholds, level_log_probs, thresholds_from_gaps
from safe_rlhf_v.models.float32 import Float32Module
from safe_rlhf_v.records.taxonomy import NUM_LEVELS

MAX_LOG_SCALE = 1.5


class OrdinalLink(Float32Module, ABC):
    """A distribution over K ordered levels. The loss is its negative log-likelihood, unweighted, for every link.

    Attributes:
        features: F, outputs of the head that the link reads.
    """

    features: int

    @abstractmethod
    def log_probs(self, outputs: Tensor) -> Tensor:
        """(N, K) float32 log-probabilities of (N, F) outputs."""


class CumulativeLink(OrdinalLink):
    """P(level > k) = sigmoid((f - theta_k) e^{-s}): thresholds ordered by construction, one latent number per row.

    McCullagh, J. R. Stat. Soc. B 42, 1980. Exceedance probabilities never cross, and without ``scale`` every distribution
    has one mode.

    YAML::

        link:
          class_path: safe_rlhf_v.models.CumulativeLink
          init_args: {scale: true}
    """

    def __init__(
        self,
        levels: int = NUM_LEVELS,
        scale: bool = True,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        """Create the thresholds.

        Args:
            levels: K.
            scale: Read a second output as the row's log-scale s (heteroscedastic), bounded by 1.5.
            thresholds: Initial K-1 increasing thresholds; ``None`` spaces them by 1 around 0.

        Raises:
            ValueError: If the thresholds are not K-1 or do not increase.
        """
        super().__init__()
        start = [k - (levels - 2) / 2 for k in range(levels - 1)] if thresholds is None else list(thresholds)
        if len(start) != levels - 1:
            raise ValueError(f"thresholds are {start}, expected {levels - 1} numbers for {levels} levels")
        self.scale = scale
        self.features = 2 if scale else 1
        initial = torch.tensor(start, dtype=torch.float32)
        self.first = nn.Parameter(initial[0].clone())
        self.free_gaps = nn.Parameter(gaps_from_thresholds(initial))  # (K-2,)

    @property
    def thresholds(self) -> Tensor:
        """(K-1,) float32, strictly increasing."""
        return self.first + thresholds_from_gaps(self.free_gaps, anchor=0)

    def log_probs(self, outputs: Tensor) -> Tensor:
        """See :class:`OrdinalLink`."""
        s = MAX_LOG_SCALE * torch.tanh(outputs[:, 1] / MAX_LOG_SCALE) if self.scale else None
        return level_log_probs(outputs[:, 0], self.thresholds, s)


class CornLink(OrdinalLink):
    """K-1 conditional probabilities P(level > k | level > k-1): rank-consistent (CORN, arXiv 2111.08851).

    YAML::

        link: {class_path: safe_rlhf_v.models.CornLink}
    """

    def __init__(self, levels: int = NUM_LEVELS) -> None:
        """Set the number of levels.

        Args:
            levels: K.
        """
        super().__init__()
        self.features = levels - 1

    def log_probs(self, outputs: Tensor) -> Tensor:
        """See :class:`OrdinalLink`."""
        return corn_log_probs(outputs)


class SoftmaxLink(OrdinalLink):
    """K unordered classes: the baseline that ignores the order of the levels.

    YAML::

        link: {class_path: safe_rlhf_v.models.SoftmaxLink}
    """

    def __init__(self, levels: int = NUM_LEVELS) -> None:
        """Set the number of levels.

        Args:
            levels: K.
        """
        super().__init__()
        self.features = levels

    def log_probs(self, outputs: Tensor) -> Tensor:
        """See :class:`OrdinalLink`."""
        return torch.log_softmax(outputs.float(), dim=-1)
