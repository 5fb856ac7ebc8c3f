"""Objectives of reward and cost models and of offline policies: components chosen by ``class_path``.

They read labels and hold options; the mathematics is in :mod:`safe_rlhf_v.functional`.
"""

from safe_rlhf_v.objectives.base import PreferenceObjective
from safe_rlhf_v.objectives.bradley_terry import BradleyTerry
from safe_rlhf_v.objectives.costs import CostObjective
from safe_rlhf_v.objectives.pointwise import (
    ClassifierTerm,
    GradedTerm,
    OrdinalTerm,
    PointwiseTerm,
    SignTerm,
    WeightedSignTerm,
)
from safe_rlhf_v.objectives.preference_optimisation import DPO, SACPO, DirectObjective, SafeDPO

__all__ = [
    "DPO",
    "SACPO",
    "BradleyTerry",
    "ClassifierTerm",
    "CostObjective",
    "DirectObjective",
    "GradedTerm",
    "OrdinalTerm",
    "PointwiseTerm",
    "PreferenceObjective",
    "SafeDPO",
    "SignTerm",
    "WeightedSignTerm",
]
