"""Conversations of inspect as records, and records as such conversations."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from safe_rlhf_v.records import Image, Record, Turn
from safe_rlhf_v.records.conversation import ROLES
from safe_rlhf_v.records.packages import package
from safe_rlhf_v.shards.images import MAX_BYTES, probe

_MEDIA = {"jpg": "jpeg", "png": "png", "webp": "webp"}


def record_of(messages: Sequence[Any], key: str = "request") -> Record:
    """A record with the conversation that ends with the user's last message.

    Messages of one role that follow each other are one turn. The pictures of a turn stand before its text, wherever the message
    has them: the models read them so.

    Args:
        messages: Chat messages of inspect.
        key: The record's key.

    Raises:
        ValueError: If the conversation holds what a record cannot: other media than text and pictures, calls of tools, a
            picture that is not inline or cannot be read, a system text in its midst, an assistant's message at its end.
    """
    systems: list[str] = []
    turns: list[tuple[str, list[str], list[Image]]] = []
    for message in messages:
        text, images = _parts(message)
        if message.role == "system" and not turns:
            systems.append(text)
        elif message.role not in ROLES:
            where = " behind other messages" if message.role == "system" else ""
            raise ValueError(f"a message of the role {message.role}{where} cannot be given to this model")
        elif turns and turns[-1][0] == message.role:
            turns[-1][1].append(text)
            turns[-1][2].extend(images)
        else:
            turns.append((message.role, [text], images))
    if not turns or turns[-1][0] != "user":
        raise ValueError("the conversation does not end with a message of the user")
    *earlier, (_, question, _) = turns
    history = tuple(Turn(role, "\n".join(texts), len(images)) for role, texts, images in earlier)
    pictures = tuple(image for _, _, images in turns for image in images)
    record = Record(key, "\n".join(question), pictures, system="\n".join(systems), history=history)
    return record.validate()


def messages_of(record: Record) -> list[Any]:
    """A record's conversation as chat messages of inspect, with the pictures inline.

    Args:
        record: With its image bytes.
    """
    model = package("inspect_ai.model", "inspect")
    images = iter(record.images)
    messages = [model.ChatMessageSystem(content=record.system)] if record.system else []
    for turn in record.turns:
        pictures = [model.ContentImage(image=_inline(next(images))) for _ in range(turn.images)]
        content = [*pictures, model.ContentText(text=turn.text)] if pictures else turn.text
        cls = model.ChatMessageUser if turn.role == "user" else model.ChatMessageAssistant
        messages.append(cls(content=content))
    return messages


def _parts(message: Any) -> tuple[str, list[Image]]:
    """Text and pictures of a message."""
    if getattr(message, "tool_calls", None):
        raise ValueError("a message calls a tool, which this model cannot")
    if isinstance(message.content, str):
        return message.content, []
    texts: list[str] = []
    images: list[Image] = []
    for part in message.content:
        if part.type == "text":
            texts.append(part.text)
        elif part.type == "image":
            images.append(_picture(part.image))
        else:
            raise ValueError(f"a message holds {part.type}: this model reads text and pictures only")
    return "\n".join(texts), images


def _picture(source: str) -> Image:
    """A picture from its data URI. Raises: ValueError: If it is none, or no picture that can be read."""
    head, comma, body = source.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError(f"the picture {source[:80]!r} is not inline (data:image/...;base64,...)")
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"a picture of more than {MAX_BYTES} bytes")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a picture is not in base64") from None
    return probe(data)


def _inline(image: Image) -> str:
    return f"data:image/{_MEDIA[image.format]};base64,{base64.b64encode(image.data).decode()}"
