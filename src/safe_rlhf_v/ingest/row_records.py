"""A record from the cells of one row, whichever table or data set it comes from."""

import re
from typing import Any

from safe_rlhf_v.ingest.rows import Row, text_problem
from safe_rlhf_v.records import Context, Image, PairVotes, Record, RecordError, Response, Votes
from safe_rlhf_v.records.conversation import parse_turns
from safe_rlhf_v.records.parsing import Fields, parse_json

MAX_RESPONSES = 10
OF_RECORD = (
    "question",
    "image",
    "system",
    "history",
    "key",
    "split",
    "category",
    "prompt_safety",
    "image_severity",
    "more_helpful",
    "safer",
    "more_helpful_votes",
    "safer_votes",
)
_VOTES = ("safety_votes", "is_safe_votes", "helpfulness_votes")
OF_RESPONSE = ("response", "safety", "is_safe", "helpfulness", "source", *_VOTES)


def record_of(
    row: Row, key: str, images: tuple[Image, ...], origin: dict[str, str], context: Context | None = None
) -> Record:
    """The record; missing and wrong values are noted in the row.

    Args:
        row: Cells named as in :mod:`safe_rlhf_v.ingest.folder`.
        key: Key of the record, unless the row states its own.
        images: Its pictures.
        origin: Where it comes from.
        context: What stands before the question; ``None`` reads it from the cells.
    """
    responses = _responses(row)
    if not row.has("question"):
        row.bad("question", "is missing")
    levels = [response.safety for response in responses]
    ratings = [response.helpfulness for response in responses]
    if context is None:
        context = context_of(row)
    pair = PairVotes(row.each("more_helpful_votes", Row.integer), row.each("safer_votes", Row.integer))
    return Record(
        key=row.text("key") or key,
        question=row.text("question") or "",
        images=images,
        responses=responses,
        system=context.system,
        history=context.history,
        category=row.names("category"),
        prompt_safety=row.integer("prompt_safety"),
        image_severity=row.integer("image_severity"),
        more_helpful=row.integer("more_helpful"),
        safer=row.integer("safer"),
        safety_tie=_tie(levels),
        helpfulness_tie=_tie(ratings),
        votes=pair if pair != PairVotes() else None,
        origin=origin,
    )


def context_of(row: Row) -> Context:
    """System text and earlier turns: a list of objects, which CSV holds as JSON; problems are noted in the row."""
    system = row.text("system") or ""
    value = row.cells.get("history")
    if value in (None, ""):
        return Context(system)
    try:
        if row.typed:
            fields = Fields({"history": value}, "")
        else:
            fields = Fields(parse_json(f'{{"history": {value}}}'.encode(errors="surrogateescape"), ""), "")
        history = parse_turns(fields, "history")
        fields.done()
    except RecordError as error:
        row.bad(
            "history",
            error.problem if error.field == "json" else f"{error.field.removeprefix('history')} {error.problem}",
        )
        return Context(system)
    for i, turn in enumerate(history):
        if turn.text and (problem := text_problem(turn.text, row.typed)):
            row.bad("history", f"[{i}].text {problem}")
    return Context(system, history)


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
            _votes(row, n),
        )
        for n in range(max(numbers, default=-1) + 1)  # including gaps, so that other columns' numbers are right
    )


def _votes(row: Row, n: int) -> Votes | None:
    """What each annotator said of a response, ``None`` without any."""
    votes = Votes(
        row.each(f"safety_votes_{n}", Row.integer),
        row.each(f"is_safe_votes_{n}", Row.boolean),
        row.each(f"helpfulness_votes_{n}", Row.decimal),
    )
    return votes if votes != Votes() else None


def note_problems(row: Row, problems: Any) -> None:
    """Note violations of the schema, (field, problem) each, except in columns that already have a problem."""
    unread = {column for column, _ in row.problems}
    for field, problem in problems:
        if (column := column_of(field)) not in unread:
            row.bad(column, problem)


def column_of(field: str) -> str:
    """The column that a field of a record comes from."""
    if match := re.fullmatch(r"responses\[(\d+)\]\.votes\.(\w+).*", field):
        return f"{match[2]}_votes_{match[1]}"
    if match := re.fullmatch(r"votes\.(\w+).*", field):
        return f"{match[1]}_votes"
    if match := re.fullmatch(r"responses\[(\d+)\]\.(\w+)", field):
        return f"{'response' if match[2] == 'text' else match[2]}_{match[1]}"
    if field.startswith("images"):
        return "image"
    if field.startswith("history"):
        return "history"
    return field if field in OF_RECORD else ""
