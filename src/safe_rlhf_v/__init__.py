"""safe_rlhf_v: PyTorch Lightning components for multimodal safe RLHF, after Safe RLHF-V (arXiv 2503.17682)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; at run time names are loaded when asked for
    from safe_rlhf_v.commands.calibrate import calibrate
    from safe_rlhf_v.commands.evaluate import evaluate
    from safe_rlhf_v.commands.filter import filter
    from safe_rlhf_v.commands.generate import generate
    from safe_rlhf_v.commands.moderate import moderate
    from safe_rlhf_v.data_modules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
    from safe_rlhf_v.guard import Guard, GuardedGenerator
    from safe_rlhf_v.models import HFVLM, ClipDecoder, EvidenceHead, ScalarHead
    from safe_rlhf_v.modules import (
        CostModule,
        GuardModule,
        PreferenceOptimisationModule,
        RewardModule,
        SupervisedModule,
    )
    from safe_rlhf_v.policy import ConstrainedPolicyModule, SeparateRoles, SharedRoles
    from safe_rlhf_v.records import Record, Response, Turn
    from safe_rlhf_v.shards import ShardedSplit, ShardWriter

__version__ = "0.1.0"

_HOME = {
    "ClipDecoder": "models",
    "ConstrainedPolicyModule": "policy",
    "CostModule": "modules",
    "EvidenceHead": "models",
    "Guard": "guard",
    "GuardModule": "modules",
    "GuardedGenerator": "guard",
    "HFVLM": "models",
    "PreferenceDataModule": "data_modules",
    "PreferenceOptimisationModule": "modules",
    "PromptDataModule": "data_modules",
    "Record": "records",
    "Response": "records",
    "RewardModule": "modules",
    "ScalarHead": "models",
    "SeparateRoles": "policy",
    "ShardWriter": "shards",
    "ShardedSplit": "shards",
    "SharedRoles": "policy",
    "SupervisedDataModule": "data_modules",
    "SupervisedModule": "modules",
    "Turn": "records",
    "calibrate": "commands.calibrate",
    "evaluate": "commands.evaluate",
    "filter": "commands.filter",
    "generate": "commands.generate",
    "moderate": "commands.moderate",
}
__all__ = [
    "HFVLM",
    "ClipDecoder",
    "ConstrainedPolicyModule",
    "CostModule",
    "EvidenceHead",
    "Guard",
    "GuardModule",
    "GuardedGenerator",
    "PreferenceDataModule",
    "PreferenceOptimisationModule",
    "PromptDataModule",
    "Record",
    "Response",
    "RewardModule",
    "ScalarHead",
    "SeparateRoles",
    "ShardWriter",
    "ShardedSplit",
    "SharedRoles",
    "SupervisedDataModule",
    "SupervisedModule",
    "Turn",
    "__version__",
    "calibrate",
    "evaluate",
    "filter",
    "generate",
    "moderate",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*globals(), *_HOME])
