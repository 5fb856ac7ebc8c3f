"""The conversation of a prompt: a system text, earlier turns, and the question.

A turn of the user may hold several of the record's images. They stand before its text; the record's images are numbered in the
order in which they occur in the conversation.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from safe_rlhf_v.records.parsing import Fields, check_text

ROLES = ("user", "assistant")


class Turn(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: ``"user"`` or ``"assistant"``.
        text: What was written.
        images: How many of the record's images stand in this turn, before its text; 0 for a turn of the assistant.
    """

    role: str
    text: str
    images: int = 0


class Context(NamedTuple):
    """What stands before the question.

    Attributes:
        system: System text; "" for none.
        history: Earlier turns, oldest first: the user's first, then in turn, the assistant's last.
    """

    system: str = ""
    history: tuple[Turn, ...] = ()

    def turns(self, question: str, images: int) -> tuple[Turn, ...]:
        """All turns, with the question last; it holds the images that no earlier turn holds.

        Args:
            question: Text of the last turn.
            images: Number of images of the whole conversation.
        """
        return (*self.history, Turn("user", question, images - self.earlier_images))

    @property
    def earlier_images(self) -> int:
        """How many images stand in the earlier turns."""
        return sum(turn.images for turn in self.history)

    def with_images(self, count: int) -> "Context":
        """The same texts for another number of images: the earliest turns keep theirs as long as there are any.

        Args:
            count: Number of images of the whole conversation.
        """
        if self.earlier_images <= count:
            return self
        history = []
        for turn in self.history:
            history.append(turn._replace(images=min(turn.images, count)))
            count -= history[-1].images
        return Context(self.system, tuple(history))


def parse_turns(fields: Fields, name: str) -> tuple[Turn, ...]:
    """The turns in a list field: ``{"role": "user", "text": "...", "images": 1}``, where ``images`` may be absent.

    Args:
        fields: The object that has the field.
        name: Name of the field.

    Raises:
        RecordError: If a turn has a missing, unknown or wrongly typed field.
    """
    turns = []
    for where, body in fields.items(name):
        inner = Fields(body, fields.key, where)
        images = inner.count("images") if "images" in inner.body else 0
        turns.append(Turn(inner.take("role", str), inner.take("text", str), images))
        inner.done()
    return tuple(turns)


def turn_problems(history: Any, images: int) -> Iterator[tuple[str, str]]:
    """Every (field, problem) of the earlier turns.

    Args:
        history: The turns, from anywhere.
        images: Number of images of the record.
    """
    if not isinstance(history, tuple):
        yield "history", f"must be a tuple of turns, not {history!r:.80}"
        return
    for i, turn in enumerate(history):
        where = f"history[{i}]"
        if not isinstance(turn, Turn):
            yield where, f"must be a Turn, not {turn!r:.80}"
            return
        if turn.role != ROLES[i % 2]:
            order = "roles alternate, and the first is the user's"
            yield f"{where}.role", f"is {turn.role!r:.80}, not {ROLES[i % 2]!r}: {order}"
        if problem := check_text(turn.text) if isinstance(turn.text, str) else f"must be str, not {turn.text!r:.80}":
            yield f"{where}.text", problem
        if not isinstance(turn.images, int) or isinstance(turn.images, bool) or turn.images < 0:
            yield f"{where}.images", f"must be a count, not {turn.images!r:.80}"
            return
        if turn.images and turn.role == "assistant":
            yield f"{where}.images", "only turns of the user hold images"
    if len(history) % 2:
        yield "history", "must end with a turn of the assistant: the user's last turn is 'question'"
    if (held := sum(turn.images for turn in history)) > images:
        yield "history", f"its turns hold {held} images, the record has {images}"
