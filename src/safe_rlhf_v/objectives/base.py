"""The interface of preference objectives."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from safe_rlhf_v.batches import PreferenceBatch


class PreferenceObjective(nn.Module, ABC):
    """Scores of a batch in, a loss and its named parts out. A module, because an objective may learn thresholds.

    Rows with ``valid`` False and unknown labels weigh nothing; if nothing is left the loss is 0 and still has a graph,
    so that every rank of a distributed run can take its backward pass.
    """

    @abstractmethod
    def forward(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Tensor]:
        """The loss.

        Args:
            scores: (B, K) score of each response.
            batch: Where the labels are.

        Returns:
            ``loss`` () float32 with its graph, and the unweighted parts it is made of, each () and detached.
        """


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
