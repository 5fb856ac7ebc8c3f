"""Markdown of cards and tables: texts from data are shown as they are and have no meaning of their own."""

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
    return marked_table([escaped(head) for head in heads], ([escaped(str(cell)) for cell in row] for row in rows))


def marked_table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table whose cells are Markdown already.

    Args:
        heads: Heads of the columns.
        rows: As many cells each; where there are fewer, the last ones are empty.
    """
    lines = [[*heads], ["---"] * len(heads), *([str(cell).strip() for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join([*line, *[''] * (len(heads) - len(line))])} |" for line in lines)
