"""A record from the cells of one row, whichever table or data set it comes from."""

import re
from typing import Any

from safe_rlhf_v.ingest.rows import Row
from safe_rlhf_v.records import Image, Record, Response

MAX_RESPONSES = 10
OF_RECORD = ("question", "image", "key", "split", "category", "image_severity", "more_helpful", "safer")
OF_RESPONSE = ("response", "safety", "is_safe", "helpfulness", "source")


def record_of(row: Row, key: str, images: tuple[Image, ...], origin: dict[str, str], **more: Any) -> Record:
    """The record; missing and wrong values are noted in the row.

    Args:
        row: Cells named as in :mod:`safe_rlhf_v.ingest.folder`.
        key: Key of the record, unless the row states its own.
        images: Its pictures.
        origin: Where it comes from.
        more: Further fields of the record.
    """
    responses = _responses(row)
    if not row.has("question"):
        row.bad("question", "is missing")
    levels = [response.safety for response in responses]
    ratings = [response.helpfulness for response in responses]
    return Record(
        key=row.text("key") or key,
        question=row.text("question") or "",
        images=images,
        responses=responses,
        category=row.names("category"),
        image_severity=row.integer("image_severity"),
        more_helpful=row.integer("more_helpful"),
        safer=row.integer("safer"),
        safety_tie=_tie(levels),
        helpfulness_tie=_tie(ratings),
        origin=origin,
        **more,
    )


def _tie(values: list[Any]) -> bool:
    """Whether both responses of a pair have the same rating."""
    return len(values) == 2 and values[0] is not None and values[0] == values[1]


def _responses(row: Row) -> tuple[Response, ...]:
    """The responses; gaps between them and labels without a response are noted as problems."""
    numbers = [n for n in range(MAX_RESPONSES) if row.has(f"response_{n}")]
    for n in range(max(numbers, default=-1)):
        if n not in numbers:
            row.bad(f"response_{n}", f"is empty, but response_{max(numbers)} is given")
    for n in range(MAX_RESPONSES):
        for name in OF_RESPONSE:
            if n not in numbers and row.has(f"{name}_{n}"):
                row.bad(f"{name}_{n}", f"is given, but response_{n} is empty")
    return tuple(
        Response(
            row.text(f"response_{n}") or "",
            row.integer(f"safety_{n}"),
            row.boolean(f"is_safe_{n}"),
            row.decimal(f"helpfulness_{n}"),
            row.text(f"source_{n}") or "",
        )
        for n in range(max(numbers, default=-1) + 1)  # including gaps, so that other columns' numbers are right
    )


def note_problems(row: Row, problems: Any) -> None:
    """Note violations of the schema, (field, problem) each, except in columns that already have a problem."""
    unread = {column for column, _ in row.problems}
    for field, problem in problems:
        if (column := column_of(field)) not in unread:
            row.bad(column, problem)


def column_of(field: str) -> str:
    """The column that a field of a record comes from."""
    if match := re.fullmatch(r"responses\[(\d+)\]\.(\w+)", field):
        return f"{'response' if match[2] == 'text' else match[2]}_{match[1]}"
    if field.startswith("images"):
        return "image"
    return field if field in OF_RECORD else ""
