"""Constrained policies: rollout, roles, advantages, surrogates and the update."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.policy.advantages import GAE, AdvantageEstimator, GroupRelative
    from safe_rlhf_v.policy.module import ConstrainedPolicyModule
    from safe_rlhf_v.policy.roles import Roles, SeparateRoles
    from safe_rlhf_v.policy.samplers import NetworkSampler, Sampler
    from safe_rlhf_v.policy.shared_roles import SharedRoles
    from safe_rlhf_v.policy.surrogates import GSPO, ClipHigher, PPOClip, Surrogate, TokenLosses

_HOME = {
    "AdvantageEstimator": "advantages",
    "ClipHigher": "surrogates",
    "ConstrainedPolicyModule": "module",
    "GAE": "advantages",
    "GSPO": "surrogates",
    "GroupRelative": "advantages",
    "NetworkSampler": "samplers",
    "PPOClip": "surrogates",
    "Roles": "roles",
    "Sampler": "samplers",
    "SeparateRoles": "roles",
    "SharedRoles": "shared_roles",
    "Surrogate": "surrogates",
    "TokenLosses": "surrogates",
}
__all__ = [
    "GAE",
    "GSPO",
    "AdvantageEstimator",
    "ClipHigher",
    "ConstrainedPolicyModule",
    "GroupRelative",
    "NetworkSampler",
    "PPOClip",
    "Roles",
    "Sampler",
    "SeparateRoles",
    "SharedRoles",
    "Surrogate",
    "TokenLosses",
]


def __getattr__(name: str) -> Any:
    """Load a class when it is asked for: networks pull in transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
