"""What fills one field of a record: a column, a constant, or several columns put together."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safe_rlhf_v.ingest.rows import describe

OPTIONS = ("column", "value", "template", "scale", "times", "plus", "form", "optional", "role", "text", "roles")
FORMS = ("text", "base64", "snake_case")
_BRACES = re.compile(r"\{([^{}]+)\}")


class FieldError(ValueError):
    """A value cannot be used; the message says why in one line."""


@dataclass(frozen=True)
class Field:
    """One field of a mapping file.

    Attributes:
        columns: Columns of the source; the first that is not empty counts. ``a.b`` is entry b of column a.
        value: A constant instead of a column.
        template: A text with columns in braces, ``{category}_{id}.png``, instead of one column.
        scale: Our value for each value of the source; any other is refused.
        times: Factor of a number.
        plus: Added to the number.
        form: ``base64`` for encoded pictures; ``snake_case`` turns "Animal Abuse" into ``animal_abuse``.
        optional: The columns may be missing, and cells may be empty.
        role: Entry of a turn that says who speaks, for conversations.
        text: Entry of a turn that holds its text.
        roles: Our names (user, assistant, system) of the source's.
    """

    columns: tuple[str, ...] = ()
    value: Any = None
    template: str = ""
    scale: Mapping[str, Any] = field(default_factory=dict)
    times: float = 1
    plus: float = 0
    form: str = "text"
    optional: bool = False
    role: str = "from"
    text: str = "value"
    roles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: Any) -> "Field":
        """From a mapping file: a column's name, or its options.

        Raises:
            FieldError: Naming what is wrong.
        """
        if isinstance(body, str):
            body = {"column": body}
        if not isinstance(body, dict):
            raise FieldError(f"must be a column's name or options, not {describe(body)}")
        if unknown := [key for key in body if key not in OPTIONS]:
            raise FieldError(f"{unknown[0]!r:.80} is no option; there are: {', '.join(OPTIONS)}")
        options = dict(body)
        if sum(key in options for key in ("column", "value", "template")) != 1:
            raise FieldError("needs exactly one of column, value and template")
        columns = options.pop("column", [])
        options["columns"] = tuple(columns) if isinstance(columns, list) else (columns,)
        options["scale"] = _scale(options.get("scale", {}))
        roles = options.get("roles", {})
        if not isinstance(roles, dict):
            raise FieldError(f"roles must map names to user, assistant and system, not {describe(roles)}")
        options["roles"] = {str(key): str(value) for key, value in roles.items()}
        if not all(isinstance(column, str) and column for column in options["columns"]):
            raise FieldError(f"column must be a name or names, not {describe(columns)}")
        if options.get("form", "text") not in FORMS:
            raise FieldError(f"form is {options['form']!r:.80}; there are: {', '.join(FORMS)}")
        for key, kinds in (
            ("times", (int, float)),
            ("plus", (int, float)),
            ("optional", (bool,)),
            ("template", (str,)),
            ("role", (str,)),
            ("text", (str,)),
        ):
            if key in options and (
                not isinstance(options[key], kinds) or isinstance(options[key], bool) != (bool in kinds)
            ):
                raise FieldError(f"{key} is {describe(options[key])}")
            if isinstance(options.get(key), float) and not math.isfinite(options[key]):
                raise FieldError(f"{key} is {describe(options[key])}")
        if "template" in options and not _BRACES.search(options["template"]):
            raise FieldError(
                f"template {describe(options['template'])} names no column in braces; a constant is a value"
            )
        return cls(**options)

    @property
    def sources(self) -> tuple[str, ...]:
        """Columns that are read."""
        return tuple(_BRACES.findall(self.template)) or self.columns

    def missing(self, present: Sequence[str]) -> list[str]:
        """Columns that it needs and a source does not have."""
        if self.optional:
            return []
        gone = [name for name in self.sources if not {name, name.partition(".")[0]} & set(present)]
        if self.template:
            return gone
        return gone[:1] if gone and len(gone) == len(self.sources) else []

    def raw(self, cells: Mapping[str, Any]) -> Any:
        """The value as the source has it; ``None`` if it is empty."""
        if not self.columns and not self.template:
            return self.value
        if self.template:
            values = {name: cell_of(cells, name) for name in self.sources}
            if any(empty(value) for value in values.values()):
                return None
            return _BRACES.sub(lambda name: str(plain(values[name[1]])), self.template)
        return next((value for name in self.columns if not empty(value := cell_of(cells, name))), None)

    def cell(self, cells: Mapping[str, Any]) -> Any:
        """The value as a table's cell: text, a list of names, or ``None``.

        Raises:
            FieldError: If the value does not stand in ``scale``, or is no number to be scaled.
        """
        value = self.raw(cells)
        if empty(value):
            return None
        if self.scale:
            word = plain(value).strip().lower()
            if word not in self.scale:
                raise FieldError(f"{describe(value)} is none of {', '.join(self.scale)}")
            value = self.scale[word]
        if (self.times, self.plus) != (1, 0):
            value = self._number(value)
        if self.form == "snake_case":
            names = value if isinstance(value, list) else [value]
            return ";".join(re.sub(r"[^a-z0-9]+", "_", plain(name).lower()).strip("_") for name in names)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return value
        return plain(value)

    def _number(self, value: Any) -> Any:
        try:
            number = value if isinstance(value, (int, float)) else float(str(value))
        except ValueError:
            raise FieldError(f"must be a number, not {describe(value)}") from None
        scaled = number * self.times + self.plus
        return int(scaled) if math.isfinite(scaled) and scaled == int(scaled) else scaled


def cell_of(cells: Mapping[str, Any], name: str) -> Any:
    """A cell; ``a.b`` is entry b of the object or list in column a."""
    if name in cells:
        return cells[name]
    column, *path = name.split(".")
    value = cells.get(column)
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def empty(value: Any) -> bool:
    """Whether a cell is empty: null, an empty text or list, or a missing number as pandas writes it (NaN)."""
    return value is None or value in ("", []) or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> Any:
    """A scalar as the text that a CSV file would hold; lists, objects and bytes stay, so that their type is refused."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, (list, dict, bytes)) else str(value)


def _scale(body: Any) -> dict[str, Any]:
    """Keys as texts; YAML reads a bare yes and no as booleans, which stand for both spellings."""
    if not isinstance(body, dict):
        raise FieldError(f"scale must map values to values, not {describe(body)}")
    scale: dict[str, Any] = {}
    for key, value in body.items():
        words = {True: ("true", "yes"), False: ("false", "no")}[key] if isinstance(key, bool) else (str(key).lower(),)
        if not isinstance(value, (str, int, float, list)) or (isinstance(value, float) and not math.isfinite(value)):
            raise FieldError(f"scale: {words[0]} is {describe(value)}; a row that must be left out needs skip")
        for word in words:
            if scale.setdefault(word, value) != value:
                raise FieldError(f"scale: {word!r:.80} has two values, {scale[word]!r:.40} and {value!r:.40}")
    return scale
