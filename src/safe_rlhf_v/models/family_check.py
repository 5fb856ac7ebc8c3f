"""A self-test of a Hugging Face family: what the method relies on, tried on a small random copy of the network.

The copy has the family's own classes, processor and template, and one layer of each kind. It is compared with plain
transformers and with itself, in float32 on the CPU, in seconds. What the family cannot do is switched to the form that works,
or refused; the report says which.

Shapes: N responses, R response tokens, D hidden.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_v.models.backbone import before_tokens
from safe_rlhf_v.models.layout import layout
from safe_rlhf_v.models.sampling import SamplingOptions, generate
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records.batches import Prompts

TOLERANCE = 2e-4
"""Largest difference that counts as rounding, relative to the largest value; a wrong mask or position changes far more."""
_SEEN = 1e-3
_ROUND_NUMBER_OF_TOKENS = 4


class FamilyReport(NamedTuple):
    """What a self-test found.

    Attributes:
        family: The model type.
        passed: What was tried and holds.
        switched: What the family cannot do, and the form that is used instead.
        refused: Why it cannot be used; "" if it can.
        packs: Whether responses can be packed behind one prompt.
    """

    family: str
    passed: tuple[str, ...]
    switched: tuple[str, ...]
    refused: str
    packs: bool

    @property
    def line(self) -> str:
        """The report in one line."""
        if self.refused:
            return f"model_type {self.family!r} fails its self-test: {self.refused}"
        notes = f"; {'; '.join(self.switched)}" if self.switched else ""
        return f"model_type {self.family!r} passes its self-test ({', '.join(self.passed)}){notes}"


class Failed(Exception):
    """What a check found wrong."""


def picture(height: int, width: int, seed: int) -> Tensor:
    """(H, W, 3) uint8 noise, the same for the same seed."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def example_prompts() -> Prompts:
    """A prompt without a picture, one with a strip, and one with two pictures of different sizes."""
    images = ((), (picture(40, 180, 0),), (picture(75, 60, 1), picture(48, 64, 2)))
    ids = ((), ("strip",), ("tall", "wide"))
    return Prompts(images, ids, ("How do I feed a bear, and is that wise?", "Safe?", "Which of both is worse?"))


RESPONSES = [["No.", "It bites, keep away from it."], ["Yes, go on", "no"], ["The left one is worse.", "Both!"]]


def randomise(twin: Any) -> None:
    """Give a network large random weights, so that what is wrong shows: small ones leave the layers nearly idle."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in twin.model.parameters():
            if parameter.dim() > 1 and parameter.any():
                parameter.mul_(2)
            elif parameter.dim() > 1:  # a projector that starts at zero would hide the pictures
                parameter.normal_(std=0.2)


def run_checks(twin: Any) -> FamilyReport:
    """Try a small backbone of the family.

    Args:
        twin: An ``HFVLM`` with random weights, in evaluation mode; it is not usable afterwards.
    """
    family = str(twin.model.config.model_type)
    passed: list[str] = []
    switched: list[str] = []
    randomise(twin)
    refused = _run(CHECKS, twin, passed)
    if not refused and twin.packs:
        if problem := _run({"packed rows": packed_rows}, twin, passed):
            switched.append(f"rows are not packed, as {problem}")
            twin.packs = False
    elif not refused:
        switched.append("rows are not packed, as some layers carry a state from token to token")
    if not refused:
        refused = _run({"gradients": gradients}, twin, passed)
    return FamilyReport(family, tuple(passed), tuple(switched), refused, bool(twin.packs))


def _run(checks: dict[str, Callable[[Any], None]], twin: Any, passed: list[str]) -> str:
    """Run checks until one fails; returns what failed, or ""."""
    for name, check in checks.items():
        try:
            check(twin)
        except Failed as error:
            return f"{name}: {error}"
        except Exception as error:  # a family can fail in any way inside transformers
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            return f"{name}: {type(error).__name__}: {first}"
        passed.append(name)
    return ""


def _states(twin: Any, rows: list[int], **options: Any) -> ResponseStates:
    with torch.no_grad():
        prepared = twin.prepare(example_prompts().take(rows), [RESPONSES[row] for row in rows], **options)
        states: ResponseStates = twin.response_states(prepared, log_probs=True)
    return states


def _expect_equal(value: Tensor, expected: Tensor, what: str) -> None:
    if value.shape != expected.shape:
        raise Failed(f"{what}: shapes {tuple(value.shape)} and {tuple(expected.shape)}")
    largest = float(expected.abs().max()) or 1.0
    difference = float((value - expected).abs().max()) / largest
    if not difference <= TOLERANCE:  # NaN, too
        raise Failed(f"{what} differ by {difference:.1e} of their size")


def placeholders(twin: Any) -> None:
    """Each prompt has as many placeholders as its images have tokens, and none of them can be sampled."""
    tokens, images = twin.prepare_prompts(example_prompts())
    with torch.no_grad():
        features = twin.encode(images)
    image_id = twin.model.config.image_token_id
    for row, ids in enumerate(tokens.ids):
        expected = sum(len(features.tokens[m]) for m, p in enumerate(tokens.image_prompt) if p == row)
        if ids.count(image_id) != expected:
            raise Failed(f"a prompt has {ids.count(image_id)} placeholders, its images have {expected} tokens")
    if image_id not in twin.banned_ids and image_id < twin.model.config.get_text_config().vocab_size:
        raise Failed("the placeholder of images can be sampled")


def like_transformers(twin: Any) -> None:
    """Features passed in equal pixels: next-token logits of transformers' own forward pass, prompt by prompt."""
    prompts = example_prompts()
    for row in range(len(prompts.questions)):
        inputs = twin.plain_inputs(prompts.take([row]))
        with torch.no_grad():
            plain = twin.model(**inputs, use_cache=False).logits[:, -1].float()
            ours = twin.lm_head(_states(twin, [row]).prompt[:1]).float()
        _expect_equal(ours, plain, f"logits after {len(prompts.images[row])} pictures, ours and transformers',")


def sees_pictures(twin: Any) -> None:
    """Another picture gives other states."""
    prompts = example_prompts().take([1])
    other = prompts._replace(images=((255 - prompts.images[0][0],),), image_ids=(("inverted",),))
    with torch.no_grad():
        first, second = (twin.response_states(twin.prepare(p, [["no"]])).hidden for p in (prompts, other))
    if float((first - second).abs().max()) < _SEEN * float(first.abs().max()):
        raise Failed("another picture does not change the hidden states")


def padded_rows(twin: Any) -> None:
    """Rows of a batch equal the rows alone, padded on either side."""
    for side in ("left", "right"):
        _compare_with_alone(twin, f"{side}-padded", side=side)


def packed_rows(twin: Any) -> None:
    """Responses behind one shared prompt equal responses in rows of their own."""
    _compare_with_alone(twin, "packed", packed=True)


def _compare_with_alone(twin: Any, how: str, **options: Any) -> None:
    batch = _states(twin, [0, 1, 2], **options)
    for row in range(3):
        alone = _states(twin, [row])
        mine = slice(2 * row, 2 * row + 2)
        width = alone.mask.shape[1]
        assert batch.log_probs is not None and alone.log_probs is not None
        _expect_equal(batch.hidden[mine, :width], alone.hidden, f"hidden states {how} and alone")
        _expect_equal(batch.log_probs[mine, :width], alone.log_probs, f"log-probabilities {how} and alone")


def features_in_company(twin: Any) -> None:
    """Features do not depend on which other pictures are encoded with them: they can be cached."""
    images = twin.prepare_prompts(example_prompts())[1]
    with torch.no_grad():
        together = twin.encode(images)
        for i in range(len(images.ids)):
            alone = twin.encode(twin.select_images(images, [i]))
            _expect_equal(together.tokens[i], alone.tokens[0], "features of a picture in a batch and alone")


def decoding(twin: Any) -> None:
    """Sampling token by token with a cache says what one full pass over the sampled tokens says."""
    prompt_tokens, images = twin.prepare_prompts(example_prompts())
    tokens = layout(prompt_tokens, [[]] * 3, pad_id=twin.pad_id, side="left")
    with torch.no_grad():
        features = twin.encode_images(images)
        draws = torch.Generator().manual_seed(0)
        options = SamplingOptions(max_new_tokens=_ROUND_NUMBER_OF_TOKENS)
        sampled = generate(twin, tokens, features, options, draws, samples=2)
        rows = [row[mask].tolist() for row, mask in zip(sampled.tokens, sampled.mask, strict=True)]
        pairs = [rows[i : i + 2] for i in range(0, len(rows), 2)]
        read = twin.read(layout(prompt_tokens, pairs, pad_id=twin.pad_id), features)
        logits = twin.lm_head(before_tokens(read.prompt, read.hidden)).float()
    if {i for row in rows for i in row} & set(twin.banned_ids):
        raise Failed("a placeholder or special token was sampled")
    expected = logits.log_softmax(-1).gather(2, sampled.tokens[..., None]).squeeze(2).masked_fill(~sampled.mask, 0.0)
    _expect_equal(sampled.log_probs, expected, "log-probabilities with a cache and in one pass")


def gradients(twin: Any) -> None:
    """Every part that is to be trained gets a gradient."""
    from safe_rlhf_v.models.hf_families import part_of

    parameters = {name: p for name, p in twin.model.named_parameters() if p.requires_grad}
    if not parameters:
        return
    states = twin.response_states(twin.prepare(example_prompts(), RESPONSES), log_probs=True)
    assert states.log_probs is not None
    loss = states.hidden.square().mean() + states.log_probs.mean()
    gradients_of = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    reached = {
        part_of(name)
        for name, gradient in zip(parameters, gradients_of, strict=True)
        if gradient is not None and gradient.abs().sum() > 0
    }
    missing = sorted({part_of(name) for name in parameters} - reached)
    if missing:
        raise Failed(f"no gradient reaches the {missing[0]}, which is to be trained: leave it frozen")


CHECKS: dict[str, Callable[[Any], None]] = {
    "placeholders": placeholders,
    "pictures are seen": sees_pictures,
    "features equal pixels": like_transformers,
    "features alone": features_in_company,
    "padded rows": padded_rows,
    "cached decoding": decoding,
}
"""What a family must do; packed rows and gradients come after them."""
