"""The guard at work: moderation, calibration and guarded generation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.guard.calibration import Calibration
    from safe_rlhf_v.guard.generation import GuardedGenerator
    from safe_rlhf_v.guard.inputs import Input
    from safe_rlhf_v.guard.moderation import Guard
    from safe_rlhf_v.guard.strategies import BestOfK, HigherTemperature, SafetyReminder, Strategy
    from safe_rlhf_v.guard.verdict import Verdict

_HOME = {
    "BestOfK": "strategies",
    "Calibration": "calibration",
    "Guard": "moderation",
    "GuardedGenerator": "generation",
    "HigherTemperature": "strategies",
    "Input": "inputs",
    "SafetyReminder": "strategies",
    "Strategy": "strategies",
    "Verdict": "verdict",
}
__all__ = [
    "BestOfK",
    "Calibration",
    "Guard",
    "GuardedGenerator",
    "HigherTemperature",
    "Input",
    "SafetyReminder",
    "Strategy",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    """Load a class when it is asked for: commands must answer ``--help`` without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
