"""The base of callbacks that look at the scores of evaluation batches."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from safe_rlhf_v.callbacks.split_report import SplitReport
from safe_rlhf_v.records.batches import PreferenceBatch

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
