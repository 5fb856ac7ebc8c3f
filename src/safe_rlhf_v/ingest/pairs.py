"""Join single responses back into pairs: rows with the same picture and question hold responses to one prompt."""

import hashlib
from collections.abc import Iterator
from typing import Any

from safe_rlhf_v.ingest.mapping import Schema
from safe_rlhf_v.ingest.rows import Row
from safe_rlhf_v.ingest.sources import Part


class Partners:
    """Which rows of a part belong together; numbers count from 0.

    Attributes:
        of: The other row of a pair, for both.
    """

    def __init__(self, part: Part, schema: Schema) -> None:
        """Read the columns that must be equal, once; 16 bytes are kept of a row.

        Args:
            part: The part.
            schema: Names the fields.
        """
        self.of: dict[int, int] = {}
        self._skip = schema.skip
        fields = [schema.records[0][name] for name in schema.pair_by]
        columns = sorted({name.partition(".")[0] for field in fields for name in field.sources})
        alone: dict[bytes, int] = {}
        for batch in part.read(schema, 0, columns):
            for row in batch:
                digest = hashlib.sha256(b"\0".join(_content(field.raw(row.cells)) for field in fields)).digest()[:16]
                first = alone.pop(digest, None)
                if first is None:
                    alone[digest] = row.number - 1
                else:
                    self.of |= {first: row.number - 1, row.number - 1: first}

    def start(self, position: int) -> int:
        """The row to read from, so that all partners of rows from ``position`` on are read."""
        return min((first for first, second in self.of.items() if first < position <= second), default=position)

    def pairs(self, rows: Iterator[list[Row]], position: int) -> Iterator[tuple[Row, Row | None, bool]]:
        """Rows with their earlier partner, in the order of the later row; a row that waits for its partner is held.

        Args:
            rows: Batches of rows, from :meth:`start` on.
            position: Earlier rows are read as partners only.

        Yields:
            The row, its earlier partner if it has one, and whether it is alone.
        """
        waiting: dict[int, Row] = {}
        for batch in rows:
            for row in batch:
                number = row.number - 1
                other = self.of.get(number)
                if other is not None and other > number:
                    if other >= position:
                        waiting[number] = self._without_pictures(row)
                elif number >= position:
                    yield row, None if other is None else waiting.pop(other), other is None

    def _without_pictures(self, row: Row) -> Row:
        """A row that waits needs its texts only: the picture is its partner's; a column to skip by stays full."""
        row.cells = {
            name: (name in self._skip or None) if _is_picture(value) else value for name, value in row.cells.items()
        }
        return row


def _is_picture(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _content(value: Any) -> bytes:
    """What must be equal: bytes of a picture, or a text."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode(errors="replace")).digest()
