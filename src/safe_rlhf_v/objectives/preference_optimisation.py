"""Objectives that train a policy on labelled pairs directly, without reward model or rollouts, chosen by ``class_path``."""

from abc import abstractmethod
from typing import Literal

from torch import Tensor

from safe_rlhf_v.functional.preference_optimisation import (
    LabelledPairs,
    dpo_loss,
    helpful_pairs,
    one_is_safe,
    order_pair,
    safe_dpo_loss,
    safe_helpful_pairs,
    safer_pairs,
)
from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.objectives.base import PreferenceObjective, check_range, checked_scores
from safe_rlhf_v.objectives.soft_labels import soft_preference
from safe_rlhf_v.records.batches import PreferenceBatch


class DirectObjective(PreferenceObjective):
    """A loss over the log-ratios of winner and loser; a subclass implements :meth:`pairs` and :meth:`losses`.

    ``pair`` is the loss. Only logged are means over the pairs that count: ``reward_winner`` and ``reward_loser`` (implicit
    rewards, beta times the log-ratio), ``margin`` (their difference) and ``accuracy`` (how often the winner's is strictly
    higher), where pairs that have votes but no label are left out, and ``kept``, the share of the records that count.

    Attributes:
        beta: Implicit reward per unit of log-ratio; large values hold the policy to the reference.
    """

    def __init__(self, beta: float) -> None:
        """Choose the options.

        Args:
            beta: Implicit reward per unit of log-ratio, above 0.

        Raises:
            ValueError: If it is not above 0.
        """
        super().__init__()
        self.beta = above_zero("beta", beta)

    @abstractmethod
    def pairs(self, batch: PreferenceBatch) -> LabelledPairs:
        """The preferred response of each record, and the record's weight (padding rows are masked by the caller).

        Args:
            batch: Batch with the labels, and with the votes if they may be used.
        """

    @abstractmethod
    def losses(self, winner: Tensor, loser: Tensor, batch: PreferenceBatch) -> Tensor:
        """(B,) loss of each pair, finite also where its weight is 0.

        Args:
            winner: (B,) float32 log-ratios of the responses that should win.
            loser: (B,) float32 log-ratios of the others.
            batch: Batch with further labels.
        """

    def shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """Scores are log-ratios (B, 2), policy against reference; see :class:`PreferenceObjective`."""
        ratios = checked_scores(scores, batch, responses=2)
        pairs = self.pairs(batch)
        weight = pairs.weight * batch.valid  # (B,)
        labelled = self.pairs(batch._replace(votes=None)).weight * batch.valid  # (B,)
        winner, loser = order_pair(ratios, pairs.winner)
        won = self.beta * winner.detach()
        lost = self.beta * loser.detach()
        logged = {"accuracy": (won > lost).float(), "margin": won - lost, "reward_winner": won, "reward_loser": lost}
        return {
            "pair": masked_share(self.losses(winner, loser, batch), weight),
            **{name: masked_share(value, labelled, 0.0) for name, value in logged.items()},
            "kept": masked_share((weight > 0).float(), batch.valid, 0.0),
        }


class DPO(DirectObjective):
    r"""Direct preference optimisation (arXiv 2305.18290): :math:`-\log\sigma(\beta(\rho_w-\rho_l))`.

    On ``more_helpful`` it is the baseline DPO-helpful, on ``safer`` DPO-safe; records with equal safety ratings are left
    out of the latter.

    YAML::

        objective:
          class_path: safe_rlhf_v.objectives.DPO
          init_args: {preference: more_helpful, beta: 0.1, label_smoothing: 0.0}
    """

    def __init__(
        self,
        preference: Literal["more_helpful", "safer"] = "more_helpful",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        votes: bool = False,
    ) -> None:
        """Choose the options.

        Args:
            preference: Which label orders the pair.
            beta: Implicit reward per unit of log-ratio, above 0; large values keep the policy near the reference.
            label_smoothing: Probability in [0, 0.5] that a label is wrong (conservative DPO).
            votes: Learn from the share of annotators who preferred each response, where the records have votes.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__(beta)
        if preference not in ("more_helpful", "safer"):
            raise ValueError(f"preference is {preference!r}, expected 'more_helpful' or 'safer'")
        self.preference: Literal["more_helpful", "safer"] = preference
        self.label_smoothing = check_range("label_smoothing", label_smoothing, 0.0, 0.5)
        self.votes = votes

    def pairs(self, batch: PreferenceBatch) -> LabelledPairs:
        """See :class:`DirectObjective`."""
        index = self._labels(batch)[0]
        return helpful_pairs(index) if self.preference == "more_helpful" else safer_pairs(index, batch.safety_tie)

    def losses(self, winner: Tensor, loser: Tensor, batch: PreferenceBatch) -> Tensor:
        """See :class:`DirectObjective`."""
        return dpo_loss(winner, loser, beta=self.beta, label_smoothing=self._labels(batch)[1])

    def _labels(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor | float]:
        batch = batch if self.votes else batch._replace(votes=None)
        return soft_preference(batch, self.preference, self.label_smoothing)


class SACPO(DPO):
    r"""The second step of SACPO (arXiv 2404.11049): :class:`DPO` on safety with :math:`\beta/\lambda`.

    The first step is DPO on helpfulness with :math:`\beta`; this one starts from its policy and takes that as the
    reference. Together they solve the problem with reward r + :math:`\lambda` x safety and one KL penalty :math:`\beta`
    against the first reference, so the steps may be exchanged: DPO on safety with :math:`\beta/\lambda` first, on
    helpfulness with :math:`\beta` second.

    YAML::

        objective:
          class_path: safe_rlhf_v.objectives.SACPO
          init_args: {beta: 0.1, lam: 2.0}
    """

    def __init__(self, beta: float = 0.1, lam: float = 1.0, label_smoothing: float = 0.0, votes: bool = False) -> None:
        r"""Choose the options.

        Args:
            beta: The beta of the first step.
            lam: Weight :math:`\lambda` of safety relative to the reward, above 0. After a first step with 0.1 the paper's code
                tried :math:`\beta/\lambda` = 0.1, 0.05, 0.025 and 0.01.
            label_smoothing: Probability in [0, 0.5] that a label is wrong (conservative DPO).
            votes: Learn from the share of annotators who found each response safer, where the records have votes.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__("safer", above_zero("beta", beta) / above_zero("lam", lam), label_smoothing, votes)


class SafeDPO(DirectObjective):
    r"""SafeDPO (arXiv 2505.20065): a safe response wins over an unsafe one, else the more helpful one does.

    :math:`-\log\sigma(\beta(\rho_w-\rho_l) - \Delta)` where the winner is safe and the loser is not, without
    :math:`\Delta` where both are safe; records with two unsafe responses are left out.

    YAML::

        objective:
          class_path: safe_rlhf_v.objectives.SafeDPO
          init_args: {beta: 0.1, offset: 10.0}
    """

    def __init__(self, beta: float = 0.1, offset: float = 10.0) -> None:
        r"""Choose the options.

        Args:
            beta: Implicit reward per unit of log-ratio, above 0; large values keep the policy near the reference.
            offset: Lead :math:`\Delta` of a safe winner over an unsafe loser, 0 or more. The paper tried 0 to 50: safer up to
                20, less helpful at 50.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__(beta)
        self.offset = check_range("offset", offset, 0.0)

    def pairs(self, batch: PreferenceBatch) -> LabelledPairs:
        """See :class:`DirectObjective`."""
        return safe_helpful_pairs(batch.more_helpful, batch.is_safe)

    def losses(self, winner: Tensor, loser: Tensor, batch: PreferenceBatch) -> Tensor:
        """See :class:`DirectObjective`."""
        return safe_dpo_loss(winner, loser, one_is_safe(batch.is_safe), beta=self.beta, offset=self.offset)


def above_zero(name: str, value: float) -> float:
    """``value`` if it is above 0.

    Raises:
        ValueError: Naming the option otherwise.
    """
    if not value > 0:
        raise ValueError(f"{name} is {value}, expected a number above 0")
    return value
