"""Sampling with a key-value cache: one prefill, finished rows dropped, log-probabilities recorded on the way.

Shapes: B prompts, N = B x K rows (prompt by prompt), R response tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from safe_rlhf_v.functional.finite import NonFiniteError
from safe_rlhf_v.functional.language import log_probs_of
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.sharding import gathered
from safe_rlhf_v.models.types import Generation, ImageFeatures, TokenBatch
from safe_rlhf_v.records.batches import Prompts, to_device


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are sampled.

    Attributes:
        max_new_tokens: Maximum number of tokens of a response, its end token included.
        temperature: Divides the logits; 0 takes the most probable token.
        top_p: Sample from the smallest set of tokens with at least this probability (arXiv 1904.09751).
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If an option is outside its range.
        """
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: needs max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1")


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: Prompts,
    options: SamplingOptions | None = None,
    generator: torch.Generator | None = None,
    samples: int = 1,
) -> Generation:
    """Sample K responses to each prompt; see :func:`generate`.

    Args:
        backbone: The policy.
        prompts: B prompts.
        options: How to sample.
        generator: Source of randomness, on the CPU; ``None`` for the global one.
        samples: K; each prompt runs once for all of them.

    Raises:
        ValueError: If a prompt leaves no room for a response.
    """
    prepared = to_device(backbone.prepare(prompts), next(backbone.parameters()).device)
    features = backbone.encode_images(prepared.images)
    return generate(backbone, prepared.tokens, features, options or SamplingOptions(), generator, samples)


@torch.no_grad()
def generate(
    backbone: Backbone,
    tokens: TokenBatch,
    features: ImageFeatures,
    options: SamplingOptions,
    generator: torch.Generator | None = None,
    samples: int = 1,
) -> Generation:
    """Sample K responses to each prepared prompt.

    The random numbers of every row are drawn before the first token: a response does not depend on which other rows are
    still unfinished. Tokens in ``backbone.banned_ids`` are never sampled; dropout is off during sampling.

    Args:
        backbone: The policy.
        tokens: B left-padded prompts, on the model's device.
        features: Encoded images of the prompts.
        options: How to sample.
        generator: See :func:`sample`.
        samples: K.

    Returns:
        N = B x K responses on the model's device, prompt by prompt.

    Raises:
        ValueError: If a prompt leaves no room for a response.
    """
    limits = [backbone.room(length) or options.max_new_tokens for length in tokens.attention_mask.sum(1).tolist()]
    limit = torch.tensor(limits).clamp(max=options.max_new_tokens).repeat_interleave(samples)  # (N,)
    uniforms = torch.rand(len(limit), int(limit.max()), generator=generator, dtype=torch.float32)  # (N, R)
    training = backbone.training
    backbone.eval()
    try:
        with gathered(backbone):
            return _loop(backbone, tokens, features, options, limit, uniforms, samples)
    finally:
        backbone.train(training)


def _loop(
    backbone: Backbone,
    tokens: TokenBatch,
    features: ImageFeatures,
    options: SamplingOptions,
    limit: Tensor,
    uniforms: Tensor,
    samples: int,
) -> Generation:
    from transformers import DynamicCache

    device = tokens.input_ids.device
    limit = limit.to(device)
    uniforms = uniforms.to(device)
    placed = features.take(tokens.image_index) if features.tokens else None
    cache = DynamicCache()
    positions = backbone.positions(tokens)  # (B, S) or (3, B, S)
    mask = tokens.attention_mask
    hidden = backbone.trunk(tokens.input_ids, mask, positions, placed, tokens.extras, cache)[:, -1]  # (B, D)
    if samples > 1:
        cache.batch_repeat_interleave(samples)
        hidden = hidden.repeat_interleave(samples, 0)
        mask = mask.repeat_interleave(samples, 0)
        positions = positions.repeat_interleave(samples, -2)
    axes = positions.shape[:-2]  # () or (3,)
    following = positions.amax(tuple(i for i in range(positions.dim()) if i != positions.dim() - 2)) + 1  # (N,)
    n, r = uniforms.shape
    ids = torch.full((n, r), backbone.pad_id, device=device)
    sampled = torch.zeros(n, r, dtype=torch.bool, device=device)
    log_probs = torch.zeros(n, r, dtype=torch.float32, device=device)
    finished = torch.zeros(n, dtype=torch.bool, device=device)
    rows = torch.arange(n, device=device)  # the row that each line of the running batch belongs to
    for step in range(r):
        logits = backbone.lm_head(hidden).float()  # (n, V)
        choice = _choose(logits, uniforms[rows, step], options, backbone.banned_ids)
        ids[rows, step] = choice
        sampled[rows, step] = True
        log_probs[rows, step] = log_probs_of(logits, choice)
        ended = choice == backbone.eos_id
        finished[rows[ended]] = True
        unfinished = ~ended & (step + 1 < limit[rows])
        if not unfinished.any():
            break
        if not unfinished.all():
            index = unfinished.nonzero().squeeze(1)
            cache.batch_select_indices(index)
            rows = rows[index]
            choice = choice[index]
            mask = mask[index]
            following = following[index]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        place = following[:, None].expand(*axes, -1, 1)
        hidden = backbone.trunk(choice[:, None], mask, place, None, {}, cache)[:, -1]
        following = following + 1
    longest = int(sampled.sum(1).max())
    ids = ids[:, :longest]
    sampled = sampled[:, :longest]
    log_probs = log_probs[:, :longest]
    lengths = sampled.sum(1).tolist()
    token_rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    texts = backbone.tokenizer.batch_decode(token_rows, skip_special_tokens=True)
    return Generation(ids, sampled, log_probs, finished, tuple(text.strip() for text in texts))


def _choose(logits: Tensor, uniforms: Tensor, options: SamplingOptions, banned: tuple[int, ...]) -> Tensor:
    """(n,) int64 tokens by inversion of the cumulative distribution at (n,) uniforms.

    Raises:
        NonFiniteError: If the probabilities are NaN or infinite.
    """
    logits = logits.index_fill(1, torch.tensor(banned, dtype=torch.long, device=logits.device), -torch.inf)
    if options.temperature == 0:
        return logits.argmax(-1)
    probs, order = torch.sort((logits / options.temperature).softmax(-1).double(), dim=-1, descending=True, stable=True)
    total = probs.cumsum(-1)
    if not bool(total[:, -1].isfinite().all()):
        raise NonFiniteError(
            "NaN or infinity in the policy's probabilities; stopped without saving: continue from an earlier checkpoint, "
            "with a smaller learning rate"
        )
    if options.top_p < 1:
        probs = probs * (total - probs < options.top_p)  # the token that crosses top_p is included
        total = probs.cumsum(-1)
    position = uniforms.double()[:, None] * total[:, -1:]
    index = torch.searchsorted(total, position, right=True).clamp(max=logits.shape[1] - 1)
    last = (probs > 0).sum(-1, keepdim=True) - 1  # rounding must not reach a token of probability 0
    tokens: Tensor = order.gather(1, index.minimum(last)).squeeze(1)
    return tokens
