"""Import a folder of images and a table of questions, responses and labels into shards.

Columns (``N`` counts responses from 0; an empty cell, "" and null mean unknown)::

    question        required
    image           file name inside the image folder; empty for a text-only record; several in a list (CSV: separated by ";")
    system          system text
    history         earlier turns, oldest first, the user's first: [{"role": "user", "text": "...", "images": 1},
                    {"role": "assistant", "text": "..."}, ...]; "images" of the row's pictures stand in this turn (CSV: as JSON)
    response_N      text of a response; response_0 and response_1 make a preference pair
    safety_N        level -3..3          is_safe_N       true/false/yes/no/1/0 (JSONL: true or false)
    helpfulness_N   a number             source_N        its origin, such as a model's name
    more_helpful    N of the more helpful response       safer   N of the safer response
    safety_votes_N, is_safe_votes_N, helpfulness_votes_N, more_helpful_votes, safer_votes
                    what each annotator said: a list (CSV: separated by ";"); -1 for a tie of the last two
    category        names of --categories, separated by ";" (in JSONL also a list); "none" or [] for a prompt of no harm
                    category; empty: unknown
    prompt_safety   level -3..3 of the prompt itself     image_severity  a whole number
    key             unique name, letters, digits, _ and -; default: table name and row number
    split           split of the row, likewise; default: by hash of the picture

The table is .csv (commas, a header) or .jsonl (an object a line), in UTF-8. It is read strictly: every row that cannot be used
is listed with its columns, and nothing is written unless --on_bad_row skip leaves them out.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from safe_rlhf_v.ingest.bad_rows import BadRows, Imported, OnBadRow, default_list
from safe_rlhf_v.ingest.picture_groups import PictureGroups
from safe_rlhf_v.ingest.pictures import check_folder, read_picture
from safe_rlhf_v.ingest.row_records import (
    MAX_RESPONSES,
    OF_RECORD,
    OF_RESPONSE,
    column_of,
    context_of,
    note_problems,
    record_of,
)
from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.ingest.table import read_table
from safe_rlhf_v.records import Record, RecordError
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardWriter, split_of
from safe_rlhf_v.shards.target import SPLIT_NAME

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
_COLUMNS = (*OF_RECORD, *(f"{name}_{n}" for n in range(MAX_RESPONSES) for name in OF_RESPONSE))


def import_folder(
    table: Path,
    images: Path,
    out: Path,
    *,
    name: str,
    licence: str,
    categories: Sequence[str] = (),
    fractions: dict[str, float] | None = None,
    on_bad_row: OnBadRow = "error",
    bad_rows: Path | None = None,
) -> Imported:
    """Write shards; they are valid only after the manifest is written.

    Args:
        table: CSV or JSONL file with the columns above.
        images: Folder of the images.
        out: Folder to create.
        name: Data set name.
        licence: Licence of the data.
        categories: Harm categories that may occur.
        fractions: Split shares for rows without ``split``, applied by hash of the picture, so that a picture is in one
            split; rows that share one of several pictures go together.
        on_bad_row: ``error``: nothing is written if a row cannot be used; ``skip``: such rows are left out.
        bad_rows: File that lists such rows; without it a file beside the output that ends in .bad_rows.jsonl.

    Raises:
        TableError: If the table cannot be read, or (``BadRowsError``) rows cannot be used.
        FileError: If the table is missing or not a regular file.
        ShardError: If ``out`` cannot be written.
        ValueError: If there is no folder of images, or a category's name is not allowed.
    """
    for category in categories:
        if not category.strip() or category in ("none", "[]") or ";" in category or categories.count(category) > 1:
            raise ValueError(
                f"--categories: {category!r} is empty, occurs twice, holds ';', or means a prompt without category"
            )
    check_folder(images)
    taxonomy = Taxonomy(name, tuple(categories))
    groups = _groups(table, images)
    seen = _SeenRows()
    rows = read_table(table, _COLUMNS, required=("question",))
    count = 0
    with (
        ShardWriter(out, name=name, licence=licence, taxonomy=taxonomy, origin={"table": table.name}) as writer,
        BadRows(table, bad_rows or default_list(out), on_bad_row) as bad,
    ):
        for row in tqdm(rows, desc="importing", unit="record", disable=None):
            if row.readable:
                record, split = _read(row, table, images, fractions or FRACTIONS, groups)
                seen.check(row, record, split)
                note_problems(row, record.problems(taxonomy))
                if not row.problems:
                    _write(writer, split, record, row)
            if row.problems:
                bad.add(row)
            else:
                seen.add(row, record, split)
                count += 1
        bad.finish(count)
    return Imported(count, bad.count, bad.file, out)


def _groups(table: Path, images: Path) -> PictureGroups:
    """The pictures that rows with several hold together: known before the first split is chosen."""
    groups = PictureGroups()
    for row in read_table(table, _COLUMNS, required=("question",)):
        if row.readable and len(names := _names_of_pictures(row)) > 1:
            read = [read_picture(images, name, row, "image") for name in names]
            groups.join([picture.id for picture in read if picture is not None])
    return groups


def _read(
    row: Row, table: Path, images: Path, fractions: dict[str, float], groups: PictureGroups
) -> tuple[Record, str]:
    """The record of a row and its split; problems are noted in the row, and such values are unknown in the record."""
    record = to_record(row, table, images)
    split = row.text("split")
    if split is not None and not SPLIT_NAME.fullmatch(split):
        row.bad("split", f"{describe(split)} must be 1-100 letters, digits, '_' or '-'")
    return record, split or split_of(groups.name_of(record), fractions)


def _write(writer: ShardWriter, split: str, record: Record, row: Row) -> None:
    """Write a record, or note why readers would refuse it."""
    try:
        writer.write(split, record)
    except RecordError as error:
        row.bad(column_of(error.field), error.problem)


def to_record(row: Row, table: Path, images: Path) -> Record:
    """One row as a record; missing and wrong values are noted in the row."""
    names = _names_of_pictures(row)
    read = [read_picture(images, name, row, "image") for name in names]
    pictures = tuple(picture for picture in read if picture is not None)
    context = context_of(row)
    if any(column == "image" for column, _ in row.problems):
        context = context.with_images(len(pictures))  # the picture's problem is enough
    key = f"{re.sub('[^A-Za-z0-9_-]', '-', table.stem)[:80]}-{row.number:08d}"
    return record_of(row, key, pictures, {"row": str(row.number)}, context)


def _names_of_pictures(row: Row) -> tuple[str, ...]:
    """The pictures that a row names: one, or several in a list (CSV: separated by ";")."""
    cell = row.cells.get("image")
    if isinstance(cell, list) or (not row.typed and ";" in str(cell)):
        return row.each("image", Row.text)
    name = row.text("image")
    return () if name is None else (name,)


class _SeenRows:
    """Keys and splits of the rows so far: a key must be unique, and a picture must be in one split."""

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}
        self._members: dict[str, tuple[str, int]] = {}

    def check(self, row: Row, record: Record, split: str) -> None:
        """Note conflicts of key or split with earlier rows."""
        if record.key in self._keys:
            row.bad("key", f"{record.key!r:.140} is the key of row {self._keys[record.key]}, too")
        if {"question", "image", "system", "history"} & {column for column, _ in row.problems}:
            return  # its group is unknown
        for member in record.group_members:
            other_split, other_row = self._members.get(member, (split, 0))
            if other_split != split:
                what = "picture" if record.images else "question"
                row.bad("split", f"is {split!r:.140}, but row {other_row} puts the same {what} into {other_split!r}")
                return

    def add(self, row: Row, record: Record, split: str) -> None:
        """Remember a row that was written."""
        self._keys[record.key] = row.number
        for member in record.group_members:
            self._members.setdefault(member, (split, row.number))
