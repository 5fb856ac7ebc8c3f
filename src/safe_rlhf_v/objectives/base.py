"""The interface of preference objectives."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from safe_rlhf_v.functional.shares import Share, loss_and_means
from safe_rlhf_v.records.batches import PreferenceBatch


class PreferenceObjective(nn.Module, ABC):
    """Scores of a batch in, the shares of a loss's terms out. A module, because an objective may learn thresholds.

    A subclass writes :meth:`shares`. Every term has its own count, so that accumulated micro-batches and ranks make the loss of
    one big batch (:mod:`safe_rlhf_v.functional.shares`). Rows with ``valid`` False and unknown labels weigh nothing; if nothing
    is left the loss is 0 and still has a graph, so that every rank of a distributed run can take its backward pass.
    """

    @abstractmethod
    def shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """What the batch adds to each term, by name; none may be called ``loss``. Terms of weight 0 are only watched.

        Args:
            scores: (B, K) score of each response.
            batch: Where the labels are. Counts follow from them alone, not from the scores.
        """

    def forward(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            scores: (B, K) score of each response.
            batch: Where the labels are.

        Returns:
            ``loss`` () float32 with its graph, and the unweighted means it is made of, each () and detached.
        """
        return loss_and_means(self.shares(scores, batch))


def checked_shares(objective: PreferenceObjective, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
    """What :meth:`PreferenceObjective.shares` gives.

    Args:
        objective: Maybe a user's.
        scores: See there.
        batch: See there.

    Raises:
        ValueError: If that is anything but scalar shares by name.
    """
    found: Any = objective.shares(scores, batch)
    shares = found.values() if isinstance(found, dict) and found else [None]
    if not all(isinstance(share, Share) and share.total.dim() == 0 for share in shares):
        raise ValueError(
            f"objective {type(objective).__name__}: shares must return a dict of names to Share with scalar totals, it "
            f"returned {described(found)}"
        )
    return found  # type: ignore[no-any-return]


def described(value: Any) -> str:
    """What a component returned, in few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {described(item)}" for name, item in list(value.items())[:3]) + "}"
    if isinstance(value, Share):
        return f"a Share with a total of shape {tuple(value.total.shape)}"
    return f"a {type(value).__name__}"


def checked_scores(scores: Tensor, batch: PreferenceBatch, responses: int | None = None) -> Tensor:
    """(B, K) float32 scores, 0 in rows that do not count, so that nothing there can reach a gradient.

    Args:
        scores: (B, K).
        batch: Its labels say B and K.
        responses: If given, K must be this.

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
