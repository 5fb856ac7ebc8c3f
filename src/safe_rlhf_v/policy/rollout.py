"""Sampling a rollout, and cutting it into the micro-batches that run through the networks together."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.layout import PromptTokens, layout
from safe_rlhf_v.models.sampling import SamplingOptions, generate
from safe_rlhf_v.models.types import Generation, ImageFeatures, ImageInputs
from safe_rlhf_v.policy.settings import UpdateSettings
from safe_rlhf_v.policy.types import MicroBatch, Rollout
from safe_rlhf_v.records.batches import PolicyBatch, Prompts, to_device

if TYPE_CHECKING:
    from safe_rlhf_v.policy.module import ConstrainedPolicyModule


def generator(*words: int) -> torch.Generator:
    """A CPU generator seeded from several integers (seed, step, rank): any difference gives an independent stream."""
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def draw(
    backbone: Backbone,
    prompts: Prompts,
    sampling: SamplingOptions,
    draws: torch.Generator,
    samples: int = 1,
    settings: UpdateSettings | None = None,
) -> tuple[Generation, tuple[tuple[MicroBatch, ...], ...]]:
    """Sample K responses to every prompt, and cut them into minibatches and micro-batches. Every picture is encoded once.

    Args:
        backbone: The policy.
        prompts: B prompts.
        sampling: How to draw.
        draws: Source of all randomness, on the CPU.
        samples: K.
        settings: How to cut; ``None`` leaves one micro-batch.
    """
    device = next(backbone.parameters()).device
    prompt_tokens, images = backbone.checked_prompts(prompts)
    images = to_device(images, device)
    features = backbone.encode_images(images)
    laid = layout(prompt_tokens, [[] for _ in prompt_tokens.ids], pad_id=backbone.pad_id, side="left")
    drawn = generate(backbone, to_device(laid, device), features, sampling, draws, samples)
    cutter = Cutter(backbone, prompt_tokens, images, features, drawn, samples)
    plan = cutter.plan(settings or UpdateSettings(), draws)
    return drawn, tuple(tuple(to_device(cutter.micro_batch(rows), device) for rows in minibatch) for minibatch in plan)


def make_rollout(
    module: "ConstrainedPolicyModule",
    batch: PolicyBatch,
    draws: torch.Generator,
    samples: int = 1,
    settings: UpdateSettings | None = None,
) -> Rollout:
    """:func:`draw` for a batch, with the masks that say what counts.

    Args:
        module: Whose policy acts, as it is configured.
        batch: B prompts.
        draws: See :func:`draw`.
        samples: K.
        settings: See :func:`draw`.
    """
    with torch.no_grad(), module.roles.acting(module.backbone):
        drawn, minibatches = draw(module.backbone, batch.prompts, module.sampling, draws, samples, settings)
    valid = batch.valid.repeat_interleave(samples)  # (N,)
    constraint_mask = module.constraint_mask(batch).repeat_interleave(samples, 0)  # (N, C)
    return Rollout(drawn, drawn.mask & valid[:, None], valid, constraint_mask, samples, minibatches)


class Cutter:
    """Cuts a rollout along its prompts; all samples of a prompt stay behind it."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: PromptTokens,
        images: ImageInputs,
        features: ImageFeatures,
        drawn: Generation,
        samples: int,
    ) -> None:
        """
        Args:
            backbone: Lays out the tokens.
            prompts: B prompts.
            images: Their pictures.
            features: The same, encoded.
            drawn: N = B x K responses.
            samples: K.
        """
        self.backbone, self.prompts, self.images, self.features = backbone, prompts, images, features
        self.samples = samples
        lengths = drawn.mask.sum(1).tolist()
        said = [row[:length] for row, length in zip(drawn.tokens.tolist(), lengths, strict=True)]
        self.responses = [said[i : i + samples] for i in range(0, len(said), samples)]  # per prompt

    def plan(self, settings: UpdateSettings, draws: torch.Generator) -> list[list[list[int]]]:
        """Prompt numbers of every micro-batch of every minibatch; within a minibatch neighbours have similar lengths."""
        count = len(self.responses)
        size = settings.minibatch_size or count
        order = torch.randperm(count, generator=draws).tolist() if size < count else list(range(count))
        minibatches = [order[i : i + size] for i in range(0, count, size)]
        micro = settings.micro_batch_size or size
        if micro >= size:
            return [[minibatch] for minibatch in minibatches]
        by_length = [sorted(minibatch, key=self._length) for minibatch in minibatches]
        return [[rows[i : i + micro] for i in range(0, len(rows), micro)] for rows in by_length]

    def _length(self, prompt: int) -> int:
        return len(self.prompts.ids[prompt]) + sum(map(len, self.responses[prompt]))

    def micro_batch(self, prompts: list[int]) -> MicroBatch:
        """The prompts with these numbers and all their responses, packed behind one prompt where there are several."""
        tokens, shown = self.prompts.take(prompts)
        responses = [self.responses[prompt] for prompt in prompts]
        laid = layout(tokens, responses, pad_id=self.backbone.pad_id, packed=self.samples > 1)
        rows = torch.tensor(prompts)[:, None] * self.samples + torch.arange(self.samples)  # (b, K)
        every = shown == list(range(len(self.images.ids)))
        images = self.images if every else self.backbone.select_images(self.images, shown)
        return MicroBatch(laid, images, self.features.take(torch.tensor(shown, dtype=torch.long)), rows.flatten())


def of_rows(micro_batch: MicroBatch, values: Tensor) -> Tensor:
    """(n, r) the micro-batch's rows of an (N, R) tensor, as wide as the micro-batch's own responses."""
    return values[micro_batch.rows][:, : micro_batch.tokens.response_mask.shape[1]]
