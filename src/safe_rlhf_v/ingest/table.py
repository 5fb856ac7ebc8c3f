"""Read the rows of a CSV or JSONL file strictly: a row that cannot be read completely has a problem and no cells.

Both formats give the same :class:`~safe_rlhf_v.ingest.rows.Row`; a further format is one more function in ``_READERS``.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.records.parsing import RecordError, parse_json
from safe_rlhf_v.records.user_files import open_regular

_OTHER_FORMATS = {
    b"PK\x03\x04": "a workbook of a spreadsheet, or another archive",
    b"\xd0\xcf\x11\xe0": "a workbook of a spreadsheet",
    b"\x1f\x8b": "compressed with gzip",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF document",
}
"""What a file is that begins so, whatever its name says."""
MAX_LINE = 4_000_000
"""Maximum number of bytes (CSV: characters) of a line and of a cell; the JSON of a record has at most 1 MB."""


class TableError(ValueError):
    """A table cannot be read; the message names the file."""


def read_table(path: Path, names: Sequence[str] | None = None, *, required: Sequence[str] = ()) -> Iterator[Row]:
    """The rows, in order; ``Row.problems`` holds what is wrong with a row.

    Args:
        path: ``.csv`` (commas, a header) or ``.jsonl``, in UTF-8, with or without a byte-order mark.
        names: Columns that may occur; ``None`` allows all.
        required: Columns that a header must have; for JSON objects the caller has to check them.

    Raises:
        TableError: If the file has another format or encoding, its header is wrong, or a quotation mark is never closed.
        FileError: If it is missing or not a regular file.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise TableError(f"{path}: tables are {' or '.join(_READERS)} files")
    with open_regular(path) as file:
        head = file.read(4)
        file.seek(0)
        if other := [name for start, name in _OTHER_FORMATS.items() if head.startswith(start)]:
            raise TableError(f"{path}: is {other[0]}; export it as {path.suffix.lower()} in UTF-8")
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
            raise TableError(f"{path}: is UTF-16, UTF-32 or not text; save it as UTF-8")
        yield from reader(path, file, _Columns(names, required))


class _Columns:
    """The columns that a table may have and must have."""

    def __init__(self, names: Sequence[str] | None, required: Sequence[str]) -> None:
        self._names = names
        self._required = required

    def unknown(self, column: str) -> str:
        """Why a column is not allowed, or ""."""
        if self._names is None or column in self._names:
            return ""
        near = get_close_matches(column[:100], self._names, n=1, cutoff=0.7)
        return "is not a known column; " + (f"did you mean {near[0]!r}?" if near else "see --help")

    def header(self, cells: list[str], problem: str) -> str:
        """Everything that is wrong with a header, or ""."""
        problems = [problem] if problem else []
        for column in dict.fromkeys(cells):
            if not column.strip():
                problems.append("a column has no name; name or delete it")
            elif cells.count(column) > 1:
                problems.append(f"column {describe(column)} occurs {cells.count(column)} times")
            elif re.search("[\udc80-\udcff]", column):
                problems.append(f"column {describe(column)} is not UTF-8; save the table as UTF-8")
            elif reason := self.unknown(column):
                problems.append(f"column {describe(column)}: {reason}")
        if len(cells) == 1 and problems and re.search("[;\t|]", cells[0]):
            return "cells must be separated by commas"
        if missing := [name for name in self._required if name not in cells]:
            for mark, name in (";", "semicolons"), ("\t", "tabs"), ("|", "bars"):
                if missing[0] in mark.join(cells).split(mark):
                    return f"cells are separated by {name}; they must be separated by commas: export the table so"
            present = ", ".join(map(describe, cells[:20]))
            problems.append(f"column {missing[0]!r:.140} is missing; there are: {present}")
        return "; ".join(problems[:20])


def _jsonl(path: Path, file: BinaryIO, columns: _Columns) -> Iterator[Row]:
    """One JSON object per line."""
    number = line = 0
    while data := file.readline(MAX_LINE + 1):
        line += 1
        if line == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if not data.strip():
            continue
        number += 1
        if len(data) > MAX_LINE:
            while data and not data.endswith(b"\n"):
                data = file.readline(MAX_LINE)
            yield Row(number, line, {}, problem=f"the line is longer than {MAX_LINE} bytes")
            continue
        try:
            row = Row(number, line, parse_json(data, "", MAX_LINE))
        except RecordError as error:
            yield Row(number, line, {}, problem=error.problem, column="" if error.field == "json" else error.field)
            continue
        for column in row.cells:
            if problem := columns.unknown(column):
                row.bad(column, problem)
        yield row


def _csv(path: Path, file: BinaryIO, columns: _Columns) -> Iterator[Row]:
    """RFC 4180: commas, quotation marks doubled within quotation marks, line breaks within them."""
    previous_limit = csv.field_size_limit(MAX_LINE)
    lines = _Lines(file)
    try:
        yield from _csv_rows(path, lines, columns)
    finally:
        lines.release()
        csv.field_size_limit(previous_limit)


def _csv_rows(path: Path, lines: "_Lines", columns: _Columns) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        first = lines.number + 1
        cells = []
        problem = ""
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if lines.ended:
                raise TableError(
                    f"{path}: a quotation mark in the row that begins at line {first} is never closed, so the rest cannot "
                    "be read"
                ) from None
            skipped = f"; everything up to line {lines.number} is skipped" if lines.number > first else ""
            problem = f"not CSV ({error}){skipped}"
        if not cells and not problem:
            continue  # a blank line
        if lines.too_long >= first:
            problem = f"a line is longer than {MAX_LINE} characters"
        if header is None:
            header = cells
            if wrong := columns.header(cells, problem):
                raise TableError(f"{path}, header: {wrong}")
            continue
        number += 1
        if not problem and len(cells) != len(header):
            problem = f"has {len(cells)} cells, but the header has {len(header)}"
        yield Row(number, first, {} if problem else dict(zip(header, cells, strict=True)), typed=False, problem=problem)
    if header is None:
        raise TableError(f"{path}: is empty; the first line must name the columns")


class _Lines(Iterator[str]):
    """Lines of a CSV file, bounded and counted; a byte that is not UTF-8 becomes a surrogate, which its cell reports."""

    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.number = 0
        self.too_long = 0
        self.ended = False

    def __next__(self) -> str:
        line = self._text.readline(MAX_LINE + 1)
        if not line:
            self.ended = True
            raise StopIteration
        self.number += 1
        if len(line) > MAX_LINE:
            self.too_long = self.number
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(MAX_LINE)
            return "too long\n"
        return line

    def release(self) -> None:
        """Leave the file to who opened it."""
        self._text.detach()


_READERS = {".csv": _csv, ".jsonl": _jsonl}
