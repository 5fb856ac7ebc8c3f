"""Shared by all training: checkpoints, runs, exact resume, optimisers and schedules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.training.checkpoints import CheckpointError
    from safe_rlhf_v.training.optim import WarmupCosine
    from safe_rlhf_v.training.runs import load_run

_HOME = {
    "CheckpointError": "checkpoints",
    "WarmupCosine": "optim",
    "load_run": "runs",
}
__all__ = [
    "CheckpointError",
    "WarmupCosine",
    "load_run",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use, because lightning takes seconds to import."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
