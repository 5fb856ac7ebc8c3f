"""Backbones and heads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.models.backbone import Backbone
    from safe_rlhf_v.models.clip_decoder import ClipDecoder
    from safe_rlhf_v.models.clip_towers import ClipTowers
    from safe_rlhf_v.models.heads import EvidenceHead, Head, ScalarHead
    from safe_rlhf_v.models.hf_vlm import HFVLM
    from safe_rlhf_v.models.links import CornLink, CumulativeLink, OrdinalLink, SoftmaxLink
    from safe_rlhf_v.models.reader import Reader
    from safe_rlhf_v.models.roles import Roles, SeparateRoles
    from safe_rlhf_v.models.saved_clip_decoder import SavedClipDecoder
    from safe_rlhf_v.models.shared_roles import SharedRoles

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
    "Roles": "roles",
    "SavedClipDecoder": "saved_clip_decoder",
    "ScalarHead": "heads",
    "SeparateRoles": "roles",
    "SharedRoles": "shared_roles",
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
    "Roles",
    "SavedClipDecoder",
    "ScalarHead",
    "SeparateRoles",
    "SharedRoles",
    "SoftmaxLink",
]


def __getattr__(name: str) -> Any:
    """Load a class when it is asked for: backbones pull in transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
