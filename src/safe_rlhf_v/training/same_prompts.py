"""Whether two networks read the same tokens and pixels of a prompt."""

import json

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.training.checkpoints import CheckpointError, fingerprint


def check_same_prompts(file: str, scorer: Backbone, actor: Backbone) -> None:
    """Refuse a reward or cost model that would read other prompts than it was trained on, as the actor prepares them.

    Args:
        file: Name of its checkpoint, for the message.
        scorer: Its network.
        actor: The policy.

    Raises:
        CheckpointError: Naming the first difference.
    """
    ours = fingerprint(actor)
    theirs = fingerprint(scorer)
    for name in ("backbone", "tokenizer"):
        if ours[name] != theirs[name]:
            raise CheckpointError(
                f"{file}: its {name} is {theirs[name]:.60}, the actor's is {ours[name]:.60}; actor, reward and cost model "
                "must share class and tokenizer"
            )
    here = actor.prompt_settings
    there = scorer.prompt_settings
    for name in here.keys() & there.keys():
        if json.dumps(here[name], sort_keys=True) != json.dumps(there[name], sort_keys=True):
            raise CheckpointError(
                f"{file}: it was trained on prompts with another {name} ({str(there[name])!r:.60}) than the actor's "
                f"({str(here[name])!r:.60}); give the actor the template and picture size of the reward and cost model"
            )
