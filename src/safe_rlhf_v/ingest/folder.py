"""A folder of images and a table of questions, responses and labels, to shards.

Columns (``N`` counts responses from 0; empty means unknown)::

    question        required
    image           file name inside the image folder; empty for a text-only record
    response_N      text of a response; response_0 and response_1 make a preference pair
    safety_N        level -3..3          is_safe_N       true/false/yes/no/1/0
    helpfulness_N   a number             source_N        what wrote it
    more_helpful    N of the more helpful response       safer   N of the safer response
    category        names of --categories, separated by ";" (in JSONL also a list); "none" or [] for a prompt of no harm
                    category; empty: unknown
    image_severity  an integer
    key             unique name; default: table name and row number
    split           split of the row; default: by hash of the picture
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from safe_rlhf_v.ingest.table import TableError, read_image, read_rows
from safe_rlhf_v.records import Record, RecordError, Response
from safe_rlhf_v.shards import ShardWriter, split_of
from safe_rlhf_v.taxonomy import Taxonomy

COLUMN = re.compile(
    r"question|image|key|split|category|image_severity|more_helpful|safer|(response|safety|is_safe|helpfulness|source)_\d"
)
FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def import_folder(
    table: Path,
    images: Path,
    out: Path,
    *,
    name: str,
    licence: str,
    categories: Sequence[str] = (),
    fractions: dict[str, float] | None = None,
) -> int:
    """Write shards; returns the number of records. Nothing counts as written until the manifest is there.

    Args:
        table: CSV or JSONL file, columns as above.
        images: Folder of the images.
        out: Folder to create.
        name: Data set name.
        licence: Licence of the data.
        categories: Harm categories that may occur.
        fractions: Split shares for rows without ``split``; by hash of the picture, so that a picture stands in one split.

    Raises:
        TableError: Naming row and column of the first problem.
        ValueError: If a category is called "none".
    """
    if "none" in categories:
        raise ValueError(
            "--categories: 'none' is the word for a prompt of no harm category; name the category otherwise"
        )
    taxonomy = Taxonomy(name, tuple(categories))
    count = 0
    with ShardWriter(out, name=name, licence=licence, taxonomy=taxonomy, origin={"table": table.name}) as writer:
        for number, row in tqdm(read_rows(table), desc="importing", unit="record"):
            for column in row:
                if not COLUMN.fullmatch(column):
                    raise TableError(table, number, column, "is not a known column; see --help")
            try:
                record = to_record(row, table, number, images).validate(taxonomy)
            except RecordError as error:
                raise TableError(table, number, error.field, error.problem) from None
            writer.write(row.get("split") or split_of(record.group, fractions or FRACTIONS), record)
            count += 1
    return count


def to_record(row: dict[str, Any], table: Path, number: int, images: Path) -> Record:
    """One row as a record (not yet validated)."""

    def cell(column: str, kind: type) -> Any:
        value = row.get(column)
        if value is None:
            return None
        try:
            if kind is bool:
                return _boolean(value)
            if kind is int and float(value) != int(float(value)):
                raise ValueError
            return int(float(value)) if kind is int else kind(value)
        except (ValueError, TypeError, OverflowError):
            raise TableError(table, number, column, f"{value!r} is not {kind.__name__}") from None

    question, image = cell("question", str), cell("image", str)
    if not question:
        raise TableError(table, number, "question", "is missing")
    responses: list[Response] = []
    while (text := cell(f"response_{len(responses)}", str)) is not None:
        n = len(responses)
        response = Response(
            text,
            cell(f"safety_{n}", int),
            cell(f"is_safe_{n}", bool),
            cell(f"helpfulness_{n}", float),
            cell(f"source_{n}", str) or "",
        )
        responses.append(response)
    levels = [response.safety for response in responses]
    return Record(
        key=cell("key", str) or f"{re.sub('[^A-Za-z0-9_-]', '-', table.stem)}-{number:08d}",
        question=question,
        images=(read_image(images, image, table, number, "image"),) if image else (),
        responses=tuple(responses),
        category=_category(row.get("category")),
        image_severity=cell("image_severity", int),
        more_helpful=cell("more_helpful", int),
        safer=cell("safer", int),
        safety_tie=len(levels) == 2 and levels[0] is not None and levels[0] == levels[1],
        origin={"row": str(number)},
    )


def _category(value: Any) -> tuple[str, ...] | None:
    """Names, none or unknown; anything else fails the record's own check."""
    if value is None or isinstance(value, list):
        return None if value is None else tuple(value)
    text = str(value).strip()
    return () if text in ("none", "[]") else tuple(name.strip() for name in text.split(";"))


def _boolean(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError
    return word in _TRUE
