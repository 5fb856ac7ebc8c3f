"""Switch off every form of dropout, for policies: their log-probabilities are compared with recorded ones and a reference's.

With dropout, the policy that is scored differs from the policy that sampled, and its distance from the reference is noisy
(TRL switches ``nn.Dropout`` off for the same reason).
"""

import re
from typing import Any

from torch import nn

_NAME = re.compile(r"drop|jitter", re.IGNORECASE)


def switch_off_dropout(module: nn.Module) -> None:
    """Set every drop probability to 0, in place; training mode and gradients stay as they are.

    This covers dropout modules (adapters' too), stochastic depth and patch dropout; probabilities that a module stores as a
    number for functional dropout (``attention_dropout``, ``layerdrop``, ...) or for routing noise; and those that it reads
    from its Hugging Face config in every pass. The configs hold 0 from then on, also when saved.

    Args:
        module: Any network.
    """
    for part in module.modules():
        _zero(part, everything=_NAME.search(type(part).__name__) is not None)
        _zero_config(getattr(part, "config", None))


def _zero(owner: Any, *, everything: bool = False) -> None:
    """Set probabilities among an object's attributes to 0: those named after dropout or jitter, or all of a dropout module."""
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and 0 < value <= 1 and (everything or _NAME.search(name)):
            setattr(owner, name, 0.0)


def _zero_config(config: Any) -> None:
    """The same for a Hugging Face config and the configs inside it."""
    if not hasattr(config, "to_dict") or isinstance(config, nn.Module):
        return
    _zero(config)
    for inner in list(vars(config).values()):
        _zero_config(inner)
