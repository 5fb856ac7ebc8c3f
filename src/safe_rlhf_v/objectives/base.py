"""The interface of preference objectives."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from safe_rlhf_v.functional.shares import Share, loss_and_means
from safe_rlhf_v.records.batches import PreferenceBatch


class PreferenceObjective(nn.Module, ABC):
    """Computes a loss from the scores of a batch; a module, because an objective may learn thresholds.

    A subclass implements :meth:`shares`. Every term has its own count, so that accumulated micro-batches and ranks give the
    loss of one large batch (:mod:`safe_rlhf_v.functional.shares`). Rows with ``valid`` False and unknown labels do not count;
    without any row that counts the loss is 0 and still has a graph, so that every rank can run its backward pass.
    """

    @abstractmethod
    def shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """The batch's contribution to each term, by name, except ``loss``; terms of weight 0 are only logged.

        Args:
            scores: (B, K) score of each response.
            batch: Batch with the labels. Counts depend on the labels only, not on the scores.
        """

    def forward(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            scores: (B, K) score of each response.
            batch: Batch with the labels.

        Returns:
            ``loss`` () float32 with its graph, and the unweighted mean of each term, () and detached.
        """
        return loss_and_means(self.shares(scores, batch))


def checked_shares(objective: PreferenceObjective, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
    """The result of :meth:`PreferenceObjective.shares`, checked.

    Args:
        objective: An objective, possibly a user's.
        scores: (B, K) score of each response.
        batch: Batch with the labels.

    Raises:
        ValueError: If the result is not a dict of scalar shares.
    """
    shares: Any = objective.shares(scores, batch)
    values = shares.values() if isinstance(shares, dict) and shares else [None]
    if not all(isinstance(share, Share) and share.total.dim() == 0 for share in values):
        raise ValueError(
            f"objective {type(objective).__name__}: shares must return a dict of names to Share with scalar totals, it "
            f"returned {described(shares)}"
        )
    checked: dict[str, Share] = shares
    return checked


def described(value: Any) -> str:
    """A short description of a component's result, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {described(item)}" for name, item in list(value.items())[:3]) + "}"
    if isinstance(value, Share):
        return f"a Share with a total of shape {tuple(value.total.shape)}"
    return f"a {type(value).__name__}"


def checked_scores(scores: Tensor, batch: PreferenceBatch, responses: int | None = None) -> Tensor:
    """(B, K) float32 scores, 0 in rows that do not count, so that their values cannot reach a gradient.

    Args:
        scores: (B, K).
        batch: Batch whose labels define B and K.
        responses: Required value of K, if any.

    Raises:
        ValueError: If the shape is not the labels' (B, K).
    """
    expected = tuple(batch.safety.shape) if responses is None else (len(batch.valid), responses)
    if tuple(scores.shape) != expected:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, expected (rows, responses) = {expected}")
    return scores.float().masked_fill(~batch.valid[:, None], 0.0)


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> float:
    """``value`` if it lies in [low, high].

    Raises:
        ValueError: Naming the option otherwise.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected a number in [{low:g}, {high:g}]")
    return value
