"""Responses of a policy to any prompts, each with a random stream of its own, and what the policy itself tells about them.

Shapes: B prompts, one response each, R response tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.layout import layout
from safe_rlhf_v.models.reader import RefusedRows
from safe_rlhf_v.models.sampling import SamplingOptions, generate
from safe_rlhf_v.models.types import Generation, ImageFeatures
from safe_rlhf_v.policy.answers import Answer
from safe_rlhf_v.policy.rollout import MicroBatch, Splitter, generator
from safe_rlhf_v.records.batches import Prompts, to_device


def stream(seed: int, *words: str) -> torch.Generator:
    """A random stream for one response: any other seed or word gives an independent one.

    Args:
        seed: Of everything that is drawn.
        words: As the record's key.
    """
    text = "\0".join(words).encode("utf-8", "surrogatepass")
    return generator(seed, *hashlib.sha256(text).digest()[:16])


@torch.no_grad()
def respond(
    policy: Backbone,
    prompts: Prompts,
    sampling: SamplingOptions,
    streams: Sequence[torch.Generator],
    reference: Backbone | None = None,
) -> list[Answer]:
    """One response to each prompt; it does not depend on which prompts are beside it, up to the rounding of batched arithmetic.

    Args:
        policy: In evaluation mode.
        prompts: B prompts.
        sampling: How responses are drawn.
        streams: B random streams.
        reference: From which the divergence is measured, on the very tokens that were sampled, both at temperature 1; it must
            have the policy's tokenizer (:func:`comparable`).
    """
    device = next(policy.parameters()).device
    try:
        tokens, images = policy.checked_prompts(prompts)
    except RefusedRows as error:
        return _without(policy, prompts, sampling, streams, reference, error.problems)
    images = to_device(images, device)
    features = policy.encode_images(images)
    rows = to_device(layout(tokens, [[] for _ in tokens.ids], pad_id=policy.pad_id, side="left"), device)
    generation = generate(policy, rows, features, sampling, streams, entropy=sampling.temperature > 0)
    columns = {"length": generation.mask.sum(1).float(), "unfinished": (~generation.finished).float()}
    if generation.entropy is not None and sampling.temperature > 0:
        columns["entropy"] = generation.entropy.sum(1) / columns["length"].clamp(min=1)
    if reference is not None:
        splitter = Splitter(policy, prompts, tokens, images, features, generation, 1)
        micro_batch = to_device(splitter.micro_batch(list(range(len(streams)))), device)
        columns["kl"] = divergence(policy, reference, generation, micro_batch)
    lists = {name: column.tolist() for name, column in columns.items()}
    return [
        Answer(text, "", {name: values[i] for name, values in lists.items()}) for i, text in enumerate(generation.text)
    ]


def _without(
    policy: Backbone,
    prompts: Prompts,
    sampling: SamplingOptions,
    streams: Sequence[torch.Generator],
    reference: Backbone | None,
    problems: Mapping[int, str],
) -> list[Answer]:
    """Responses to the prompts that the policy can read."""
    good = [row for row in range(len(streams)) if row not in problems]
    own = [streams[row] for row in good]
    answers = iter(respond(policy, prompts.take(good), sampling, own, reference) if good else ())
    return [
        Answer("", "unreadable", {}, problems[row]) if row in problems else next(answers) for row in range(len(streams))
    ]


def comparable(policy: Backbone, reference: Backbone) -> bool:
    """Whether two policies read the same inputs and give probabilities to the same tokens."""
    kin = isinstance(policy, type(reference)) or isinstance(
        reference, type(policy)
    )  # an exported one has a class of its own
    return kin and bool(policy.tokenizer.get_vocab() == reference.tokenizer.get_vocab())


def divergence(policy: Backbone, reference: Backbone, generation: Generation, micro_batch: MicroBatch) -> Tensor:
    """(B,) log-probability of each whole response under the policy minus that under the reference.

    Both networks read the responses: the probabilities recorded while sampling come from another arithmetic. The pictures are
    encoded for the reference alone.

    Args:
        policy: Who sampled them.
        reference: From which the divergence is measured.
        generation: The responses as they were sampled.
        micro_batch: The same, as inputs of the networks.
    """
    log_probs = _reread(policy, micro_batch, micro_batch.features)
    other = _reread(reference, micro_batch, reference.encode_images(micro_batch.images))
    return sequence_kl(kl_estimate(log_probs, other, generation.mask), generation.mask)


def _reread(backbone: Backbone, micro_batch: MicroBatch, features: ImageFeatures) -> Tensor:
    """(B, R) float32 log-probability of each response token at temperature 1, 0 where masked."""
    states = backbone.read(micro_batch.tokens, features, log_probs=True)
    assert states.log_probs is not None
    return states.log_probs
