"""From a row of a data set and a mapping to records: in two steps, so that pictures are decoded between them."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from safe_rlhf_v.ingest.conversations import Conversation, read_conversation
from safe_rlhf_v.ingest.fields import Field, FieldError, cell_of, empty
from safe_rlhf_v.ingest.identify import IdentifiedPicture, Identifier
from safe_rlhf_v.ingest.mapping import Schema
from safe_rlhf_v.ingest.row_records import OF_RESPONSE, note_problems, record_of
from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.ingest.sources import Part
from safe_rlhf_v.records import Context, Record
from safe_rlhf_v.records.taxonomy import Taxonomy

LISTS = ("category", "image", "conversation")
"""Fields whose cells may be lists."""


class MappedRow(Row):
    """Cells by field of the record; problems name the column of the source."""

    def __init__(self, row: Row, fields: Mapping[str, Field], cells: Mapping[str, Any]) -> None:
        """Read every field.

        Args:
            row: Row of the source.
            fields: What fills the fields.
            cells: Cells by column.
        """
        super().__init__(row.number, row.line, {}, typed=False)
        self.problems = list(row.problems)
        self.readable = row.readable
        self._columns = {name: field.sources[0] if field.sources else name for name, field in fields.items()}
        self.fields = fields
        for name, field in fields.items() if row.readable else ():
            try:
                value = field.raw(cells) if name in ("image", "conversation") else field.cell(cells)
            except FieldError as error:
                self.bad(name, str(error))
                continue
            if not isinstance(value, (str, type(None))) and name not in LISTS:
                self.bad(name, f"must be text, not {describe(value)}")
                continue
            self.cells[name] = value

    def bad(self, column: str, problem: str) -> None:
        """Note a problem, with the column of the source."""
        super().bad(self._columns.get(column, column), problem)

    def join(self, other: "MappedRow") -> None:
        """Add the response of another row as the second; the safer one is known if one of them alone is safe."""
        for name in OF_RESPONSE:
            self.cells[f"{name}_1"] = other.cells.get(f"{name}_0")
            self._columns[f"{name}_1"] = other._columns.get(f"{name}_0", f"{name}_0")
        self.problems += [one for one in other.problems if one not in self.problems]
        safe = [self.boolean(f"is_safe_{n}") for n in range(2)]
        if "safer" not in self.fields and None not in safe and safe[0] != safe[1]:
            self.cells["safer"] = str(safe.index(True))


class Draft(NamedTuple):
    """A record before its pictures are known.

    Attributes:
        row: Its fields.
        key: Its key, unless the row states one.
        part: File of the row.
        pictures: Its pictures, when they are read.
        dropped: Why it is left out; empty if it is not.
    """

    row: MappedRow
    key: str
    part: str
    pictures: "Future[list[IdentifiedPicture]]"
    dropped: str = ""

    def record(self, taxonomy: Taxonomy | None) -> tuple[Record, list[str]]:
        """The record and the perceptual hashes of its pictures; problems are noted in the row."""
        if not self.row.readable:
            return Record(self.key, ""), []
        pictures = self.pictures.result()
        for picture in pictures:
            if picture.problem:
                self.row.bad("image", picture.problem)
        images = tuple(picture.image for picture in pictures if picture.image is not None)
        field = self.row.fields.get("image")
        if field is not None and not field.optional and not pictures:
            self.row.bad("image", "has no picture")
        talk = self._conversation(len(pictures))
        context = Context(self.row.text("system") or talk.system, talk.history)
        origin = {"part": self.part, "row": str(self.row.number)}
        record = record_of(self.row, self.key, images, origin, context)
        note_problems(self.row, record.problems(taxonomy))
        return record, [picture.likeness for picture in pictures]

    def _conversation(self, images: int) -> Conversation:
        """The turns of a column of turns, whose question and response become cells."""
        nothing = Conversation("", (), "", 0, "")
        field = self.row.fields.get("conversation")
        if field is None:
            return nothing
        try:
            talk = read_conversation(field, self.row.cells.get("conversation"), images)
        except FieldError as error:
            self.row.bad("conversation", str(error))
            self.row.cells["question"] = "unknown"  # one problem is enough
            return nothing
        self.row.cells |= {"question": talk.question, "response_0": talk.response}
        return talk


def drafts(schema: Schema, part: Part, row: Row, identifier: Identifier) -> list[Draft]:
    """The records of a row.

    Args:
        schema: Form of the row.
        part: File of the row.
        row: The row.
        identifier: Reads the pictures.
    """
    reason = _skipped(schema, row)
    every = [row.cells]
    if schema.each and row.readable:
        items = row.cells.get(schema.each)
        if not isinstance(items, list) or not items:
            row.bad(schema.each, f"must be a list with entries, not {describe(items)}")
            row.readable = False
        else:
            every = [{**row.cells, schema.each: item} for item in items]
    mapped = [(fields, cells) for cells in every for fields in schema.records]
    if not row.readable or reason:
        mapped = mapped[:1]
    result: list[Draft] = []
    for number, (fields, cells) in enumerate(mapped):
        key = part.key(row.number) + (f"-{number}" if len(mapped) > 1 else "")
        one = MappedRow(row, fields, cells)
        result.append(draft(one, key, part, identifier, reason))
    return result


def joined(schema: Schema, first: Row, second: Row) -> tuple[MappedRow, str]:
    """The fields of two rows with one response each to the same prompt, and why they are left out; "" if they are not.

    Args:
        schema: Form of the rows.
        first: The earlier row, without its picture.
        second: The later row.
    """
    fields = schema.records[0]
    pair = MappedRow(first, fields, first.cells)
    other = MappedRow(second, fields, second.cells)
    twice = "the same response twice" if pair.cells.get("response_0") == other.cells.get("response_0") else ""
    pair.join(other)
    pair.cells["image"] = other.cells.get("image")
    pair.file = second.file
    return pair, _skipped(schema, first) or _skipped(schema, second) or twice


def _skipped(schema: Schema, row: Row) -> str:
    """Why a row is left out by the mapping's ``skip``; "" if it is not."""
    return next((why for column, why in schema.skip.items() if not empty(cell_of(row.cells, column))), "")


def draft(row: MappedRow, key: str, part: Part, identifier: Identifier, reason: str = "") -> Draft:
    """A record whose pictures begin to be read."""
    field = row.fields.get("image")
    cell = None if field is None or reason else row.cells.get("image")
    pictures = identifier.submit(cell, field.form if field else "", part.images)
    return Draft(row, key, part.slug, pictures, reason)
