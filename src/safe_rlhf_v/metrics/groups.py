"""Accuracy per group: harm categories, or the rules that decide counterfactual twins."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class GroupedAccuracy(Metric):
    """Share of correct items in each of G named groups, NaN for a group without items.

    Feed it with :func:`~safe_rlhf_v.functional.pairwise.pair_correct` or
    :func:`~safe_rlhf_v.functional.pointwise.sign_correct`.
    ``compute`` gives a dictionary: log its values, which are already reduced over ranks.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, groups: Sequence[str]) -> None:
        """Start with empty groups.

        Args:
            groups: G names, in index order.

        Raises:
            ValueError: If a name is given twice.
        """
        super().__init__()
        if len(set(groups)) < len(groups):
            raise ValueError(f"groups are {list(groups)}, expected each name once")
        self.groups = tuple(groups)
        self.add_state("correct", torch.zeros(len(groups), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(len(groups), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, correct: Tensor, group: Tensor, valid: Tensor) -> None:
        """Count n items.

        Args:
            correct: (n,) bool.
            group: (n,) int64 group index, -1 none (left out).
            valid: (n,) bool, False = left out (padding row, unknown label).
        """
        counted = valid & (group >= 0)
        self.total += torch.bincount(group[counted], minlength=len(self.groups))
        self.correct += torch.bincount(group[counted & correct], minlength=len(self.groups))

    def compute(self) -> dict[str, Tensor]:
        """Accuracy () by group name."""
        return dict(zip(self.groups, (self.correct / self.total).unbind(), strict=True))


class CounterfactualAccuracy(GroupedAccuracy):
    """Accuracy over counterfactual twins: all together under ``"all"``, and by the rule that decides the true level.

    Twins share question and responses and differ in the picture, and the right response flips: a model that ignores the
    picture has 0.5 under ``"all"``. An item counts for every rule that decides one of its responses.
    """

    def __init__(self, rules: Sequence[str]) -> None:
        """Start with no items.

        Args:
            rules: Names of the rules.
        """
        super().__init__(("all", *rules))

    def update(self, correct: Tensor, rules: Sequence[Sequence[str]], valid: Tensor) -> None:  # type: ignore[override]
        """Count one batch.

        Args:
            correct: (B,) bool, whether the row is judged right.
            rules: B tuples of K rule names as in ``PreferenceBatch.rules``, "" unknown.
            valid: (B,) bool, False = left out (padding row, undecided pair).

        Raises:
            ValueError: If a rule is not among the names given at construction.
        """
        for row, names in enumerate(rules):
            if unknown := {*names} - {"", *self.groups}:
                raise ValueError(f"unknown rule {sorted(unknown)[0]!r}, expected one of: {', '.join(self.groups[1:])}")
            group = torch.tensor([self.groups.index(name) for name in {"all", *names} - {""}], device=self.device)
            super().update(correct[row].expand(len(group)), group, valid[row].expand(len(group)))
