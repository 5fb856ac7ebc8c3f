"""The sheet on which people rate responses, as it goes out and as it comes back."""

import csv
import io
import math
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from safe_rlhf_v.construct.reply_parsing import RANGES
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import FileError, digest, write_whole

COLUMNS = ("id", "key", "picture", "question", "response", "helpfulness", "safety")
SHOWN = ("question", "response")
"""What people go by, which may not be changed after it was written; the key is part of the id."""

Asked = Mapping[str, tuple[Record, str]]
"""Prompt and response by id."""


class Rating(NamedTuple):
    """What one person says of one response; NaN where nothing.

    Attributes:
        helpfulness: 0..3.
        level: Safety level -3..3.
        saw: Hashes of what the person saw, by name; of a sheet only those columns that it still has.
    """

    helpfulness: float
    level: float
    saw: Mapping[str, str] = MappingProxyType({})

    @property
    def says_something(self) -> bool:
        """Whether there is a value."""
        return not (math.isnan(self.helpfulness) and math.isnan(self.level))


def row_id(key: str, text: str) -> str:
    """What a row of the sheet is found by: it begins with a letter, for a spreadsheet would take 12e45 for a number.

    Args:
        key: Key of the record.
        text: The response.
    """
    return f"r{digest([key, text])}"


def hashes_of(data: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
    """Hash of each of these parts, "" of what nobody wrote.

    Of a text without what spreadsheets change by themselves: spaces, apostrophes at its beginning, and how accents are composed.

    Args:
        data: What a sheet or a task shows.
        parts: Names of the parts.
    """
    hashes = {}
    for part in parts:
        value = data.get(part)
        if isinstance(value, str):
            value = " ".join(unicodedata.normalize("NFC", value).split()).lstrip("' ")
        try:
            hashes[part] = digest(value or "")
        except (ValueError, RecursionError):  # NaN, or lists in lists without end
            hashes[part] = ""
    return hashes


def write_sheet(file: Path, asked: Asked) -> None:
    """Write the sheet, and the pictures beside it, in a folder of the same name.

    Args:
        file: The sheet; one that is there stays as it is, for it may hold ratings.
        asked: The responses, in the order of the sheet.

    Raises:
        FileError: If a sheet of other responses is there.
    """
    if file.exists():
        if (ids := _ids(file)) != asked.keys():
            which = "holds others" if ids - asked.keys() else "lacks some" if ids else "cannot be read"
            raise FileError(
                f"{file}: is not the sheet of these {len(asked)} responses, it {which}; move it away, and a whole one is written "
                "(rows that were filled in can be copied: the ids stay the same)"
            )
        return
    pictures = file.with_suffix("")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for name, (record, response) in asked.items():
        for picture, image in zip(_picture_names(record), record.images, strict=True):
            pictures.mkdir(parents=True, exist_ok=True)
            if not (pictures / picture).exists():
                write_whole(pictures / picture, image.data)
        writer.writerow({"id": name, **sheet_line(record, response)})
    write_whole(file, text.getvalue().encode())


def _ids(file: Path) -> set[str]:
    """Ids in a sheet; none of one that cannot be read."""
    try:
        return {str(row.cells.get("id") or "").strip() for row in read_table(file, required=("id",))} - {""}
    except (TableError, FileError):
        return set()


def read_sheet(file: Path) -> dict[str, list[Rating]]:
    """Ratings by id, in a sheet that came back.

    Args:
        file: The sheet, CSV or JSON lines.

    Raises:
        TableError: If it cannot be read, or a cell is wrong: the row and its id are named.
    """
    ratings: dict[str, list[Rating]] = {}
    for row in read_table(file, required=("id", "helpfulness", "safety")):
        if not row.problems and not any(str(cell or "").strip() for cell in row.cells.values()):
            continue  # spreadsheets leave empty rows behind
        name = (row.text("id") or "").strip()
        values: dict[str, Any] = {"helpfulness": row.decimal("helpfulness"), "safety": row.integer("safety")}
        for axis, (low, high) in RANGES.items():
            if values[axis] is not None and not low <= values[axis] <= high:
                row.bad(axis, f"{values[axis]:g} is outside {low}..{high}")
        cells = {column: row.text(column) for column in SHOWN if column in row.cells}
        if not row.problems and not name:
            row.bad("id", "is empty; keep the ids of the sheet")
        if not row.problems and name in ratings:
            row.bad("id", "occurs twice; keep one row")
        if row.problems:
            column, problem = row.problems[0]
            which = f" (id {name:.40})" if name else ""
            raise TableError(f"{file}, row {row.number}{which}, {column or 'row'}: {problem}")
        helpful, level = (math.nan if value is None else float(value) for value in values.values())
        ratings[name] = [Rating(helpful, level, hashes_of(cells, cells))]
    return ratings


def sheet_line(record: Record, response: str) -> dict[str, str]:
    """What the sheet shows of a response.

    Args:
        record: The prompt.
        response: The response.
    """
    turns = "\n".join(f"[{turn.role}] {turn.text}" for turn in record.turns)
    cells = {
        "key": record.key,
        "picture": " ".join(_picture_names(record)),
        "question": turns if record.history else record.question,
        "response": response,
    }
    return {column: _plain(cell) for column, cell in cells.items()}


def _picture_names(record: Record) -> list[str]:
    return [f"{record.key}-{number}.{image.format.lower()}" for number, image in enumerate(record.images)]


def _plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
