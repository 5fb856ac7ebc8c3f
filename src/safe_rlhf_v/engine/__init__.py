"""Rollouts sampled by an inference server that serves the policy's base and adapter (experimental)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.engine.sampler import EngineError, EngineSampler

__all__ = ["EngineError", "EngineSampler"]


def __getattr__(name: str) -> Any:
    """Load a class when it is asked for: networks pull in transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.sampler"), name)
