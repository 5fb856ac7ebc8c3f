"""A rollout: responses are sampled, and split into micro-batches that run through the networks together.

Shapes: B prompts, K samples per prompt, N = B x K responses (prompt by prompt), R response tokens, C constraints; n responses of
one micro-batch, r of their tokens. Masks are bool, True = a real token of a response that counts.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.layout import PromptTokens, layout
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.types import Generation, ImageFeatures, ImageInputs, TokenBatch
from safe_rlhf_v.policy.samplers import Asked, NetworkSampler, Sampler
from safe_rlhf_v.policy.settings import UpdateSettings
from safe_rlhf_v.records.batches import PolicyBatch, Prompts, to_device


@dataclass(frozen=True)
class Texts:
    """Prompts with their responses as texts, for models that read with a tokenizer of their own; they stay on the CPU.

    Attributes:
        prompts: The prompts of b rows.
        responses: Per prompt its responses.
    """

    prompts: Prompts
    responses: tuple[tuple[str, ...], ...]


class MicroBatch(NamedTuple):
    """Responses that run through the networks together: all of a rollout, or a micro-batch of similar lengths.

    Attributes:
        tokens: Prompts with their n responses.
        images: The pictures of these prompts.
        features: The same, as the actor's tower encodes them.
        rows: (n,) int64, which of the N responses these are.
        texts: The same as texts; only external models read them.
    """

    tokens: TokenBatch
    images: ImageInputs
    features: ImageFeatures
    rows: Tensor
    texts: Texts | None = None


class Rollout(NamedTuple):
    """N sampled responses.

    Attributes:
        generation: Tokens, text and the log-probabilities recorded while sampling.
        mask: (N, R) bool: ``generation.mask`` without padding rows.
        valid: (N,) bool, False for the responses to padding rows.
        constraint_mask: (N, C) bool, which constraints a response counts for.
        samples: K.
        minibatches: The rollout cut up: per optimizer step the micro-batches whose gradients are added.
    """

    generation: Generation
    mask: Tensor
    valid: Tensor
    constraint_mask: Tensor
    samples: int
    minibatches: tuple[tuple[MicroBatch, ...], ...]

    @property
    def micro_batches(self) -> tuple[MicroBatch, ...]:
        """Every micro-batch once."""
        return tuple(micro_batch for minibatch in self.minibatches for micro_batch in minibatch)


class Scores(NamedTuple):
    """What the frozen roles say about N responses.

    Attributes:
        reward: (N,) float32, in the policy's units (normalised where wished); neither clipped nor penalised.
        cost: (N,) float32, likewise; above 0 is harmful. The constraint is measured on it.
        raw_reward: (N,) float32, as the reward model gave it.
        raw_cost: (N,) float32, as the cost model gave it.
        reference: (N, R) float32 log-probability of each token under the reference, 0 where masked.
    """

    reward: Tensor
    cost: Tensor
    raw_reward: Tensor
    raw_cost: Tensor
    reference: Tensor


class Values(NamedTuple):
    """One tensor of the reward critic and one of the cost critic.

    Attributes:
        reward: (N, R) float32, 0 where masked.
        cost: (N, R) float32, 0 where masked.
    """

    reward: Tensor
    cost: Tensor


def assemble(micro_batches: tuple[MicroBatch, ...], pieces: list[Tensor], width: int) -> Tensor:
    """(N,) or (N, R): per-micro-batch results, (n,) or (n, r <= R), back in rollout order; 0 beyond a micro-batch's width."""
    if pieces[0].dim() == 1:
        flat = torch.cat(pieces)
    else:
        flat = torch.cat([torch.nn.functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces])
    order = torch.cat([micro_batch.rows for micro_batch in micro_batches])
    return flat[order.argsort()]


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
    sampler: Sampler | None = None,
) -> tuple[Generation, tuple[tuple[MicroBatch, ...], ...]]:
    """Sample K responses to every prompt, and split them into minibatches and micro-batches. Every picture is encoded once.

    Where another program samples, the policy reads the responses once more: what is learned from are its own log-probabilities.

    Args:
        backbone: The policy.
        prompts: B prompts.
        sampling: How to draw.
        draws: Source of all randomness, on the CPU.
        samples: K.
        settings: Sizes of minibatches and micro-batches; ``None`` gives one micro-batch.
        sampler: Who samples; ``None`` for the policy itself.

    Returns:
        The N responses, and per optimizer step its micro-batches.
    """
    device = next(backbone.parameters()).device
    prompt_tokens, images = backbone.checked_prompts(prompts)
    images = to_device(images, device)
    features = backbone.encode_images(images)
    asked = Asked(prompts, prompt_tokens, features, sampling, draws, samples)
    generation = (sampler or NetworkSampler())(backbone, asked)
    splitter = Splitter(backbone, prompts, prompt_tokens, images, features, generation, samples)
    plan = splitter.plan(settings or UpdateSettings(), draws)
    minibatches = tuple(
        tuple(to_device(splitter.micro_batch(numbers), device) for numbers in minibatch) for minibatch in plan
    )
    if generation.engine_log_probs is not None:
        generation = generation._replace(log_probs=_own_log_probs(backbone, minibatches, generation))
    return generation, minibatches


@torch.no_grad()
def _own_log_probs(
    backbone: Backbone, minibatches: tuple[tuple[MicroBatch, ...], ...], generation: Generation
) -> Tensor:
    """(N, R) log-probability of each sampled token under the policy itself."""
    micro_batches = tuple(micro_batch for minibatch in minibatches for micro_batch in minibatch)
    pieces = []
    for micro_batch in micro_batches:
        log_probs = backbone.read(micro_batch.tokens, micro_batch.features, log_probs=True).log_probs
        assert log_probs is not None
        pieces.append(log_probs)
    return assemble(micro_batches, pieces, generation.mask.shape[1])


def make_rollout(
    actor: Backbone,
    batch: PolicyBatch,
    constraint_mask: Tensor,
    sampling: SamplingOptions,
    draws: torch.Generator,
    samples: int = 1,
    settings: UpdateSettings | None = None,
    sampler: Sampler | None = None,
) -> Rollout:
    """:func:`draw` for a batch, with the masks that say what counts.

    Args:
        actor: The policy.
        batch: B prompts.
        constraint_mask: (B, C) bool, which constraints each prompt counts for.
        sampling: See :func:`draw`.
        draws: See :func:`draw`.
        samples: K.
        settings: See :func:`draw`.
        sampler: See :func:`draw`.
    """
    with torch.no_grad():
        generation, minibatches = draw(actor, batch.prompts, sampling, draws, samples, settings, sampler)
    valid = batch.valid.repeat_interleave(samples)  # (N,)
    constraint_mask = constraint_mask.repeat_interleave(samples, 0)  # (N, C)
    return Rollout(generation, generation.mask & valid[:, None], valid, constraint_mask, samples, minibatches)


class Splitter:
    """Splits a rollout along its prompts; all samples of a prompt stay behind it."""

    def __init__(
        self,
        backbone: Backbone,
        texts: Prompts,
        prompts: PromptTokens,
        images: ImageInputs,
        features: ImageFeatures,
        generation: Generation,
        samples: int,
    ) -> None:
        """Collect the responses of each prompt.

        Args:
            backbone: Lays out the tokens.
            texts: B prompts.
            prompts: The same as tokens.
            images: Their pictures.
            features: The same, encoded.
            generation: N = B x K responses.
            samples: K.
        """
        self.backbone = backbone
        self.prompts = prompts
        self.images = images
        self.features = features
        self.samples = samples
        self.texts = texts
        self.words = [generation.text[i : i + samples] for i in range(0, len(generation.text), samples)]
        lengths = generation.mask.sum(1).tolist()
        ids = [row[:length] for row, length in zip(generation.tokens.tolist(), lengths, strict=True)]
        self.responses = [ids[i : i + samples] for i in range(0, len(ids), samples)]  # per prompt

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
        tokens, image_numbers = self.prompts.take(prompts)
        responses = [self.responses[prompt] for prompt in prompts]
        packed = self.samples > 1 and self.backbone.packs
        laid = layout(tokens, responses, pad_id=self.backbone.pad_id, packed=packed)
        rows = torch.tensor(prompts)[:, None] * self.samples + torch.arange(self.samples)  # (b, K)
        every = image_numbers == list(range(len(self.images.ids)))
        images = self.images if every else self.backbone.select_images(self.images, image_numbers)
        features = self.features.take(torch.tensor(image_numbers, dtype=torch.long))
        texts = Texts(self.texts.take(prompts), tuple(self.words[prompt] for prompt in prompts))
        return MicroBatch(laid, images, features, rows.flatten(), texts)


def of_rows(micro_batch: MicroBatch, values: Tensor) -> Tensor:
    """(n, r) the micro-batch's rows of an (N, R) tensor, as wide as the micro-batch's own responses."""
    return values[micro_batch.rows][:, : micro_batch.tokens.response_mask.shape[1]]
