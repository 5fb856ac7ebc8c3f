"""Markdown of data cards: texts from data are shown as they are and have no meaning of their own."""

from collections.abc import Iterable, Sequence

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>!|#~$&"})
_LONGEST = 300


def escaped(text: str) -> str:
    """One line of Markdown that shows a text as it is, up to its first 300 characters."""
    return " ".join(text.split())[:_LONGEST].translate(_SPECIAL)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; every cell is escaped.

    Args:
        heads: Heads of the columns.
        rows: As many cells each.
    """
    lines = [[escaped(str(cell)) for cell in row] for row in (heads, *rows)]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
