"""Evaluation: policies respond to held-out prompts, judges say what the responses are worth, and how far that can be trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.evaluation.audit import Audit
    from safe_rlhf_v.evaluation.people import PeopleRatings
    from safe_rlhf_v.evaluation.policies import Answer, BestOf, ModelPolicy, Policy
    from safe_rlhf_v.evaluation.refusals import RefusalWords
    from safe_rlhf_v.evaluation.stored import ResponsesFile

_HOME = {
    "Answer": "policies",
    "Audit": "audit",
    "BestOf": "policies",
    "ModelPolicy": "policies",
    "PeopleRatings": "people",
    "Policy": "policies",
    "RefusalWords": "refusals",
    "ResponsesFile": "stored",
}
__all__ = [
    "Answer",
    "Audit",
    "BestOf",
    "ModelPolicy",
    "PeopleRatings",
    "Policy",
    "RefusalWords",
    "ResponsesFile",
]


def __getattr__(name: str) -> Any:
    """Load a class when it is asked for: help needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
