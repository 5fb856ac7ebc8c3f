"""How a conversation becomes text and token ids, as functions of a tokenizer and plain settings.

This file needs nothing of this library: the loader in an exported folder holds a copy of it, so that both read the same tokens.

Turns are (role, text, number of pictures, which stand before the text), the question last.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any


def chat_text(tokenizer: Any, form: dict[str, Any], system: str, turns: Sequence[tuple[str, str, int]]) -> str:
    """A prompt in a chat template, up to the start of the response; control tokens spelled out in a text are split by a space.

    Args:
        tokenizer: Fills the template.
        form: ``template``, ``placeholder`` of a picture, ``control`` (regular expression of the control tokens), ``parts``
            (roles whose content is a list of parts) and ``system`` (whether the template has that role).
        system: System text, "" for none; without such a role it stands in front of the user's first turn.
        turns: The conversation.

    Raises:
        ValueError: If the chat template refuses the conversation, or leaves out a part of it.
    """
    split = plain_messages(form, system, turns)
    contents = [message(form, *one, parts=one[0] in form["parts"]) for one in split]
    try:
        prompt = filled(tokenizer, form, contents, generate=True)
    except Exception as error:  # a template raises what it likes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"the model's chat template refuses the conversation ({reason})") from None
    texts = [text.strip() for role, text, _ in split if role != "system"]  # a template may move the system text
    if split[0][1].strip() not in prompt or not _in_order(texts, prompt):
        raise ValueError("the model's chat template leaves out a part of the conversation")
    return prompt


def plain_messages(
    form: dict[str, Any], system: str, turns: Sequence[tuple[str, str, int]]
) -> list[tuple[str, str, int]]:
    """The messages that the chat template is filled with, as (role, text, number of pictures); see :func:`chat_text`."""
    turns = list(turns)
    if system and not form["system"]:
        role, text, images = turns[0]
        turns[0] = (role, f"{system}\n\n{text}", images)
        system = ""
    messages = ([("system", system, 0)] if system else []) + turns
    return [(role, split_control(text, form["control"]), images) for role, text, images in messages]


def message(form: dict[str, Any], role: str, text: str, images: int = 0, *, parts: bool) -> dict[str, Any]:
    """One turn as a chat template takes it: a list of parts, or a text with placeholders."""
    if parts:
        return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}
    return {"role": role, "content": f"{form['placeholder']}\n" * images + text}


def filled(tokenizer: Any, form: dict[str, Any], messages: Sequence[dict[str, Any]], *, generate: bool) -> str:
    """The template with these messages."""
    text = tokenizer.apply_chat_template(
        messages, chat_template=form["template"], tokenize=False, add_generation_prompt=generate
    )
    return str(text)


def chat_ids(tokenizer: Any, form: dict[str, Any], text: str) -> list[int]:
    """Token ids of a prompt that a chat template wrote; each placeholder becomes the tokens of a picture.

    Args:
        tokenizer: Of the model.
        form: ``image_id`` and ``image_tokens``.
        text: See :func:`chat_text`.
    """
    bos = tokenizer.bos_token
    special = not tokenizer.chat_template and (bos is None or not text.startswith(bos))  # a template writes its own
    ids = [int(i) for i in tokenizer(text, add_special_tokens=special)["input_ids"]]
    if special and ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers append it to every text
        ids.pop()
    return [i for token in ids for i in [token] * (form["image_tokens"] if token == form["image_id"] else 1)]


def template_ids(
    form: dict[str, Any],
    system: str,
    turns: Sequence[tuple[str, str, int]],
    encode: Callable[[str], list[int]],
    text_ids: Callable[[str], list[int]],
) -> list[int]:
    """Token ids of a prompt by a template of one turn; texts are inserted as ids, so that none can add a control token.

    Args:
        form: ``template`` (with ``<image>`` and ``{question}``), ``bos`` (at its beginning: of the first turn only),
            ``image_id``, ``image_tokens`` and ``end_id``.
        system: System text, before the first question.
        turns: The conversation.
        encode: Ids of a piece of the template.
        text_ids: Ids of plain text.
    """
    before, after = form["template"].split("<image>")
    ids: list[int] = []
    for i, (role, text, images) in enumerate(turns):
        if role == "assistant":
            ids += [*text_ids(text), form["end_id"]]
            continue
        head = before.removeprefix(form["bos"]).lstrip() if i and form["bos"] else before
        text_of_turn = f"{system}\n\n{text}" if system and i == 0 else text
        pictures = [form["image_id"]] * (images * form["image_tokens"])  # ids: text between them would be tokens, too
        for number, part in enumerate((head, after)):
            first, question, last = part.partition("{question}")
            ids += [*(pictures if number else ()), *encode(first)]
            ids += [*text_ids(text_of_turn), *encode(last)] if question else []
    return ids


def plain_text_ids(tokenizer: Any, text: str, never: Sequence[int] | set[int]) -> list[int]:
    """Token ids of text that is only text: a special token spelled out in it never becomes one.

    Args:
        tokenizer: Of the model.
        text: Any text.
        never: Ids that no text may have; in word-level vocabularies the special tokens are also words.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [int(i) for i in ids if i not in never]


def turns_of(question: str, images: int, history: Sequence[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """The turns of a conversation that is given as records have it.

    Args:
        question: Text of the last turn.
        images: Number of pictures of the whole conversation; the last turn has those that no earlier one has.
        history: Earlier turns: ``{"role": "user", "text": "...", "images": 1}``, where ``images`` may be absent.

    Raises:
        ValueError: If roles do not alternate, or the pictures are not where they can be.
    """
    turns = [(str(turn["role"]), str(turn["text"]), int(turn.get("images", 0))) for turn in history]
    roles = [role for role, _, _ in turns]
    if len(turns) % 2 or roles != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(f"history: user and assistant take turns, the user first, the assistant last; not {roles}")
    counts = [count for _, _, count in turns]
    if min(counts, default=0) < 0 or any(counts[1::2]) or sum(counts) > images:
        raise ValueError(
            f"history: its turns hold {counts} pictures, {images} are given; only turns of the user hold pictures"
        )
    return [*turns, ("user", question, images - sum(counts))]


def room_for(limit: int | None, prompt_length: int) -> int | None:
    """Most tokens of a response after a prompt of that length; ``None`` for no limit.

    Raises:
        ValueError: If not even one fits: prompts are never truncated.
    """
    if limit is not None and limit <= prompt_length:
        raise ValueError(
            f"the prompt has {prompt_length} tokens, and the model reads {limit}: there is no room for a response"
        )
    return None if limit is None else limit - prompt_length


def upright(image: Any) -> Any:
    """A PIL picture in RGB, turned as its EXIF data say, transparency blended with white, more than 8 bits scaled to 8.

    Raises:
        ValueError: If values are not finite, or beyond 16 bits.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(image)
    if image.mode == "La":  # premultiplied; Pillow converts it to LA only
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _deep(image: Any) -> Any:
    """Grey values of more than 8 bits, scaled to 8 bits as in training (Pillow would clip them to white)."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    low = float(values.min())
    high = float(values.max())
    if not 0 <= low <= high <= 65535:  # false for NaN, too
        raise ValueError(f"mode {image.mode} with values {low:g}..{high:g}: neither 0..1 nor 8 nor 16 bits")
    scale = 1 / 257 if image.mode.startswith("I;16") or high > 255 else 1.0
    if image.mode == "F" and high <= 1:
        scale = 255.0
    grey = (values * scale).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def split_control(text: str, control: str) -> str:
    """The text with a space in every control token that it spells out (``<image>`` becomes ``< image>``).

    Args:
        text: Any text.
        control: Regular expression of the control tokens; "" for none.
    """
    if not control:
        return text
    return re.sub(control, lambda token: f"{token[0][0]} {token[0][1:]}", text)


def _in_order(texts: Sequence[str], prompt: str) -> bool:
    """Whether the texts occur in the prompt one after another."""
    at = 0
    for text in texts:
        at = prompt.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True
