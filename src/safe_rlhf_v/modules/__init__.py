"""LightningModules, one per stage."""

from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.modules.cost import CostModule
from safe_rlhf_v.modules.guard import GuardModule, GuardOutputs
from safe_rlhf_v.modules.preference import PreferenceModule
from safe_rlhf_v.modules.preference_optimisation import PreferenceOptimisationModule
from safe_rlhf_v.modules.reward import RewardModule
from safe_rlhf_v.modules.supervised import SupervisedModule
from safe_rlhf_v.modules.vision import VisionModule

__all__ = [
    "BaseModule",
    "CostModule",
    "GuardModule",
    "GuardOutputs",
    "PreferenceModule",
    "PreferenceOptimisationModule",
    "RewardModule",
    "SupervisedModule",
    "VisionModule",
]
