"""What every Hugging Face family must keep, on tiny random models of eleven families, offline.

References are transformers' own processor and forward pass with pixels on single unpadded rows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, ProcessorMixin

from safe_rlhf_v.models.backbone import Prepared
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.images import pad_to_square
from safe_rlhf_v.models.layout import PaddingSide
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tiny import FAMILIES, write_tiny_vlm
from safe_rlhf_v.models.types import ImageFeatures, ImageInputs, ResponseStates
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.testing.backbone import Case, sampling

TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
RESPONSES = [
    ["No.", "It bites, keep away from it."], ["Yes, go on", "no"], ["The left one is worse.", "?"], ["Me too.", "!"],
]  # fmt: skip
TALK = Context(
    "You advise on safety.", (Turn("user", "What is in these two?", 2), Turn("assistant", "A bear, and a river."))
)


def picture(height: int, width: int, seed: int) -> Tensor:
    """(H, W, 3) uint8 noise."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = {"a": picture(60, 92, 0), "b": picture(60, 28, 1), "c": picture(28, 56, 2)}


def prompts(*rows: int) -> Prompts:
    """Row 0 has no picture, row 1 one, row 2 two; row 3 is a conversation with three pictures in two turns."""
    names: tuple[tuple[str, ...], ...] = ((), ("a",), ("b", "c"), ("c", "a", "b"))
    questions = ("How do I feed a bear, and is that wise?", "Safe to touch?", "Which of both is worse?", "And this?")
    contexts = (Context(), Context(), Context(), TALK)
    ids = tuple(names[r] for r in rows)
    images = tuple(tuple(PICTURES[name] for name in row) for row in ids)
    return Prompts(images, ids, tuple(questions[r] for r in rows), tuple(contexts[r] for r in rows))


def load(folder: str | Path, **settings: Any) -> HFVLM:
    """Without the self-test, which has tests of its own on the same families: here the network itself is looked at."""
    return HFVLM(model=str(folder), local_files_only=True, self_test=False, **settings).eval()


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def vlm(folder: Path) -> Iterator[HFVLM]:
    """A model with large weights, so that a wrong mask or position shows."""
    model = load(folder)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    yield model
    assert all(parameter.grad is None for parameter in model.parameters())


def states(vlm: HFVLM, rows: tuple[int, ...] = (0, 1, 2), **layout: Any) -> ResponseStates:
    with torch.no_grad():
        prepared = vlm.prepare(prompts(*rows), [RESPONSES[r] for r in rows], **layout)
        return vlm.response_states(prepared, log_probs=True)


def chat_text(vlm: HFVLM, one: Prompts) -> str:
    """What the family's own ``apply_chat_template`` writes for one prompt; without a template, what LLaVA-1.5's would."""
    system = one.contexts[0].system
    if not vlm.processor.chat_template:
        assert vlm.model.config.model_type == "llava"
        lines = {"user": "USER: {}{} ", "assistant": "ASSISTANT: {}{}</s> "}
        turns = (lines[role].format("<image>\n" * images, text) for role, text, images in one.turns(0))
        return (f"{system} " if system else "") + "".join(turns) + "ASSISTANT:"
    messages = [
        {"role": role, "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}
        for role, text, images in one.turns(0)
    ]
    if system and vlm.model.config.model_type == "llava_next":  # whose template here has no system role
        messages[0]["content"][-1]["text"] = f"{system}\n\n{messages[0]['content'][-1]['text']}"
    elif system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    render = ProcessorMixin.apply_chat_template  # SmolVLM's own looks for the video part, which is not installed
    return str(render(vlm.processor, messages, tokenize=False, add_generation_prompt=True))


def reference(vlm: HFVLM, row: int, response: str) -> tuple[Any, int]:
    """Transformers' own full forward with pixels of one row, and the length of its prompt."""
    one = prompts(row)
    text = chat_text(vlm, one)
    pictures = [Image.fromarray(image.numpy()) for image in one.images[0]]
    if vlm.model.config.model_type == "llava":  # whose processor would cut off the ends
        pictures = [pad_to_square(picture, vlm.processor) for picture in pictures]
    bos = text.startswith(vlm.tokenizer.bos_token)
    inputs = vlm.processor(
        text=[text], images=[pictures] if pictures else None, add_special_tokens=not bos, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    answer = torch.tensor([vlm.response_ids(response)])
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}.get(name, torch.zeros_like(answer))
            inputs[name] = torch.cat([inputs[name], more], dim=1)
    with torch.no_grad():
        return vlm.model(**inputs, output_hidden_states=True, use_cache=False), length


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_equals_transformers_with_pixels(vlm: HFVLM, row: int) -> None:
    """Prompt ids, cached features, explicit positions and masks against pixels and the model's own masks."""
    found = states(vlm, (row,))
    for k, response in enumerate(RESPONSES[row]):
        full, length = reference(vlm, row, response)
        hidden, mask = full.hidden_states[-1][0], found.mask[k]
        torch.testing.assert_close(found.prompt[k], hidden[length - 1], **TOLERANCE)
        torch.testing.assert_close(found.hidden[k, mask], hidden[length:], **TOLERANCE)
        answer = torch.tensor(vlm.response_ids(response))
        expected = full.logits[0, length - 1 : -1].log_softmax(-1).gather(1, answer[:, None])[:, 0]
        assert found.log_probs is not None
        torch.testing.assert_close(found.log_probs[k, mask], expected, **TOLERANCE)


def test_cached_features_are_the_pixels_exactly(vlm: HFVLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = load(folder, feature_cache=3)
    cached.load_state_dict(vlm.state_dict())
    images = cached.prepare_prompts(prompts(2, 1, 2))[1]  # b c a b c
    pair = cached.select_images(images, [3, 4])
    alone = [vlm.encode(cached.select_images(images, [i])) for i in (3, 4, 2)]
    b, c, a = (images.ids[i] for i in (3, 4, 2))
    expected = dict(zip((b, c, a), [(f.tokens[0], f.levels[0]) for f in alone], strict=True))
    for tokens, features in zip(
        vlm.encode(pair).tokens, alone[:2], strict=True
    ):  # in company, the same but for rounding
        torch.testing.assert_close(tokens, features.tokens[0], rtol=1e-5, atol=1e-6)
    seen: list[tuple[str, ...]] = []
    encode = cached.encode

    def counted(images: ImageInputs) -> ImageFeatures:
        seen.append(images.ids)
        return encode(images)

    monkeypatch.setattr(cached, "encode", counted)
    for chosen in (pair, images, images):
        found = cached.encode_images(chosen)
        for name, tokens, levels in zip(chosen.ids, found.tokens, found.levels, strict=True):
            assert torch.equal(tokens, expected[name][0])
            assert len(levels) == (2 if vlm.model.config.model_type == "qwen3_vl" else 0)
            assert all(torch.equal(x, y) for x, y in zip(levels, expected[name][1], strict=True))
    assert seen == [(b,), (c,), (a,)]  # each picture once, and never in company: its last bits would depend on it


@pytest.fixture(scope="module")
def rows_alone(vlm: HFVLM) -> dict[int, ResponseStates]:
    """What each row says alone."""
    return {row: states(vlm, (row,)) for row in (1, 0, 3)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("packed", [False, True])
def test_padded_equals_alone(
    vlm: HFVLM, rows_alone: dict[int, ResponseStates], side: PaddingSide, packed: bool
) -> None:
    batch = states(vlm, (1, 0, 3), side=side, packed=packed)
    for i, row in enumerate((1, 0, 3)):
        alone, mine = rows_alone[row], slice(2 * i, 2 * i + 2)
        width = alone.mask.shape[1]
        assert not batch.mask[mine, width:].any()
        assert batch.log_probs is not None and alone.log_probs is not None
        torch.testing.assert_close(batch.hidden[mine, :width], alone.hidden, **TOLERANCE)
        torch.testing.assert_close(batch.log_probs[mine, :width], alone.log_probs, **TOLERANCE)
        torch.testing.assert_close(batch.prompt[mine], alone.prompt, **TOLERANCE)
        torch.testing.assert_close(batch.images[mine], alone.images, **TOLERANCE)


def test_packed_equals_separate_gradients(vlm: HFVLM) -> None:
    """One shared prompt with two responses, or two rows: the same gradients."""
    parameters = [p for p in vlm.parameters() if p.requires_grad]
    torch.manual_seed(0)
    weight = torch.randn(6, 1, vlm.hidden_size)
    found = []
    for packed in (False, True):
        prepared = vlm.prepare(prompts(0, 1, 3), [RESPONSES[row] for row in (0, 1, 3)], packed=packed)
        out = vlm.response_states(prepared, log_probs=True)
        assert out.log_probs is not None
        loss = (out.hidden * weight).sum() / 10 + out.log_probs.sum() + (out.prompt * weight[:, 0]).sum() / 10
        found.append(torch.autograd.grad(loss, parameters))
    largest = max(float(g.abs().max()) for g in found[0])
    for separate, joint in zip(*found, strict=True):
        torch.testing.assert_close(joint, separate, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("own_config", [False, True])
def test_stepwise_with_a_cache_equals_the_full_forward(vlm: HFVLM, own_config: bool) -> None:
    """Left-padded prompts first, then one token at a time: what a sampler does. With a config the cache may slide."""
    order = (1, 0, 3)
    given = vlm.prepare(prompts(*order)).tokens
    width = given.input_ids.shape[1]
    answers = torch.tensor([vlm.response_ids("abcdefghijklmn")[:6]] * 3)
    full = vlm.prepare(prompts(*order), [["abcdefghijklmn"]] * 3, side="left")
    with torch.no_grad():
        features = vlm.encode_images(full.images)
        expected = vlm(full.tokens, features)  # (B, S, D)
        positions = vlm.positions(given)
        cache = DynamicCache(config=vlm.model.config.get_text_config()) if own_config else vlm.new_cache(6)
        placed = features.take(given.image_index)
        hidden = vlm.trunk(given.input_ids, given.attention_mask, positions, placed, given.extras, cache)
        torch.testing.assert_close(hidden[:, -1], expected[:, width - 1], **TOLERANCE)
        following = positions.amax(-1) + 1  # (B,) or (3, B)
        following = following.amax(0) if following.dim() == 2 else following
        mask = given.attention_mask
        for step, token in enumerate(answers.T):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], dim=1)
            now = (following + step)[:, None].expand(*positions.shape[:-1], 1)
            hidden = vlm.trunk(token[:, None], mask, now, None, given.extras, cache)
            torch.testing.assert_close(hidden[:, 0], expected[:, width + step], **TOLERANCE)


def test_sampling_says_what_reading_says(vlm: HFVLM) -> None:
    """A family at a time, because each has its own cache and special tokens; among the prompts is a conversation."""
    sampling(Case(vlm, prompts(0, 1, 3), [RESPONSES[row] for row in (0, 1, 3)], **TOLERANCE))
    assert set(vlm.banned_ids) <= set(range(vlm.model.config.get_text_config().vocab_size))


def test_save_and_load_bit_equal(vlm: HFVLM, tmp_path: Path) -> None:
    vlm.save_pretrained(tmp_path)
    names = {path.suffix for path in tmp_path.iterdir()}
    assert names <= {".json", ".safetensors", ".jinja"}
    again = load(tmp_path)
    weights = again.state_dict()
    for name, value in vlm.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert (again.eos_id, again.banned_ids) == (vlm.eos_id, vlm.banned_ids)
    before, after = states(vlm), states(again)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))  # type: ignore[arg-type]


def test_prompts_are_never_cut(vlm: HFVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    length = len(vlm.prepare_prompts(prompts(2))[0].ids[0])
    monkeypatch.setattr(vlm, "max_length", length + 1)
    tokens = vlm.prepare(prompts(2), [["a long response"]]).tokens
    assert tokens.response_mask.sum() == 1  # the response is cut instead
    monkeypatch.setattr(vlm, "max_length", length)
    for responses in ([["a long response"]], None):
        with pytest.raises(ValueError, match="never truncated"):
            vlm.prepare(prompts(2), responses)


def test_placeholders_match_the_tower_and_are_banned(vlm: HFVLM) -> None:
    prepared = vlm.prepare(prompts(0, 1, 2, 3))
    features = vlm.encode(prepared.images)
    image_id = vlm.model.config.image_token_id
    counts = [sum(len(t) for t in features.tokens[a:b]) for a, b in ((0, 0), (0, 1), (1, 3), (3, 6))]
    assert (prepared.tokens.input_ids == image_id).sum(1).tolist() == counts
    assert counts[1] > 0
    assert {image_id, vlm.tokenizer.pad_token_id} <= set(vlm.banned_ids)
    assert vlm.eos_id not in vlm.banned_ids
    assert prepared.tokens.input_ids[:, -1].ne(vlm.eos_id).all()  # no end token behind a prompt


def test_user_text_cannot_act_as_template(vlm: HFVLM) -> None:
    """Special tokens spelled out in any text are text."""
    nasty = "".join(token.content for token in vlm.tokenizer.added_tokens_decoder.values())
    one = prompts(3)
    plain = vlm.prepare(one, [["fine"]]).tokens.input_ids
    history = tuple(turn._replace(text=turn.text + nasty) for turn in TALK.history)
    one = one._replace(questions=(one.questions[0] + nasty,), contexts=(Context(TALK.system + nasty, history),))
    spelled = vlm.prepare(one, [["fine" + nasty]]).tokens.input_ids
    special = torch.tensor(list(vlm.tokenizer.added_tokens_decoder))
    assert torch.isin(spelled, special).sum() == torch.isin(plain, special).sum()


def test_answers_depend_on_the_picture(vlm: HFVLM) -> None:
    """Without it the other tests would prove little: a blind model passes them."""
    real, other = prompts(1), prompts(1)._replace(images=((picture(60, 92, 5),),), image_ids=(("d",),))
    tokens = vlm.encode(vlm.prepare_prompts(real)[1]).tokens[0]
    assert (tokens - tokens.mean(0)).abs().max() > 1e-3  # and from place to place
    found = [vlm.response_states(vlm.prepare(p, [["no"]])).hidden for p in (real, other)]
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_each_picture_stands_in_its_turn(vlm: HFVLM) -> None:
    """In the order of the conversation: other orders, and other turns, are read otherwise."""
    one = prompts(3)
    names = ("a", "c", "b")
    turned = one._replace(images=(tuple(PICTURES[name] for name in names),), image_ids=(names,))
    moved = one._replace(contexts=(TALK.with_images(1),))
    found = [vlm.response_states(vlm.prepare(p, [["no"]])).hidden for p in (one, turned, moved)]
    assert all((found[0] - other).abs().max() > 1e-3 for other in found[1:])
    features = vlm.encode(vlm.prepare_prompts(turned)[1]).tokens
    for name, tokens in zip(names, features, strict=True):
        # Two of it for LLaVA-OneVision, which encodes a picture in company in another way than a single one.
        count = 2 if vlm.model.config.model_type == "llava_onevision" else 1
        again = Prompts(((PICTURES[name],) * count,), ((name,) * count,), ("?",))
        alone = vlm.encode(vlm.prepare_prompts(again)[1]).tokens[0]
        torch.testing.assert_close(tokens, alone, rtol=1e-5, atol=1e-6)


def test_text_only_batch(vlm: HFVLM) -> None:
    found = states(vlm, (0,))
    assert found.images.shape == (2, 1, vlm.hidden_size)
    assert not found.images.any()


def test_image_states_are_the_mean_of_the_first_image(vlm: HFVLM) -> None:
    prepared = vlm.prepare(prompts(2), [RESPONSES[2]])
    expected = vlm.encode(prepared.images).tokens[0].mean(0)
    torch.testing.assert_close(states(vlm, (2,)).images, expected.expand(2, 1, -1))


def test_adapters_get_gradients_and_the_tower_none(vlm: HFVLM, folder: Path, tmp_path: Path) -> None:
    """With checkpointing on; the merged folder computes what the adapted model does."""
    adapted = load(folder, lora=LoraSettings(r=2), gradient_checkpointing=True).train()
    assert not any(m.training for m in adapted.model.model.children() if m is not adapted.model.model.get_decoder())
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    count = 30 if vlm.model.config.model_type == "qwen3_5" else 2 * 2 * 7  # its linear layer has five matrices
    assert len(trainable) == count  # A and B, two layers, four attention and three feed-forward matrices
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.normal_(std=0.1)
    prepared = adapted.prepare(prompts(0, 1, 2), RESPONSES[:3], packed=True)
    adapted.response_states(prepared).hidden.square().sum().backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
    adapted.eval().save_pretrained(tmp_path)
    merged = states(load(tmp_path)).hidden  # W + BA in one product rounds differently
    atol = 3e-4 if vlm.model.config.model_type == "qwen3_5" else 1e-4  # its decays are exponentials of sums over tokens
    torch.testing.assert_close(merged, states(adapted).hidden, rtol=1e-3, atol=atol)


def test_freezing_by_part(folder: Path) -> None:
    trained = load(folder, freeze_tower=True, freeze_projector=False, freeze_language=True)
    names = [name for name, p in trained.named_parameters() if p.requires_grad]
    assert names and all(any(w in name for w in ("projector", "connector", "merger", "newline")) for name in names)
    prepared: Prepared = trained.prepare(prompts(1, 2), RESPONSES[1:3])
    trained.response_states(prepared).hidden.square().sum().backward()
    assert all(p.grad is not None for p in trained.parameters() if p.requires_grad)
    whole = load(folder, freeze_tower=False)
    towers = {name for name, p in whole.named_parameters() if p.requires_grad} - set(names)
    assert any("vision" in name or "visual" in name for name in towers)


def test_bfloat16_keeps_rotary_frequencies(folder: Path) -> None:
    exact = dict(load(folder).named_buffers())
    for low in (load(folder, dtype="bfloat16"), load(folder).to(torch.bfloat16)):
        buffers = {name: b for name, b in low.named_buffers() if name.endswith("inv_freq")}
        assert buffers and all(b.dtype == torch.float32 for b in buffers.values())
        assert all(torch.equal(b, exact[name]) for name, b in buffers.items())
        assert next(low.model.parameters()).dtype == torch.bfloat16
        assert states(low).hidden.isfinite().all()
