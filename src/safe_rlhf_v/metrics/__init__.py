"""torchmetrics for preference, cost and grounding; ranks may see unequal row counts, one of them none at all."""

from safe_rlhf_v.metrics.groups import CounterfactualAccuracy, GroupedAccuracy
from safe_rlhf_v.metrics.loss import LossMean
from safe_rlhf_v.metrics.pairs import GroundingGap, PairwiseAccuracy
from safe_rlhf_v.metrics.signs import BalancedSignAccuracy, CalibrationError, HarmAUROC, SignAccuracy

__all__ = [
    "BalancedSignAccuracy",
    "CalibrationError",
    "CounterfactualAccuracy",
    "GroundingGap",
    "GroupedAccuracy",
    "HarmAUROC",
    "LossMean",
    "PairwiseAccuracy",
    "SignAccuracy",
]
