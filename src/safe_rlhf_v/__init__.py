"""safe_rlhf_v: PyTorch Lightning components for multimodal safe RLHF, after Safe RLHF-V (arXiv 2503.17682)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ClipDecoder": "models",
    "CostModule": "modules",
    "EvidenceHead": "models",
    "HFVLM": "models",
    "PreferenceDataModule": "data_modules",
    "Record": "records",
    "Response": "records",
    "RewardModule": "modules",
    "ScalarHead": "models",
    "ShardWriter": "shards",
    "ShardedSplit": "shards",
    "SupervisedDataModule": "data_modules",
    "SupervisedModule": "modules",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
