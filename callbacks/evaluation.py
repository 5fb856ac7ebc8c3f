"""The base of callbacks that look at the scores of evaluation batches, and whether these agree with the labels."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from safe_rlhf_v.callbacks.split_report import SplitReport
from safe_rlhf_v.functional.pairwise import UNDECIDED, pair_correct, preferred
from safe_rlhf_v.functional.pointwise import sign_correct
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch

ScoreKind = Literal["reward", "cost"]
"""What the module's scores are: a reward (up = more helpful) or a cost (up = more harmful, above 0 = harmful)."""


class EvaluationCallback(SplitReport, ABC):
    """Takes notes of the scores of every evaluation batch and writes one report per split at the end of the epoch.

    A subclass writes :meth:`observe` and :meth:`report`; see :class:`SplitReport`.
    """

    needs: ClassVar[tuple[str, str]] = ("scores", "{'scores': (B, K)}")

    def __init__(self, scores: ScoreKind | None = None) -> None:
        """Start without notes.

        Args:
            scores: What the module's scores are; known for this project's reward and cost modules.

        Raises:
            ValueError: If it is neither ``reward`` nor ``cost``.
        """
        super().__init__()
        if scores not in (None, "reward", "cost"):
            raise ValueError(f"{type(self).__name__}: scores is {scores!r}, expected 'reward' or 'cost'")
        self._kind = scores

    @property
    def kind(self) -> ScoreKind:
        """What the scores are."""
        assert self._kind is not None, "set at construction or in setup"
        return self._kind

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what the module's scores are, unless it was said.

        Raises:
            ValueError: If the module is neither a reward nor a cost module of this project.
        """
        if self._kind is None:
            from safe_rlhf_v.modules import CostModule, RewardModule

            if not isinstance(pl_module, (CostModule, RewardModule)):
                module = type(pl_module).__name__
                name = type(self).__name__
                raise ValueError(f"{name}: set scores to 'reward' or 'cost', {module} does not say which it gives")
            self._kind = "cost" if isinstance(pl_module, CostModule) else "reward"

    @abstractmethod
    def observe(self, scores: Tensor, batch: PreferenceBatch, noted: int) -> list[Any]:
        """Notes of one batch, one picklable entry per whatever is counted.

        Args:
            scores: (B, K) float32 on the CPU.
            batch: Its labels on the CPU.
            noted: Number of notes this rank already has of the split.
        """

    def note(self, output: Any, batch: Any, noted: int) -> list[Any]:
        """See :class:`SplitReport`."""
        return self.observe(output.detach().float().cpu(), batch, noted)


def agreement(scores: Tensor, batch: PreferenceBatch, kind: ScoreKind, *, truth: bool) -> tuple[Tensor, Tensor]:
    """Whether the scores of each row agree with its labels: pairs by their order, single responses by the sign of their cost.

    Args:
        scores: (B, K), K = 1 or 2.
        batch: Where the labels are.
        kind: What the scores are.
        truth: Compare with the noise-free values instead of the annotations.

    Returns:
        (B,) bool whether they agree, and (B,) bool whether the row has the labels to say so.
    """
    known = batch.true_safety != UNKNOWN_LEVEL
    if scores.shape[1] == 2:
        target = _higher(batch, kind, known) if truth else annotated_higher(batch, kind)
        return pair_correct(scores, target), batch.valid & (target >= 0)
    is_safe = torch.where(known, (batch.true_safety >= 0).long(), -1) if truth else batch.is_safe  # (B, K)
    decided = batch.valid & (is_safe >= 0).all(1)
    return sign_correct(scores, is_safe).all(1), decided & (kind == "cost")


def annotated_higher(batch: PreferenceBatch, kind: ScoreKind) -> Tensor:
    """(B,) index of the response that should score higher by the annotations, -1 unknown."""
    return batch.more_helpful if kind == "reward" else _other(batch.safer)


def _higher(batch: PreferenceBatch, kind: ScoreKind, known: Tensor) -> Tensor:
    """(B,) index of the response that truly scores higher, -1 if equal or unknown."""
    if kind == "reward":
        return preferred(batch.true_helpfulness, ~batch.true_helpfulness.isnan())
    return _other(preferred(batch.true_safety, known))


def _other(index: Tensor) -> Tensor:
    """(B,) the other response's index, -1 stays."""
    return torch.where(index >= 0, 1 - index, UNDECIDED)
