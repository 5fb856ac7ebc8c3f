"""Who samples a rollout's responses: the policy's own network, or a program that serves the same weights."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import NamedTuple

import torch

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.layout import PromptTokens, layout
from safe_rlhf_v.models.sampling import SamplingOptions, generate
from safe_rlhf_v.models.types import Generation, ImageFeatures
from safe_rlhf_v.records.batches import Prompts, to_device


class Asked(NamedTuple):
    """B prompts to respond to.

    Attributes:
        prompts: Texts and pictures.
        tokens: The same as the policy's tokens.
        features: Their pictures, encoded by the policy.
        options: How to sample.
        draws: Source of all randomness, on the CPU.
        samples: K, responses per prompt.
    """

    prompts: Prompts
    tokens: PromptTokens
    features: ImageFeatures
    options: SamplingOptions
    draws: torch.Generator
    samples: int


class Sampler(ABC):
    """Draws K responses to each prompt; a subclass writes :meth:`__call__`."""

    @abstractmethod
    def __call__(self, policy: Backbone, asked: Asked) -> Generation:
        """N = B x K responses on the policy's device, prompt by prompt.

        Args:
            policy: The policy as it is now.
            asked: What to respond to.
        """

    def check(self, policy: Backbone, started: Collection[str]) -> None:  # noqa: B027  most have nothing to refuse
        """Refuse a policy that cannot be sampled from; by default none is.

        Args:
            policy: Before the first step.
            started: Names of its tensors that a start run gave, and not its base.

        Raises:
            ValueError: Saying why.
        """


class NetworkSampler(Sampler):
    """The policy's own network samples; the log-probabilities are recorded on the way.

    YAML::

        sampler: {class_path: safe_rlhf_v.policy.NetworkSampler}
    """

    def __call__(self, policy: Backbone, asked: Asked) -> Generation:
        """See :class:`Sampler`."""
        device = next(policy.parameters()).device
        rows = layout(asked.tokens, [[] for _ in asked.tokens.ids], pad_id=policy.pad_id, side="left")
        return generate(policy, to_device(rows, device), asked.features, asked.options, asked.draws, asked.samples)
