"""Backbones and heads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.models.backbone import Backbone
    from safe_rlhf_v.models.clip_decoder import ClipDecoder
    from safe_rlhf_v.models.heads import EvidenceHead, Head, ScalarHead
    from safe_rlhf_v.models.hf_vlm import HFVLM

_HOME = {
    "Backbone": "backbone",
    "ClipDecoder": "clip_decoder",
    "EvidenceHead": "heads",
    "HFVLM": "hf_vlm",
    "Head": "heads",
    "ScalarHead": "heads",
}
__all__ = ["HFVLM", "Backbone", "ClipDecoder", "EvidenceHead", "Head", "ScalarHead"]


def __getattr__(name: str) -> Any:
    """Load a class when it is asked for: backbones pull in transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
