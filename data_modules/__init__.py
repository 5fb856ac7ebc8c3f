"""LightningDataModules over image-text shards: exact epochs, exact evaluation, exact resume."""

if __name__ != "safe_rlhf_v.data_modules":  # a second copy of every class would be "not a subclass" of the first
    raise ImportError("import safe_rlhf_v.data_modules, not data_modules")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.data_modules.preference import PreferenceDataModule, PTXPreferenceDataModule
    from safe_rlhf_v.data_modules.prompt import PromptDataModule
    from safe_rlhf_v.data_modules.supervised import SupervisedDataModule

_HOME = {
    "PTXPreferenceDataModule": "preference",
    "PreferenceDataModule": "preference",
    "PromptDataModule": "prompt",
    "SupervisedDataModule": "supervised",
}
__all__ = ["PTXPreferenceDataModule", "PreferenceDataModule", "PromptDataModule", "SupervisedDataModule"]


def __getattr__(name: str) -> Any:
    """Load a data module when it is asked for: data workers import this package and must stay light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
