"""What of a run's settings its memory depends on."""

from typing import Literal, NamedTuple

from safe_rlhf_v.planning.network import BackboneOptions
from safe_rlhf_v.planning.vision import VisionSize

Stage = Literal["supervised", "reward", "cost", "guard", "preference_optimisation", "policy"]


class RunSettings(NamedTuple):
    """One run.

    Attributes:
        stage: What is trained.
        backbone: Settings of its network.
        vision: Numbers of its largest picture.
        mixed: Under bfloat16 autocast.
        text: Tokens of a prompt without its picture.
        response: Tokens of a response.
        max_length: Most tokens of prompt + response; ``None`` for no limit.
        batch: Prompts per device and step.
        responses: Behind a prompt (2 of a pair, K of a policy).
        packed: All responses of a prompt in one row.
        joined: A guard also learns from all responses of a prompt in the place of one.
        reads_tokens: The head also reads the log-probabilities of the response's tokens.
        sorts: Sampling sorts the vocabulary (``top_p`` below 1).
        accumulated: Batches per optimizer step.
        critics: The policy has critics.
        shared: All roles are adapters on one base.
        started: The policy's reference is an adapter, too.
        micro_batch: Prompts per forward and backward pass of a policy; ``None`` for all of a minibatch.
        minibatch: Prompts per optimizer step of a policy; ``None`` for all.
        evaluated: Prompts per device that are read together in validation, and before a policy's first step; 0 for none.
        demonstrations: PTX demonstrations per step; 0 without.
        feature_cache: Pictures whose features are cached.
        optimizer_states: Numbers that the optimizer keeps per trained number.
        ranks: Processes.
        sharded: FSDP2 instead of DDP.
        cpu: On a CPU, where optimizers go from tensor to tensor.
    """

    stage: Stage
    backbone: BackboneOptions
    vision: VisionSize
    mixed: bool = False
    text: int = 128
    response: int = 512
    max_length: int | None = None
    batch: int = 1
    responses: int = 1
    packed: bool = True
    joined: bool = False
    reads_tokens: bool = False
    sorts: bool = False
    accumulated: int = 1
    critics: bool = True
    shared: bool = False
    started: bool = False
    micro_batch: int | None = None
    minibatch: int | None = None
    evaluated: int = 0
    demonstrations: int = 0
    feature_cache: int = 0
    optimizer_states: float = 2.0
    ranks: int = 1
    sharded: bool = False
    cpu: bool = False

    @property
    def prompt(self) -> int:
        """Tokens of a prompt with its picture."""
        return self.text + self.vision.tokens

    @property
    def room(self) -> int:
        """Tokens of a response that fit. Raises: ValueError: If none does."""
        if self.max_length is None:
            return self.response
        if self.max_length <= self.prompt:
            raise ValueError(
                f"a prompt has {self.prompt} tokens ({self.vision.tokens} of its picture) and max_length is {self.max_length}: "
                "raise max_length, or plan for shorter prompts (--prompt_tokens, --image_tokens)"
            )
        return min(self.response, self.max_length - self.prompt)
