"""A column of turns as a conversation: system text, earlier turns, the question, and the response to it.

Turns are objects with a role and a text, as in LLaVA's files (``from``, ``value``), or with ``content``, a text or a list of
typed parts, as in chat messages. A picture stands where the text says ``<image>``, or where a part has the type ``image``.
"""

from typing import Any, NamedTuple

from safe_rlhf_v.ingest.fields import Field, FieldError
from safe_rlhf_v.ingest.rows import describe
from safe_rlhf_v.records import Turn

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Conversation(NamedTuple):
    """A column of turns.

    Attributes:
        system: System text.
        history: Turns before the question.
        question: Text of the last turn of the user.
        images: Number of pictures in the question.
        response: Text of the last turn of the assistant; empty if the user has the last word.
    """

    system: str
    history: tuple[Turn, ...]
    question: str
    images: int
    response: str


def read_conversation(field: Field, value: Any, images: int) -> Conversation:
    """Read a column of turns.

    Args:
        field: The mapping's options: names of role and text, and of the roles.
        value: The cell.
        images: Number of pictures of the row. Without any placeholder they stand in the first turn of the user.

    Raises:
        FieldError: If it is no conversation that begins with the user and alternates.
    """
    if not isinstance(value, list) or not value:
        raise FieldError(f"must be a list of turns, not {describe(value)}")
    turns = [_turn(field, one, i) for i, one in enumerate(value)]
    system = ""
    if turns[0].role == "system":
        system = turns.pop(0).text
    for i, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[i % 2]:
            raise FieldError(f"turn {i} is by {turn.role!r}; user and assistant must alternate, and the user begin")
    if not turns:
        raise FieldError("has no turn of the user")
    placed = sum(turn.images for turn in turns)
    if not placed and images:
        turns[0] = turns[0]._replace(images=images)
    elif placed != images:
        raise FieldError(f"says {PLACEHOLDER} {placed} times, but the row has {images} pictures")
    if any(turn.images for turn in turns[1::2]):
        raise FieldError("has a picture in a turn of the assistant")
    response = turns.pop().text if len(turns) % 2 == 0 else ""
    *history, last = turns
    return Conversation(system, tuple(history), last.text, last.images, response)


def _turn(field: Field, value: Any, number: int) -> Turn:
    if not isinstance(value, dict):
        raise FieldError(f"turn {number} must be an object, not {describe(value)}")
    name = str(value.get(field.role))
    role = field.roles.get(name) or ROLES.get(name)
    if role not in ("user", "assistant", "system"):
        raise FieldError(f"turn {number}: {field.role} is {describe(value.get(field.role))}; name it in roles")
    content = value.get(field.text)
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts: list[str] = []
    images = 0
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        piece = part.get("text") if isinstance(part, dict) else None
        if kind == "image":
            images += 1
        elif kind == "text" and isinstance(piece, str):
            texts.append(piece)
        else:
            raise FieldError(f"turn {number}: {field.text} must be text, not {describe(part)}")
    text = "\n".join(texts)
    images += text.count(PLACEHOLDER)
    text = text.replace(f"{PLACEHOLDER}\n", "").replace(f"\n{PLACEHOLDER}", "").replace(PLACEHOLDER, "")
    if not text.strip() and not images:
        raise FieldError(f"turn {number} is empty")
    return Turn(role, text, images)
