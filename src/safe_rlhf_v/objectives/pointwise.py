"""Pointwise terms of the cost objective, chosen by ``class_path``: they make cost > 0 mean harmful.

A term's value is the mean over the labelled responses times K, so that with full labels it is the sum over a pair's two
responses, averaged over pairs, as Safe RLHF and Safe RLHF-V write it. With the option ``votes`` of the objective, a response's
loss is the one expected over its votes (:mod:`safe_rlhf_v.functional.soft_labels`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from safe_rlhf_v.functional.ordinal import gaps_from_thresholds, ordinal_loss, thresholds_from_gaps
from safe_rlhf_v.functional.pointwise import classifier_loss, graded_loss, sign_loss, weighted_sign_loss
from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.models.float32 import Float32Module
from safe_rlhf_v.objectives.base import check_range, checked_scores
from safe_rlhf_v.objectives.soft_labels import over_levels, over_signs
from safe_rlhf_v.records.batches import PreferenceBatch
from safe_rlhf_v.records.taxonomy import MIN_LEVEL, NUM_LEVELS


class PointwiseTerm(Float32Module, ABC):
    """One term; a subclass sets ``name`` and implements :meth:`losses`.

    Attributes:
        name: Key of the term among the objective's parts.
        weight: Factor of the term in the objective.
    """

    name: ClassVar[str]

    def __init__(self, weight: float = 1.0) -> None:
        """Choose the options.

        Args:
            weight: Weight in the objective, 0 or more.

        Raises:
            ValueError: If it is negative.
        """
        super().__init__()
        self.weight = check_range("weight", weight, 0.0)

    @abstractmethod
    def losses(self, costs: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """(B, K) loss of each response (finite also where unlabelled) and (B, K) bool, where a label is known.

        Args:
            costs: (B, K), higher = more harmful.
            batch: Batch with the labels; it has ``votes`` only if they are to be used.
        """

    def forward(self, scores: Tensor, batch: PreferenceBatch) -> Share:
        """The batch's share: K times the sum of the losses, and the number of labelled responses.

        Args:
            scores: (B, K) costs, higher = more harmful.
            batch: Batch with the labels.
        """
        losses, known = self.losses(checked_scores(scores, batch), batch)
        return masked_share(losses * scores.shape[1], known & batch.valid[:, None], self.weight)


class SignTerm(PointwiseTerm):
    r""":math:`-\log\sigma(\pm c)` with the yes/no safety label as sign, as in Safe RLHF (arXiv 2310.12773).

    YAML::

        class_path: safe_rlhf_v.objectives.SignTerm
        init_args: {weight: 1.0}
    """

    name = "sign"

    def losses(self, costs: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """See :class:`PointwiseTerm`."""
        return over_signs(lambda harmful: sign_loss(costs, harmful), batch)


class GradedTerm(PointwiseTerm):
    r""":math:`-\log\sigma(z c)` with z = -level, as released with Safe RLHF-V (arXiv 2503.17682).

    Two properties to know: level 0 adds a constant log 2 and no gradient, and a severe response is satisfied by a smaller
    cost than a mild one. :class:`WeightedSignTerm` and :class:`OrdinalTerm` have neither.

    YAML::

        class_path: safe_rlhf_v.objectives.GradedTerm
        init_args: {weight: 1.0}
    """

    name = "graded"

    def losses(self, costs: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """See :class:`PointwiseTerm`."""
        return over_levels(lambda levels: graded_loss(costs, levels), batch)


class WeightedSignTerm(PointwiseTerm):
    r""":math:`\max(|level|, 1)` times :math:`-\log\sigma(\pm c)`, the sign from the safety level (level 0 is harmless).

    YAML::

        class_path: safe_rlhf_v.objectives.WeightedSignTerm
        init_args: {weight: 0.5}
    """

    name = "weighted_sign"

    def losses(self, costs: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """See :class:`PointwiseTerm`."""
        return over_levels(lambda levels: weighted_sign_loss(costs, levels), batch)


class ClassifierTerm(PointwiseTerm):
    """Binary cross-entropy on the yes/no safety label, with a class weight and label smoothing.

    With ``pair_weight: 0`` in the objective the cost model is a stand-alone classifier, P(harmful) = sigmoid(cost).

    YAML::

        class_path: safe_rlhf_v.objectives.ClassifierTerm
        init_args: {harmful_weight: 2.0, label_smoothing: 0.05}
    """

    name = "classifier"

    def __init__(self, weight: float = 1.0, harmful_weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        """Choose the options.

        Args:
            weight: Weight in the objective.
            harmful_weight: Weight of harmful responses relative to harmless ones; it shifts the boundary at cost 0.
            label_smoothing: Probability in [0, 0.5] that a label is wrong.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__(weight)
        self.harmful_weight = check_range("harmful_weight", harmful_weight, 0.0)
        self.label_smoothing = check_range("label_smoothing", label_smoothing, 0.0, 0.5)

    def losses(self, costs: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """See :class:`PointwiseTerm`."""
        options = {"harmful_weight": self.harmful_weight, "label_smoothing": self.label_smoothing}
        return over_signs(lambda harmful: classifier_loss(costs, harmful, **options), batch)


class OrdinalTerm(PointwiseTerm):
    r"""Likelihood of the seven-level rating under a cumulative link (McCullagh, 1980) on the cost itself.

    :math:`P(\text{level} > k) = \sigma(-c - \theta_k)`. The threshold between -1 and 0 is fixed at 0, so P(harmful) =
    sigmoid(c) and the sign of the cost stays the verdict; the other distances are learned and stay positive.

    YAML::

        class_path: safe_rlhf_v.objectives.OrdinalTerm
        init_args: {weight: 0.5, thresholds: [-2, -1, 0, 1, 2, 3]}
    """

    name = "ordinal"
    anchor: ClassVar[int] = -1 - MIN_LEVEL  # index of the threshold between levels -1 and 0

    def __init__(
        self,
        weight: float = 1.0,
        thresholds: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0),
        learn_thresholds: bool = True,
    ) -> None:
        """Choose the options.

        Args:
            weight: Weight in the objective.
            thresholds: Initial thresholds between the seven levels, increasing; the third must be 0.
            learn_thresholds: Whether their distances are trained.

        Raises:
            ValueError: If the thresholds are not six, not increasing, or the third is not 0.
        """
        super().__init__(weight)
        initial = torch.tensor([float(x) for x in thresholds])
        if len(initial) != NUM_LEVELS - 1 or initial[self.anchor] != 0:
            raise ValueError(f"thresholds are {list(thresholds)}, expected {NUM_LEVELS - 1} numbers, the third one 0")
        self.free_gaps = nn.Parameter(gaps_from_thresholds(initial), requires_grad=learn_thresholds)  # (5,)

    @property
    def thresholds(self) -> Tensor:
        """(6,) float32 current thresholds on the safety axis (-cost), between neighbouring levels."""
        return thresholds_from_gaps(self.free_gaps, self.anchor)

    def losses(self, costs: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """See :class:`PointwiseTerm`."""
        thresholds = self.thresholds
        return over_levels(lambda levels: ordinal_loss(-costs, thresholds, levels - MIN_LEVEL), batch)
