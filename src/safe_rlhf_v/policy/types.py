"""What one policy iteration holds: sampled responses and their scores.

Shapes: B prompts, K samples per prompt, N = B x K responses (prompt by prompt), R response tokens, C constraints.
Masks are bool, True = a real token of a response that counts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.models.types import Generation, ImageFeatures, ImageInputs, TokenBatch


class MicroBatch(NamedTuple):
    """Responses that run through the networks together: all of a rollout, or a micro-batch of similar lengths.

    Attributes:
        tokens: Prompts with their n responses.
        images: The pictures of these prompts.
        features: The same, as the actor's tower encodes them.
        rows: (n,) int64, which of the N responses these are.
    """

    tokens: TokenBatch
    images: ImageInputs
    features: ImageFeatures
    rows: Tensor


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
