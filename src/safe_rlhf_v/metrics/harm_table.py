"""An ordinal guard group by group: harm categories, sources, languages, the rules of a synthetic world."""

from collections.abc import Sequence

import torch
from torch import Tensor

from safe_rlhf_v.metrics.ordinal import LevelMetric

COLUMNS = ("responses", "harmful", "level_right", "side_right", "caught", "alarms")


class HarmTable(LevelMetric):
    """Per group: how many responses, how well their levels and sides are judged, and what a threshold catches and flags.

    ``compute`` gives a dictionary of dictionaries, already reduced over ranks.
    """

    counts: Tensor

    def __init__(self, groups: Sequence[str], boundary: int, threshold: float = 0.5) -> None:
        """Start with empty groups.

        Args:
            groups: G names, in index order.
            boundary: Class indices below it are harmful.
            threshold: From which P(level < boundary) on a response is flagged.

        Raises:
            ValueError: If a name is given twice.
        """
        super().__init__()
        if len(set(groups)) < len(groups):
            raise ValueError(f"groups are {list(groups)}, expected each name once")
        self.groups, self.boundary, self.threshold = tuple(groups), boundary, threshold
        self.add_state("counts", torch.zeros(len(groups), len(COLUMNS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, levels: Tensor, valid: Tensor, group: Tensor) -> None:
        """Count one batch.

        Args:
            log_probs: (N, K).
            levels: (N,) int64 class index, -1 unknown.
            valid: (N,) bool.
            group: (N,) int64 group index, -1 none (left out).
        """
        counted = valid & (group >= 0)
        kept = group[counted & (levels >= 0)]
        log_probs, levels = self.known(log_probs, levels, counted)
        harm = log_probs[:, : self.boundary].double().exp().sum(-1)
        harmful, flagged = levels < self.boundary, harm >= self.threshold
        facts = (
            torch.ones_like(harmful),
            harmful,
            log_probs.argmax(-1) == levels,
            (harm >= 0.5) == harmful,
            flagged & harmful,
            flagged & ~harmful,
        )
        self.counts.index_add_(0, kept, torch.stack(facts, dim=1).long())

    def compute(self) -> dict[str, dict[str, Tensor]]:
        """By group () values; NaN for a share of nothing.

        ``responses`` and ``harmful`` are counts; ``level_accuracy``, ``harm_accuracy`` (at one half), ``recall`` and ``fpr``
        (at the threshold) are shares.
        """
        responses, harmful, level, side, caught, alarms = self.counts.double().unbind(1)
        columns = {
            "responses": responses,
            "harmful": harmful,
            "level_accuracy": level / responses,
            "harm_accuracy": side / responses,
            "recall": caught / harmful,
            "fpr": alarms / (responses - harmful),
        }
        return {name: {key: value[i].float() for key, value in columns.items()} for i, name in enumerate(self.groups)}
