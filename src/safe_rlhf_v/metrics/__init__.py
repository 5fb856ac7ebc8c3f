"""Metrics of rewards, costs, guards and losses; ranks may see unequal row counts, one of them none at all.

Most are pure functions of all rows together, behind one :class:`Collected`.
"""

from safe_rlhf_v.metrics.collected import Collected, count, mean
from safe_rlhf_v.metrics.harm import harm_by_group, harm_values, harmful_label, score_values
from safe_rlhf_v.metrics.levels import level_values
from safe_rlhf_v.metrics.loss import LossMean
from safe_rlhf_v.metrics.pairs import GroundingGap, PairwiseAccuracy

__all__ = [
    "Collected",
    "GroundingGap",
    "LossMean",
    "PairwiseAccuracy",
    "count",
    "harm_by_group",
    "harm_values",
    "harmful_label",
    "level_values",
    "mean",
    "score_values",
]
