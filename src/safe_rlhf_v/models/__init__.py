"""Backbones and heads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.models.backbone import Backbone
    from safe_rlhf_v.models.clip_decoder import ClipDecoder, SavedClipDecoder
    from safe_rlhf_v.models.clip_towers import ClipTowers
    from safe_rlhf_v.models.heads import EvidenceHead, Head, ScalarHead
    from safe_rlhf_v.models.hf_vlm import HFVLM
    from safe_rlhf_v.models.links import CornLink, CumulativeLink, OrdinalLink, SoftmaxLink
    from safe_rlhf_v.models.reader import Reader

_HOME = {
    "Backbone": "backbone",
    "ClipDecoder": "clip_decoder",
    "ClipTowers": "clip_towers",
    "CornLink": "links",
    "CumulativeLink": "links",
    "EvidenceHead": "heads",
    "HFVLM": "hf_vlm",
    "Head": "heads",
    "OrdinalLink": "links",
    "Reader": "reader",
    "SavedClipDecoder": "clip_decoder",
    "ScalarHead": "heads",
    "SoftmaxLink": "links",
}
__all__ = [
    "HFVLM",
    "Backbone",
    "ClipDecoder",
    "ClipTowers",
    "CornLink",
    "CumulativeLink",
    "EvidenceHead",
    "Head",
    "OrdinalLink",
    "Reader",
    "SavedClipDecoder",
    "ScalarHead",
    "SoftmaxLink",
]


def __getattr__(name: str) -> Any:
    """Import a class on first use, because backbones import transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
