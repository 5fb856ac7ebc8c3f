"""One row of a user's table: cells are read by type, and every problem is collected with its column."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from safe_rlhf_v.records.parsing import check_int, check_text

Value = TypeVar("Value")
_TRUE = ("true", "yes", "1")
_FALSE = ("false", "no", "0")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
}


class Row:
    """The cells of one row; an empty text and null mean unknown, and nothing else is guessed.

    Attributes:
        number: 1 for the first row of data; blank lines do not count.
        line: Line of the file where the row begins, from 1.
        cells: Cells by column.
        typed: Cells have types (JSON); else they are texts that are parsed (CSV).
        readable: The cells could be read.
        file: File of the row, if the rows come from several.
        problems: (column, problem) so far; the column is "" if the problem concerns the row as a unit.
    """

    def __init__(
        self, number: int, line: int, cells: dict[str, Any], *, typed: bool = True, problem: str = "", column: str = ""
    ) -> None:
        """Store the cells.

        Args:
            number: 1 for the first row of data.
            line: Line of the file where the row begins, from 1.
            cells: Cells by column.
            typed: Cells have types (JSON); else they are texts that are parsed (CSV).
            problem: Why the row could not be read, or "".
            column: Column of that problem, or "".
        """
        self.number = number
        self.line = line
        self.cells = cells
        self.typed = typed
        self.readable = not problem
        self.file = ""
        self.problems: list[tuple[str, str]] = [(column, problem)] if problem else []

    def bad(self, column: str, problem: str) -> None:
        """Note a problem."""
        self.problems.append((column, problem))

    def has(self, column: str) -> bool:
        """Whether the cell is not empty."""
        return self.cells.get(column) not in (None, "")

    def text(self, column: str) -> str | None:
        """A text; ``None`` if it is unknown, or wrong, which is noted as a problem."""
        value = self._known(column)
        if value is None:
            return None
        if not isinstance(value, str):
            self.bad(column, f"must be text, not {describe(value)}")
        elif problem := text_problem(value, self.typed):
            self.bad(column, problem)
        else:
            return value
        return None

    def integer(self, column: str) -> int | None:
        """A whole number, which may be written as 2.0; see :meth:`text`."""
        value = self._known(column)
        if value is None:
            return None
        if not self.typed and _INTEGER.fullmatch(value.strip()):
            value = int(value.strip().partition(".")[0])
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self.bad(column, f"must be a whole number, not {describe(value)}")
        elif problem := check_int(value):
            self.bad(column, problem)
        else:
            return value
        return None

    def decimal(self, column: str) -> float | None:
        """A finite number; see :meth:`text`."""
        value = self._known(column)
        if value is None:
            return None
        if not self.typed and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            comma = isinstance(value, str) and _NUMBER.fullmatch(value.strip().replace(",", ".", 1))
            self.bad(column, f"must be a number, not {describe(value)}{'; decimals need a point' if comma else ''}")
        elif not -1e300 < value < 1e300:
            self.bad(column, f"{value!r:.30} is too large, or not finite")
        else:
            return float(value)
        return None

    def boolean(self, column: str) -> bool | None:
        """A boolean; see :meth:`text`."""
        value = self._known(column)
        if value is None or isinstance(value, bool):
            return value
        word = value.strip().lower() if not self.typed else ""
        if word not in (*_TRUE, *_FALSE):
            quoted = " without quotation marks" if isinstance(value, str) else ""
            allowed = f"true or false{quoted}" if self.typed else "one of true, yes, 1, false, no, 0"
            self.bad(column, f"must be {allowed}, not {describe(value)}")
            return None
        return word in _TRUE

    def names(self, column: str) -> tuple[str, ...] | None:
        """Names separated by ";", or a list of names; "none" and [] mean no name, an empty cell unknown; see :meth:`text`."""
        value = self._known(column)
        if not isinstance(value, list):
            text = self.text(column)
            if text is None or text.strip() in ("none", "[]"):
                return None if text is None else ()
            return tuple(name.strip() for name in text.split(";"))
        for name in value:
            if not isinstance(name, str) or text_problem(name, self.typed):
                self.bad(column, f"must be a list of names, which {describe(name)} is not")
                return None
        return tuple(value)

    def each(self, column: str, read: Callable[["Row", str], Value | None]) -> tuple[Value, ...]:
        """The entries of a list, which CSV separates by ";"; () if the cell is empty, or an entry wrong.

        Args:
            column: The column.
            read: Method that reads one entry, such as ``Row.integer``.
        """
        value = self._known(column)
        if value is None:
            return ()
        if not self.typed and isinstance(value, str):
            value = [entry.strip() for entry in value.split(";")]
        if not isinstance(value, list):
            self.bad(column, f"must be a list, not {describe(value)}")
            return ()
        inner = Row(self.number, self.line, {str(i): entry for i, entry in enumerate(value)}, typed=self.typed)
        entries = [read(inner, name) for name in inner.cells]
        for name in inner.cells:
            if not inner.has(name):
                inner.bad(name, "is empty")
        for name, problem in inner.problems[:5]:
            self.bad(column, f"entry {name} {problem}")
        return () if inner.problems else tuple(entry for entry in entries if entry is not None)

    def _known(self, column: str) -> Any:
        value = self.cells.get(column)
        return None if value == "" else value


def describe(value: Any) -> str:
    """A value of an untrusted file for a message: its type and its beginning."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = "..."
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str) else f"{_TYPE_NAMES.get(type(value), type(value).__name__)} ({text})"


def text_problem(value: str, typed: bool) -> str | None:
    """What is wrong with a text, or ``None``."""
    if not typed and (match := re.search("[\udc80-\udcff]", value)):  # how Python stores an undecodable byte
        byte = ord(match[0]) - 0xDC00
        return f"is not UTF-8 (byte 0x{byte:02X} after {value[: match.start()][-20:]!r}); save the table as UTF-8"
    if "\0" in value:
        return "holds a NUL character"
    if not value.strip():
        return "holds white space only; leave it empty if it is unknown"
    return check_text(value)
