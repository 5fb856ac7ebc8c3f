"""Dual controllers: the rules that move the multiplier lambda of constrained policy training, chosen by ``class_path``."""

from safe_rlhf_v.dual.adaptive import LogSpaceDual, PIDDual, ProjectedDual
from safe_rlhf_v.dual.base import DualController
from safe_rlhf_v.dual.penalties import ExactPenalty, FixedDual, RectifiedDual

__all__ = [
    "DualController",
    "ExactPenalty",
    "FixedDual",
    "LogSpaceDual",
    "PIDDual",
    "ProjectedDual",
    "RectifiedDual",
]
