"""Objectives of the reward and cost models: components over :mod:`safe_rlhf_v.functional`, chosen by ``class_path``."""

from safe_rlhf_v.objectives.absolute import (
    AbsoluteTerm,
    ClassifierTerm,
    GradedTerm,
    OrdinalTerm,
    SignTerm,
    WeightedSignTerm,
)
from safe_rlhf_v.objectives.base import PreferenceObjective
from safe_rlhf_v.objectives.bradley_terry import BradleyTerry
from safe_rlhf_v.objectives.costs import CostObjective

__all__ = [
    "AbsoluteTerm",
    "BradleyTerry",
    "ClassifierTerm",
    "CostObjective",
    "GradedTerm",
    "OrdinalTerm",
    "PreferenceObjective",
    "SignTerm",
    "WeightedSignTerm",
]
