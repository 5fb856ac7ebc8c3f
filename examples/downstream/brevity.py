"""A reward model that is a function: named by its import path, in evaluation and as the reward of a policy."""

from safe_rlhf_v.scoring.external import Conversation


def brevity(conversations: list[Conversation]) -> list[float]:
    """Higher for shorter responses; ``images`` and earlier turns are there, too."""
    return [-len(conversation.messages[-1]["content"].split()) / 10 for conversation in conversations]
