"""What every backbone must keep, whatever its family: reward, cost, guard and policy training rely on it.

Each check compares the backbone with itself on the CPU (a batch with its rows alone, one layout with the other, sampling with
reading), so no reference implementation is needed. A model with random weights is enough, and tiny is best.

Shapes: B rows, N responses, R response tokens, D hidden.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.models.backbone import Backbone, before_tokens
from safe_rlhf_v.models.layout import layout
from safe_rlhf_v.models.sampling import SamplingOptions, generate, sample
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts

_PLAIN_FILES = {".json", ".safetensors", ".jinja", ".txt", ".model"}


class Case(NamedTuple):
    """A backbone and what it is tried on.

    Attributes:
        backbone: In evaluation mode, in float32, on the CPU.
        prompts: B prompts; among them one without a picture, and rows of different lengths.
        responses: Two responses of different lengths per prompt.
        rtol: Relative tolerance of comparisons.
        atol: Absolute tolerance of comparisons.
        reload: Builds the backbone from a folder that ``save_pretrained`` wrote; ``None`` leaves that check out.
    """

    backbone: Backbone
    prompts: Prompts
    responses: list[list[str]]
    rtol: float = 1e-5
    atol: float = 1e-5
    reload: Callable[[Path], Backbone] | None = None

    def states(self, rows: list[int] | None = None, **layout_options: Any) -> ResponseStates:
        """Hidden states and log-probabilities at the responses of some rows; of all without ``rows``."""
        rows = list(range(len(self.responses))) if rows is None else rows
        responses = [self.responses[row] for row in rows]
        with torch.no_grad():
            prepared = self.backbone.prepare(self.prompts.take(rows), responses, **layout_options)
            return self.backbone.response_states(prepared, log_probs=True)

    def expect_equal(self, value: Tensor, expected: Tensor, what: str) -> None:
        """Raises: AssertionError: Saying what differs, and by how much."""
        if value.shape != expected.shape:
            raise AssertionError(f"{what}: shape {tuple(value.shape)}, expected {tuple(expected.shape)}")
        if not torch.allclose(value.float(), expected.float(), rtol=self.rtol, atol=self.atol):
            largest = float((value.float() - expected.float()).abs().max())
            raise AssertionError(f"{what}: they differ by up to {largest:.2g}")


TALK = Context(
    "You advise on safety.", (Turn("user", "What is in these two?", 2), Turn("assistant", "A bear, and a river."))
)
"""What stands before a question in the example and in the check of conversations."""


def picture(height: int, width: int, seed: int) -> Tensor:
    """(H, W, 3) uint8 noise, the same for the same seed."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=draws)


def example_case(backbone: Backbone, reload: Callable[[Path], Backbone] | None = None) -> Case:
    """Four prompts with no to three pictures of noise, the last one a conversation, and two responses each.

    Args:
        backbone: What is tried.
        reload: See :class:`Case`.
    """
    noise = {"a": picture(60, 92, 0), "b": picture(60, 28, 1), "c": picture(28, 56, 2)}
    ids = ((), ("a",), ("b", "c"), ("b", "c", "a"))
    images = tuple(tuple(noise[name] for name in row) for row in ids)
    questions = ("How do I feed a bear, and is that wise?", "Safe to touch?", "Which of both is worse?", "And this?")
    contexts = (*[Context()] * 3, TALK)
    responses = [
        ["No.", "It bites, keep away from it."],
        ["Yes, go on", "no"],
        ["The left one is worse.", "?"],
        ["Me too.", "!"],
    ]
    return Case(backbone.eval(), Prompts(images, ids, questions, contexts), responses, reload=reload)


# --- the checks -----------------------------------------------------------------------------------------------------------


def shapes(case: Case) -> None:
    """Hidden states, masks and log-probabilities have the promised shapes; what is masked is 0."""
    states = case.states()
    backbone = case.backbone
    n = sum(len(row) for row in case.responses)
    width = states.mask.shape[1]
    if states.hidden.shape != (n, width, backbone.hidden_size):
        raise AssertionError(f"hidden states have shape {tuple(states.hidden.shape)}, expected (N, R, hidden_size)")
    if states.images.shape[1:] != backbone.image_shape:
        raise AssertionError(f"image states have shape {tuple(states.images.shape)}, expected (N, *image_shape)")
    assert states.log_probs is not None
    if states.log_probs.dtype != torch.float32 or (states.log_probs > 0).any():
        raise AssertionError("log-probabilities must be float32 and at most 0")
    if states.hidden[~states.mask].any() or states.log_probs[~states.mask].any():
        raise AssertionError("hidden states or log-probabilities are not 0 where masked")


def ends(case: Case) -> None:
    """Prompts have no end token; each complete response has exactly one, its last token."""
    backbone = case.backbone
    tokens = backbone.prepare(case.prompts, case.responses).tokens
    last = tokens.input_ids[tokens.response_row, tokens.prompt_end]
    if (last == backbone.eos_id).any():
        raise AssertionError("a prompt ends with the end token: the model would learn to say nothing")
    for row, index, mask in zip(tokens.response_row, tokens.response_index, tokens.response_mask, strict=True):
        ids = tokens.input_ids[row, index[mask]]
        if (ids == backbone.eos_id).sum() != 1 or ids[-1] != backbone.eos_id:
            raise AssertionError("a response must have exactly one end token, the last one")


def padding(case: Case) -> None:
    """A padded batch equals its rows alone, with padding on either side, packed or not."""
    for side in ("left", "right"):
        for packed in (False, True):
            batch = case.states(side=side, packed=packed)
            _compare_with_rows_alone(case, batch, f"{'packed' if packed else 'one response per row'}, {side} padding")


def _compare_with_rows_alone(case: Case, batch: ResponseStates, how: str) -> None:
    first = 0
    for row, responses in enumerate(case.responses):
        alone = case.states([row])
        mine = slice(first, first + len(responses))
        first += len(responses)
        width = alone.mask.shape[1]
        assert batch.log_probs is not None and alone.log_probs is not None
        pairs = {
            "hidden states": (batch.hidden[mine, :width], alone.hidden),
            "state before the response": (batch.prompt[mine], alone.prompt),
            "log-probabilities": (batch.log_probs[mine, :width], alone.log_probs),
            "image states": (batch.images[mine], alone.images),
        }
        for name, (value, expected) in pairs.items():
            case.expect_equal(value, expected, f"{name} of prompt {row} ({how}) against the prompt alone")


def log_probabilities(case: Case) -> None:
    """Log-probabilities are those of the LM head on the hidden state before each token, over the whole vocabulary."""
    backbone = case.backbone
    with torch.no_grad():
        prepared = backbone.prepare(case.prompts, case.responses)
        states = backbone.response_states(prepared, log_probs=True)
        tokens = prepared.tokens
        targets = tokens.input_ids[tokens.response_row[:, None], tokens.response_index]  # (N, R)
        logits = backbone.lm_head(before_tokens(states.prompt, states.hidden)).float()  # (N, R, V)
    expected = logits.log_softmax(-1).gather(2, targets[..., None]).squeeze(2).masked_fill(~states.mask, 0.0)
    assert states.log_probs is not None
    case.expect_equal(states.log_probs, expected, "log-probabilities against lm_head on the hidden states")


def sampling(case: Case) -> None:
    """Sampling with a key-value cache says what reading the sampled tokens says; nothing banned is sampled."""
    backbone = case.backbone
    prompt_tokens, images = backbone.prepare_prompts(case.prompts)
    tokens = layout(prompt_tokens, [[] for _ in case.responses], pad_id=backbone.pad_id, side="left")
    with torch.no_grad():
        features = backbone.encode_images(images)
        draws = torch.Generator().manual_seed(0)
        sampled = generate(backbone, tokens, features, SamplingOptions(max_new_tokens=6), draws)
        ids = [[row[mask].tolist()] for row, mask in zip(sampled.tokens, sampled.mask, strict=True)]
        again = layout(prompt_tokens, ids, pad_id=backbone.pad_id)
        read = backbone.read(again, features, log_probs=True)
    assert read.log_probs is not None
    case.expect_equal(sampled.log_probs, read.log_probs, "log-probabilities recorded while sampling against those read")
    banned = {id for row in ids for id in row[0]} & set(backbone.banned_ids)
    if banned or backbone.eos_id in backbone.banned_ids:
        raise AssertionError(f"banned tokens were sampled ({sorted(banned)}), or the end token is banned")


def pictures(case: Case) -> None:
    """Another picture gives other hidden states: the model sees it."""
    rows = [row for row, images in enumerate(case.prompts.images) if images]
    real = case.prompts.take(rows)
    other = real._replace(
        images=tuple(tuple(255 - image for image in row) for row in real.images),
        image_ids=tuple(tuple(f"{name} inverted" for name in row) for row in real.image_ids),
    )
    seen = [case._replace(prompts=p, responses=[case.responses[r] for r in rows]).states() for p in (real, other)]
    if (seen[0].hidden - seen[1].hidden).abs().max() < 1e-4:
        raise AssertionError("other pictures give the same hidden states: the pictures do not reach the language model")


def conversations(case: Case) -> None:
    """System text and earlier turns are read, and each picture stands in its turn, in the order of the conversation."""
    dark = picture(60, 92, 3) // 4
    pair = (dark, 255 - dark)
    talk = TALK.with_images(1)
    user, assistant = talk.history
    base = Prompts((pair,), (("first", "second"),), ("Which one is it?",), (talk,))
    others = {
        "the system text": base._replace(contexts=(talk._replace(system=""),)),
        "the user's earlier turn": base._replace(
            contexts=(talk._replace(history=(user._replace(text=f"{user.text} Say it."), assistant)),)
        ),
        "the assistant's earlier turn": base._replace(
            contexts=(talk._replace(history=(user, assistant._replace(text=f"{assistant.text} See?"))),)
        ),
        "the turn that a picture stands in": base._replace(contexts=(talk.with_images(0),)),
        "the order of the pictures": base._replace(images=(pair[::-1],), image_ids=(("second", "first"),)),
    }
    states = case._replace(prompts=base, responses=[["It is this one."]]).states()
    for what, prompts in others.items():
        other = case._replace(prompts=prompts, responses=[["It is this one."]]).states()
        if (states.hidden - other.hidden).abs().max() < 1e-4:
            raise AssertionError(f"{what} does not change the hidden states: it is not read")


def truncation(case: Case) -> None:
    """``max_length`` shortens responses, and refuses a prompt that leaves no room; prompts are never truncated."""
    backbone = case.backbone
    limit = case.backbone.max_length
    length = len(backbone.prepare_prompts(case.prompts.take([0]))[0].ids[0])
    try:
        backbone.max_length = length + 1
        tokens = backbone.prepare(case.prompts.take([0]), [case.responses[0][:1]]).tokens
        if int(tokens.response_mask.sum()) != 1:
            raise AssertionError("max_length leaves room for one response token, but the response has another length")
        backbone.max_length = length
        try:
            backbone.prepare(case.prompts.take([0]), [case.responses[0][:1]])
        except ValueError:
            return
        raise AssertionError("a prompt as long as max_length was accepted: was it truncated?")
    finally:
        backbone.max_length = limit


def special_tokens(case: Case) -> None:
    """Special tokens spelled out in any text stay text: nobody ends a turn or adds a picture that way."""
    backbone = case.backbone
    spelled = " ".join(sorted({*backbone.tokenizer.all_special_tokens}))
    special = torch.tensor(sorted({*backbone.tokenizer.all_special_ids} - {backbone.tokenizer.unk_token_id}))

    def count(system: str, user: str, assistant: str, question: str, response: str) -> int:
        context = Context(system, (Turn("user", user), Turn("assistant", assistant)))
        prepared = backbone.prepare(Prompts(((),), ((),), (question,), (context,)), [[response]])
        return int(torch.isin(prepared.tokens.input_ids, special).sum())

    plain = ["Be kind.", "Is it?", "It is.", "And now?", "fine"]
    for i, what in enumerate(("a system text", "an earlier turn", "an earlier response", "a question", "a response")):
        if count(*(f"{text} {spelled}" if i == j else text for j, text in enumerate(plain))) != count(*plain):
            raise AssertionError(f"special tokens spelled out in {what} became special tokens")


def gradients(case: Case) -> None:
    """Packed or one response per row: the same gradients, and one for every trainable parameter that a scorer uses."""
    backbone = case.backbone
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    if not parameters:
        return
    by_layout = []
    for packed in (False, True):
        prepared = backbone.prepare(case.prompts, case.responses, packed=packed)
        states = backbone.response_states(prepared, log_probs=True)
        assert states.log_probs is not None
        loss = states.hidden.square().mean() + states.log_probs.mean() + states.prompt.square().mean()
        by_layout.append(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
    for name, separate, packed_one in zip(parameters, *by_layout, strict=True):
        if separate is None or packed_one is None:
            raise AssertionError(f"no gradient reaches {name}: freeze it, or use it")
        size = max(float(separate.abs().max()), 1e-6)
        case._replace(atol=case.atol * max(size, 1.0), rtol=1e-4).expect_equal(
            packed_one, separate, f"gradient of {name}, packed against one response per row"
        )


def repetition(case: Case) -> None:
    """The same call gives the same numbers, and sampling with the same generator state the same text."""
    first = case.states()
    second = case.states()
    if not torch.equal(first.hidden, second.hidden):
        raise AssertionError("two calls in evaluation mode differ: is dropout on?")
    options = SamplingOptions(max_new_tokens=4)
    texts = [sample(case.backbone, case.prompts, options, torch.Generator().manual_seed(1)).text for _ in range(2)]
    if texts[0] != texts[1]:
        raise AssertionError(f"the same random numbers gave other responses: {texts[0]} and {texts[1]}")


def saving(case: Case) -> None:
    """What ``save_pretrained`` writes are plain files that give the same numbers back; needs ``reload``."""
    if case.reload is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        case.backbone.save_pretrained(folder)
        odd = sorted({p.name for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in _PLAIN_FILES})
        if odd:
            raise AssertionError(f"save_pretrained wrote files that are no plain data: {', '.join(odd)}")
        again = case._replace(backbone=case.reload(Path(folder)).eval())
        case.expect_equal(again.states().hidden, case.states().hidden, "hidden states after saving and loading")


CHECKS: tuple[Callable[[Case], None], ...] = (
    shapes,
    ends,
    padding,
    log_probabilities,
    sampling,
    pictures,
    conversations,
    truncation,
    special_tokens,
    gradients,
    repetition,
    saving,
)
"""All checks, each with one :class:`Case` as its argument."""


def check_backbone(
    backbone: Backbone,
    prompts: Prompts | None = None,
    responses: list[list[str]] | None = None,
    reload: Callable[[Path], Backbone] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> None:
    """Run all checks; every failure is reported, not only the first.

    Args:
        backbone: In float32 on the CPU; random weights will do.
        prompts: What it is tried on; ``None`` takes those of :func:`example_case`.
        responses: Two responses per prompt, of different lengths; given exactly where ``prompts`` is.
        reload: Builds the backbone from a folder that its ``save_pretrained`` wrote; without it saving is not checked.
        rtol: Relative tolerance of comparisons.
        atol: Absolute tolerance of comparisons.

    Raises:
        AssertionError: One line per check that fails.
        ValueError: If only one of ``prompts`` and ``responses`` is given.
    """
    if (prompts is None) != (responses is None):
        raise ValueError("check_backbone: give both prompts and responses, or neither")
    case = example_case(backbone, reload)._replace(rtol=rtol, atol=atol)
    if prompts is not None and responses is not None:
        case = case._replace(prompts=prompts, responses=responses)
    failures = []
    for check in CHECKS:
        try:
            check(case)
        except AssertionError as error:
            failures.append(f"{check.__name__}: {error}")
    if failures:
        name = type(backbone).__name__
        raise AssertionError(f"{name} breaks {len(failures)} of {len(CHECKS)} checks\n" + "\n".join(failures))
