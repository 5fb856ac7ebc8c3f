"""One row of somebody's table: cells are taken by type, and everything that is wrong is kept, by column."""

import re
from typing import Any

from safe_rlhf_v.records.parsing import check_int, check_text

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}


class Row:
    """The cells of one row. An empty text and null mean unknown; nothing else is guessed.

    Attributes:
        number: 1 for the first row of data; blank lines do not count.
        line: Line of the file where the row begins, from 1.
        cells: By column.
        typed: Cells have types (JSON); else they are texts that are parsed (CSV).
        readable: Its cells are known.
        problems: (column, what is wrong) so far; the column is "" where it is the whole row.
    """

    def __init__(
        self, number: int, line: int, cells: dict[str, Any], *, typed: bool = True, problem: str = "", column: str = ""
    ) -> None:
        """
        Args:
            number: See above.
            line: See above.
            cells: See above.
            typed: See above.
            problem: Why the row could not be read.
            column: Where.
        """
        self.number, self.line, self.cells, self.typed = number, line, cells, typed
        self.readable = not problem
        self.problems: list[tuple[str, str]] = [(column, problem)] if problem else []

    def bad(self, column: str, problem: str) -> None:
        """Note a problem."""
        self.problems.append((column, problem))

    def has(self, column: str) -> bool:
        """Whether something stands there."""
        return self.cells.get(column) not in (None, "")

    def text(self, column: str) -> str | None:
        """A text; ``None`` if it is unknown or, with a problem noted, wrong."""
        value = self._known(column)
        if value is None:
            return None
        if not isinstance(value, str):
            self.bad(column, f"must be text, not {shown(value)}")
        elif problem := _text_problem(value, self.typed):
            self.bad(column, problem)
        else:
            return value
        return None

    def integer(self, column: str) -> int | None:
        """A whole number, also written as 2.0; see :meth:`text`."""
        value = self._known(column)
        if value is None:
            return None
        if not self.typed and _INTEGER.fullmatch(value.strip()):
            value = int(value.strip().partition(".")[0])
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self.bad(column, f"must be a whole number, not {shown(value)}")
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
            self.bad(column, f"must be a number, not {shown(value)}")
        elif not -1e300 < value < 1e300:
            self.bad(column, f"{value!r:.30} is too large, or not finite")
        else:
            return float(value)
        return None

    def boolean(self, column: str) -> bool | None:
        """Yes or no; see :meth:`text`."""
        value = self._known(column)
        if value is None or isinstance(value, bool):
            return value
        word = value.strip().lower() if not self.typed else ""
        if word not in (*_TRUE, *_FALSE):
            wanted = "true or false" if self.typed else "one of true, yes, 1, false, no, 0"
            self.bad(column, f"must be {wanted}, not {shown(value)}")
            return None
        return word in _TRUE

    def names(self, column: str) -> tuple[str, ...] | None:
        """Names separated by ";", or a list of them; "none" or [] is none, an empty cell unknown; see :meth:`text`."""
        value = self._known(column)
        if not isinstance(value, list):
            text = self.text(column)
            if text is None or text.strip() in ("none", "[]"):
                return None if text is None else ()
            return tuple(name.strip() for name in text.split(";"))
        for name in value:
            if not isinstance(name, str) or _text_problem(name, self.typed):
                self.bad(column, f"must be a list of names, which {shown(name)} is not")
                return None
        return tuple(value)

    def _known(self, column: str) -> Any:
        value = self.cells.get(column)
        return None if value == "" else value


def shown(value: Any) -> str:
    """A value of an untrusted file for a message: what it is, and its beginning."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = "..."
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str) else f"{_WORDS.get(type(value), type(value).__name__)} ({text})"


def _text_problem(value: str, typed: bool) -> str | None:
    """What is wrong with a text that stands for something."""
    if not typed and (found := re.search("[\udc80-\udcff]", value)):  # how an undecodable byte is kept
        byte = ord(found[0]) - 0xDC00
        return f"is not UTF-8 (byte 0x{byte:02X} after {value[: found.start()][-20:]!r}); save the table as UTF-8"
    if "\0" in value:
        return "holds a NUL character"
    if not value.strip():
        return "holds white space only; leave it empty if it is unknown"
    return check_text(value)
