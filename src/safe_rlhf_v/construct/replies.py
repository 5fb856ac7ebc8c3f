"""What is asked of an endpoint and what comes back: every outcome has a class of its own, and only a response has a text."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from safe_rlhf_v.records.parsing import check_text

Failure = Literal[
    "timeout",
    "rate_limit",
    "server_error",
    "connection",
    "unauthorized",
    "not_found",
    "rejected",
    "garbled",
    "too_large",
]
Kind = Literal["complete", "truncated", "refused", "filtered", "empty"] | Failure
FAILURES: frozenset[Kind] = frozenset(get_args(Failure))
"""No reply of the model came: a later run may ask again."""


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        text: What is said.
        images: Encoded pictures (JPEG, PNG or WebP) that stand before the text, sent as they are; a user's message only.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[bytes, ...] = ()


class Request(NamedTuple):
    """One question to a model.

    Attributes:
        key: Name that the reply carries; unique within one call.
        messages: The conversation so far, the user's last.
        fields: Fields of this request alone, by the names that the ``openai`` package gives them.
    """

    key: str
    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request.

    Attributes:
        key: The request's key.
        kind: The outcome. ``complete``; ``truncated`` by the limit of tokens; ``refused`` (the endpoint says so in its own
            field); ``filtered`` by the provider; ``empty`` (no visible character); or one of :data:`FAILURES`, after the
            last try: ``timeout``, ``rate_limit`` (429), ``server_error`` (5xx), ``connection`` (refused, cut), ``unauthorized``
            (401), ``not_found`` (404), ``rejected`` (any other status), ``garbled`` (not a chat completion), ``too_large``.
        text: The text if it is complete or truncated, else ``None``.
        finish_reason: What the endpoint says of the end, ``""`` if it says nothing.
        refusal: The text of a refusal, else ``""``.
        error: One line about a failure, else ``""``; the key never stands in it.
        model: The model that the endpoint says it used, ``""`` if it says nothing.
        prompt_tokens: Tokens of the prompt as the endpoint counts them, ``None`` if it does not say.
        completion_tokens: Tokens of the reply, likewise.
    """

    key: str
    kind: Kind
    text: str | None = None
    finish_reason: str = ""
    refusal: str = ""
    error: str = ""
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def failed(self) -> bool:
        """Whether no reply of the model came, so that a later run may ask again."""
        return self.kind in FAILURES


def chat_message(message: Message) -> dict[str, Any]:
    """A message in the form of the chat-completions interface, its pictures as data URLs of their own bytes.

    Raises:
        ValueError: If a picture is not a JPEG, PNG or WebP, or stands in a message that is not the user's.
    """
    if problem := check_text(message.text):
        raise ValueError(f"a text of the {message.role} {problem}")
    if not message.images:
        return {"role": message.role, "content": message.text}
    if message.role != "user":
        raise ValueError(
            f"a picture stands in a message of the {message.role}; endpoints take pictures from the user only"
        )
    pictures = [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in message.images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": message.text}]}


def data_url(picture: bytes) -> str:
    """The encoded picture as a data URL.

    Raises:
        ValueError: If it is not a JPEG, PNG or WebP.
    """
    if picture.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    elif picture.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif picture.startswith(b"RIFF") and picture[8:12] == b"WEBP":
        kind = "webp"
    else:
        raise ValueError(f"a picture of {len(picture)} bytes is not a JPEG, PNG or WebP")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def read_completion(key: str, body: bytes) -> Reply:
    """The reply in the body of a chat completion; whatever is not one is ``garbled``.

    Args:
        key: The request's key.
        body: Body of the endpoint's 200 response.
    """
    try:
        return _reply(key, json.loads(body.decode("utf-8")))
    except _Garbled as error:
        problem = str(error)
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:  # of the decoding and of the JSON
        problem = f"not JSON ({error})"
    return Reply(key, "garbled", error=f"the body is no chat completion: {problem}"[:300])


class _Garbled(Exception):
    """The body has not the form of a chat completion."""


def _reply(key: str, body: Any) -> Reply:
    """See :func:`read_completion`."""
    choices = _object(body, "body").get("choices")
    if not isinstance(choices, list) or not choices:
        raise _Garbled("it has no choices")
    choice = _object(choices[0], "choice")
    message = _object(choice.get("message"), "message")
    usage = body.get("usage")
    reason = _text(choice.get("finish_reason"), "finish_reason")
    refusal = _text(message.get("refusal"), "refusal")
    text = _content(message.get("content"))
    kind: Kind
    if refusal.strip():
        kind = "refused"
    elif reason == "content_filter":
        kind = "filtered"
    elif not text.strip():
        kind = "empty"
    else:
        kind = "truncated" if reason == "length" else "complete"
    return Reply(
        key,
        kind,
        text=text if kind in ("complete", "truncated") else None,
        finish_reason=reason,
        refusal=refusal,
        model=_text(body.get("model"), "model"),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Garbled(f"its {name} is {type(value).__name__}, not an object")
    return value


def _text(value: Any, name: str) -> str:
    """A string that a file can hold; nothing is the empty string."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Garbled(f"its {name} is {type(value).__name__}, not a text")
    if problem := check_text(value):
        raise _Garbled(f"its {name} {problem}")
    return value


def _content(value: Any) -> str:
    """The text of a message: a string, or a list of parts of which the texts count."""
    if not isinstance(value, list):
        return _text(value, "content")
    parts = [_object(part, "part of the content") for part in value]
    return "".join(_text(part.get("text"), "part of the content") for part in parts if part.get("type") == "text")


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens; servers that do not count say nothing, zero or nonsense."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
