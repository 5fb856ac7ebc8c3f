"""A response of a policy, and what the policy tells about it."""

from collections.abc import Mapping
from typing import NamedTuple


class Answer(NamedTuple):
    """A response, or why there is none.

    Attributes:
        text: The response; ``""`` where there is a fault, and where nothing was said.
        fault: Why there is no response: ``unreadable`` (the policy cannot read the prompt), ``missing``, ``failed``; ``""`` with
            one.
        values: What the policy tells about it: ``length`` in tokens, ``unfinished`` (0 or 1), ``entropy`` (mean over tokens, in
            nats, of the distributions that were sampled from; not at temperature 0), ``kl`` (of the whole response).
        reason: More words about a fault.
    """

    text: str
    fault: str = ""
    values: Mapping[str, float] = {}
    reason: str = ""
