"""Sampling with a key-value cache: one prefill, finished rows dropped, log-probabilities recorded on the way.

Whether rows have finished is asked at every token on the CPU, where a finished row costs time, and every few tokens on an
accelerator, where the question makes it wait for the last token. On a CUDA device the tokens run as a graph, where the network
allows it (:mod:`~safe_rlhf_v.models.decoding_graph`).

Shapes: B prompts, N = B x K rows (prompt by prompt), n rows that are still running, R response tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_rlhf_v.functional.finite import NonFiniteError
from safe_rlhf_v.functional.language import log_probs_of
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.decoding_graph import FixedStep, fixed_step_works, last_place
from safe_rlhf_v.models.sharding import gathered
from safe_rlhf_v.models.types import Generation, ImageFeatures, TokenBatch
from safe_rlhf_v.records.batches import Prompts, to_device

STEPS_BETWEEN_CHECKS = {"cpu": 1}
"""Tokens between two questions whether rows have finished, by type of device."""
DEFAULT_STEPS_BETWEEN_CHECKS = 16
FIXED_STEP_DEVICES = {"cuda"}
"""Types of device on which tokens run in buffers of a fixed size."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are sampled.

    Attributes:
        max_new_tokens: Maximum number of tokens of a response, its end token included.
        temperature: Divides the logits; 0 takes the most probable token.
        top_p: Sample from the smallest set of tokens with at least this probability (arXiv 1904.09751).
        cuda_graphs: On a CUDA device, launch all kernels of a token at once, where the network allows it.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    cuda_graphs: bool = True

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
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    samples: int = 1,
    entropy: bool = False,
) -> Generation:
    """Sample K responses to each prepared prompt.

    The random numbers of every row are drawn before the first token: a response does not depend on which other rows are
    still unfinished. With a generator for each prompt it does not depend on which other prompts are beside it either, up to the
    rounding of batched arithmetic. Tokens in ``backbone.banned_ids`` are never sampled; dropout is off during sampling.

    Args:
        backbone: The policy.
        tokens: B left-padded prompts, on the model's device.
        features: Encoded images of the prompts.
        options: How to sample.
        generator: See :func:`sample`; or one for each prompt.
        samples: K.
        entropy: Whether the entropy of every token's distribution is measured.

    Returns:
        N = B x K responses on the model's device, prompt by prompt.

    Raises:
        ValueError: If a prompt leaves no room for a response.
    """
    limits = [backbone.room(length) or options.max_new_tokens for length in tokens.attention_mask.sum(1).tolist()]
    limit = torch.tensor(limits).clamp(max=options.max_new_tokens).repeat_interleave(samples)  # (N,)
    uniforms = _uniforms(limit, options.max_new_tokens, generator, samples)  # (N, R)
    training = backbone.training
    backbone.eval()
    try:
        with gathered(backbone):
            return _loop(backbone, tokens, features, options, limit, uniforms, samples, entropy)
    finally:
        backbone.train(training)


def _uniforms(
    limit: Tensor, most: int, generator: torch.Generator | Sequence[torch.Generator] | None, samples: int
) -> Tensor:
    """(N, R) random numbers; those of a prompt with a generator of its own do not depend on R."""
    width = int(limit.max())
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(len(limit), width, generator=generator, dtype=torch.float32)
    rows = [torch.rand(samples, most, generator=own, dtype=torch.float32) for own in generator]
    return torch.cat(rows)[:, :width]


class _Running:
    """The rows that are still running.

    Attributes:
        rows: (n,) which of the N rows each line is.
        alive: (n,) bool, False for a row that has finished and is not dropped yet.
        hidden: (n, D) states from which the next token is sampled.
    """

    def __init__(
        self, backbone: Backbone, tokens: TokenBatch, features: ImageFeatures, samples: int, room: int, graphs: bool
    ) -> None:
        """Run the B prompts once, for all K samples of each.

        Args:
            backbone: The policy.
            tokens: B left-padded prompts.
            features: Encoded images of the prompts.
            samples: K.
            room: R, tokens that will follow a prompt.
            graphs: Whether tokens may run in fixed buffers.
        """
        placed = features.take(tokens.image_index) if features.tokens else None
        positions = backbone.positions(tokens)  # (B, S) or (3, B, S)
        mask = tokens.attention_mask
        self._backbone = backbone
        self._cache = backbone.new_cache(room)
        hidden = backbone.trunk(tokens.input_ids, mask, positions, placed, tokens.extras, self._cache)[:, -1]  # (B, D)
        if samples > 1:
            self._cache.batch_repeat_interleave(samples)
            hidden = hidden.repeat_interleave(samples, 0)
            mask = mask.repeat_interleave(samples, 0)
            positions = positions.repeat_interleave(samples, -2)
        self.hidden = hidden
        self.rows = torch.arange(len(mask), device=mask.device)
        self.alive = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        self._axes = positions.shape[:-2]  # () or (3,)
        others = tuple(i for i in range(positions.dim()) if i != positions.dim() - 2)
        self._position = positions.amax(others) + 1  # (n,) of the next token
        self._last = last_place(backbone)
        self._length = mask.shape[1]  # cached tokens
        self._mask = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1)  # (n, S + R)
        fixed = graphs and mask.device.type in FIXED_STEP_DEVICES
        self._fixed = fixed and fixed_step_works(backbone, self._cache)
        self._step: FixedStep | None = None

    def worth_dropping(self, count: int) -> bool:
        """Whether to go on with ``count`` rows only: always, but new buffers and a new graph must pay."""
        return count < len(self.rows) // (2 if self._fixed else 1)

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those at the given lines."""
        self._step = None
        self._cache.batch_select_indices(index)
        self.rows = self.rows[index]
        self.alive = self.alive[index]
        self._position = self._position[index]
        self._mask = self._mask[index]

    def read(self, choice: Tensor) -> None:
        """Run the (n,) tokens that were sampled."""
        places = self._position[:, None].expand(*self._axes, -1, 1)
        if self._fixed:
            if self._step is None or self._length == self._step.columns:
                self._step = FixedStep(self._backbone, self._cache, self._mask, places, self._length)
            self.hidden = self._step(choice)
        else:
            seen = self._mask[:, : self._length + 1]
            self.hidden = self._backbone.trunk(choice[:, None], seen, places, None, {}, self._cache)[:, -1]
        self._length += 1
        self._position = (self._position + 1).clamp(max=self._last)


def _loop(
    backbone: Backbone,
    tokens: TokenBatch,
    features: ImageFeatures,
    options: SamplingOptions,
    limit: Tensor,
    uniforms: Tensor,
    samples: int,
    entropy: bool,
) -> Generation:
    device = tokens.input_ids.device
    between = STEPS_BETWEEN_CHECKS.get(device.type, DEFAULT_STEPS_BETWEEN_CHECKS)
    limit = limit.to(device)
    uniforms = uniforms.to(device)
    banned = torch.tensor(backbone.banned_ids, dtype=torch.long, device=device)
    n, r = uniforms.shape
    ids = torch.full((n, r), backbone.pad_id, device=device)
    sampled = torch.zeros(n, r, dtype=torch.bool, device=device)
    log_probs = torch.zeros(n, r, dtype=torch.float32, device=device)
    entropies = torch.zeros_like(log_probs) if entropy else None
    finished = torch.zeros(n, dtype=torch.bool, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    batch = _Running(backbone, tokens, features, samples, r, options.cuda_graphs)
    for step in range(r):
        logits = backbone.lm_head(batch.hidden).float()  # (n, V)
        rows = batch.rows
        choice, finite_now = _choose(logits, uniforms[rows, step], options, banned)
        finite &= finite_now
        ids[rows, step] = choice.where(batch.alive, backbone.pad_id)
        sampled[rows, step] = batch.alive
        log_probs[rows, step] = log_probs_of(logits, choice).where(batch.alive, 0)
        if entropies is not None:
            entropies[rows, step] = _entropy(logits, options, banned).where(batch.alive, 0)
        ended = batch.alive & (choice == backbone.eos_id)
        finished[rows] |= ended
        batch.alive &= ~ended & (step + 1 < limit[rows])
        if step + 1 == r:
            break
        if (step + 1) % between == 0:
            index = batch.alive.nonzero().squeeze(1)
            if not len(index) or not finite:
                break
            if batch.worth_dropping(len(index)):
                batch.keep(index)
                choice = choice[index]
        batch.read(choice)
    if not finite:
        raise NonFiniteError(
            "NaN or infinity in the policy's probabilities; stopped without saving: continue from an earlier checkpoint, "
            "with a smaller learning rate"
        )
    longest = int(sampled.sum(1).max())
    ids = ids[:, :longest]
    sampled = sampled[:, :longest]
    log_probs = log_probs[:, :longest]
    lengths = sampled.sum(1).tolist()
    token_rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    texts = backbone.tokenizer.batch_decode(token_rows, skip_special_tokens=True)
    entropies = None if entropies is None else entropies[:, :longest]
    return Generation(ids, sampled, log_probs, finished, tuple(text.strip() for text in texts), entropy=entropies)


def _entropy(logits: Tensor, options: SamplingOptions, banned: Tensor) -> Tensor:
    """(n,) entropy in nats of the distributions that tokens are sampled from, before ``top_p``; 0 at temperature 0."""
    if options.temperature == 0:
        return logits.new_zeros(len(logits))
    logits = logits.index_fill(1, banned, -torch.inf)
    entropy: Tensor = torch.special.entr((logits / options.temperature).softmax(-1)).sum(-1)
    return entropy


def _choose(logits: Tensor, uniforms: Tensor, options: SamplingOptions, banned: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) int64 tokens by inversion of the cumulative distribution at (n,) uniforms; whether all probabilities are finite.

    Only ``top_p`` needs the tokens sorted: without it any order gives the same distribution.
    """
    logits = logits.index_fill(1, banned, -torch.inf)
    if options.temperature == 0:
        largest, tokens = logits.max(-1)
        return tokens, largest.isfinite().all()
    probs = (logits / options.temperature).softmax(-1).double()
    order = None
    if options.top_p < 1:
        probs, order = torch.sort(probs, dim=-1, descending=True, stable=True)
        probs = probs * (probs.cumsum(-1) - probs < options.top_p)  # the token that crosses top_p is included
    total = probs.cumsum(-1)
    position = uniforms.double()[:, None] * total[:, -1:]
    # The first token whose sum exceeds the position, which is below the last sum: never one of probability 0.
    index = torch.searchsorted(total, position, right=True).clamp(max=logits.shape[1] - 1)
    return (index if order is None else order.gather(1, index)).squeeze(1), total[:, -1].isfinite().all()
