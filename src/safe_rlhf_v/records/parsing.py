"""Strict parsing of JSON to record fields: a violation of the schema is refused with key and field, nothing is guessed."""

import json
import math
from typing import Any

from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL

MAX_JSON_BYTES = 1_000_000


class RecordError(ValueError):
    """A record breaks the schema; the message names key and field."""

    def __init__(self, key: str, where: str, problem: str) -> None:
        """Compose the message.

        Args:
            key: The record's key.
            where: Dotted path of the field.
            problem: What is wrong with it.
        """
        super().__init__(f"record {key!r:.140}, field {where!r:.140}: {problem}")
        self.key = key
        self.field = where
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Pickle support: worker processes send it to the main process."""
        return type(self), (self.key, self.field, self.problem)


def parse_json(text: bytes, key: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Parse a JSON object in UTF-8 without NaN, infinities, duplicate names or excessive nesting.

    Args:
        text: Bytes of the object.
        key: Key of the record it belongs to, for messages.
        limit: Maximum number of bytes.

    Raises:
        RecordError: For anything else.
    """

    def refuse(name: str) -> Any:
        raise RecordError(key, "json", f"{name} is not allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        body = dict(pairs)
        if len(body) < len(pairs):
            names = [name for name, _ in pairs]
            duplicate = next(name for name in names if names.count(name) > 1)
            raise RecordError(key, duplicate, "occurs twice in one JSON object")
        return body

    if len(text) > limit:
        raise RecordError(key, "json", f"{len(text)} bytes, the limit is {limit}")
    if b"\0" in text:
        raise RecordError(key, "json", "not readable as JSON: holds zero bytes, as UTF-16 does; save it as UTF-8")
    try:
        body = json.loads(text.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)
    except RecordError:
        raise
    except UnicodeDecodeError:
        raise RecordError(key, "json", "not readable as JSON: is no UTF-8 text; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(key, "json", f"not readable as JSON ({type(error).__name__}: {error})") from None
    if not isinstance(body, dict):
        raise RecordError(key, "json", f"must be an object, not {type(body).__name__}")
    return body


class Fields:
    """Typed access to the fields of one JSON object; fields that were not read are refused at the end."""

    def __init__(self, body: Any, key: str, where: str = "") -> None:
        """Copy the object.

        Args:
            body: The parsed object.
            key: The record's key, for messages.
            where: Dotted path of this object.

        Raises:
            RecordError: If ``body`` is not an object.
        """
        self.key = key
        self.where = where
        if not isinstance(body, dict):
            raise RecordError(key, where, f"must be an object, not {type(body).__name__}")
        self.body = dict(body)

    def path(self, name: str) -> str:
        """Dotted path of a field of this object."""
        return f"{self.where}.{name}" if self.where else name

    def take(self, name: str, *kinds: type, optional: bool = False) -> Any:
        """Remove and return a field of one of the given JSON types (``int`` does not admit booleans).

        Raises:
            RecordError: If it is missing or of another type.
        """
        if name not in self.body:
            raise RecordError(self.key, self.path(name), "is missing")
        value = self.body.pop(name)
        if value is None and optional:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds) + (" or null" if optional else "")
            raise RecordError(self.key, self.path(name), f"must be {expected}, not {value!r:.80}")
        problem = check_text(value) if isinstance(value, str) else check_int(value) if isinstance(value, int) else None
        if problem:
            raise RecordError(self.key, self.path(name), problem)
        return value

    def count(self, name: str) -> int:
        """Remove and return a whole number of at least 0."""
        value = int(self.take(name, int))
        if value < 0:
            raise RecordError(self.key, self.path(name), f"must be a count, not {value}")
        return value

    def inner(self, name: str) -> "Fields":
        """Remove an object field and return access to it."""
        return Fields(self.take(name, dict), self.key, self.path(name))

    def strings(self, name: str) -> list[str]:
        """Remove and return a list of texts."""
        values = self.take(name, list)
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise RecordError(self.key, f"{self.path(name)}[{i}]", f"must be str, not {value!r:.80}")
            if problem := check_text(value):
                raise RecordError(self.key, f"{self.path(name)}[{i}]", problem)
        return list(values)

    def items(self, name: str) -> list[tuple[str, Any]]:
        """The entries of a list field with their paths."""
        return [(f"{self.path(name)}[{i}]", value) for i, value in enumerate(self.take(name, list))]

    def done(self) -> None:
        """Check that every field was read.

        Raises:
            RecordError: If unknown fields are left.
        """
        if self.body:
            raise RecordError(self.key, self.path(next(iter(self.body))), "is not part of the schema")


def check_text(value: str) -> str | None:
    """What is wrong with a text, or ``None``; tokenizers refuse a lone surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holds the lone surrogate U+{ord(value[error.start]):04X} at character {error.start}"
    return None


def check_int(value: int) -> str | None:
    """What is wrong with a whole number, or ``None``; tensors have 64 bits."""
    return None if -(1 << 63) <= value < 1 << 63 else "does not fit into 64 bits"


def check_level(value: int | None) -> str | None:
    """What is wrong with a safety level, or ``None``."""
    if value is not None and not MIN_LEVEL <= value <= MAX_LEVEL:
        return f"safety level {value} is outside {MIN_LEVEL}..{MAX_LEVEL}"
    return None


def check_finite(value: float | None) -> str | None:
    """What is wrong with a number, or ``None``."""
    try:
        return None if value is None or math.isfinite(value) else f"{value} is not finite"
    except OverflowError:
        return "does not fit into a float"
