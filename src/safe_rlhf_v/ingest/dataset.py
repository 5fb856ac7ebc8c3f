"""Import a data set by a mapping: a folder, a file, or a data set on the Hugging Face Hub, into shards.

Rows are streamed in small batches; pictures are decoded in threads while earlier rows are written. Evaluation splits come first,
so that pictures which stand in train, too, are known and left out there. After every batch the progress is noted: an import that
was killed goes on with the same command, and gives the same bytes.
"""

import contextlib
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from safe_rlhf_v.ingest.bad_rows import BadRows, Imported, OnBadRow, default_list
from safe_rlhf_v.ingest.card import notes_of, write_card
from safe_rlhf_v.ingest.fields import FieldError
from safe_rlhf_v.ingest.hub import NAME, hub_parts
from safe_rlhf_v.ingest.identify import Identifier
from safe_rlhf_v.ingest.ledger import TRAIN, Dropped, Entry, Ledger
from safe_rlhf_v.ingest.mapped import Draft, draft, drafts, joined
from safe_rlhf_v.ingest.mapping import DataMapping, Schema
from safe_rlhf_v.ingest.pairs import Partners
from safe_rlhf_v.ingest.pictures import check_folder
from safe_rlhf_v.ingest.progress import Progress
from safe_rlhf_v.ingest.row_records import column_of
from safe_rlhf_v.ingest.rows import Row
from safe_rlhf_v.ingest.sources import BATCH, Part, local_parts
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.records import RecordError
from safe_rlhf_v.records.record import SCHEMA_VERSION
from safe_rlhf_v.shards import ShardError, ShardWriter
from safe_rlhf_v.shards.manifest import TESTING_ONLY

HUB = "hub:"
"""Before a name on the Hub, or a local folder that is read as the Hub's library reads it."""
UNKNOWN = "unknown"  # the split of a row that states none of the mapping's; the row is bad
AHEAD = 2
"""Batches whose pictures are decoded while earlier ones are written."""


class Step(NamedTuple):
    """A part that is read.

    Attributes:
        part: The part.
        schema: Form of its rows.
        split: Split of its rows; "" if each row states its own.
        training: Whether rows for training are read; else those of fixed splits.
    """

    part: Part
    schema: Schema
    split: str
    training: bool


class Chunk(NamedTuple):
    """Rows that are settled together.

    Attributes:
        step: Number of the step.
        position: Number of rows of the part up to the end of the chunk.
        drafts: Their records, and the split of each according to the source.
        dropped: Rows that are left out.
        rows: Number of rows.
    """

    step: int
    position: int
    drafts: list[tuple[Draft, str]]
    dropped: list[Dropped]
    rows: int


def import_dataset(
    source: str,
    out: Path,
    mapping: DataMapping,
    *,
    images: Path | None = None,
    revision: str | None = None,
    on_bad_row: OnBadRow = "error",
    bad_rows: Path | None = None,
    samples_per_shard: int = 512,
) -> Imported:
    """Write shards, a data card and a contact sheet; they are valid only after the manifest is written.

    Args:
        source: Folder, file, or name of a data set on the Hub.
        out: Folder to create, or one with an import that was interrupted.
        mapping: What becomes of the columns, with name, licence, splits and shares to cut.
        images: Folder of the pictures that rows name; ``None``: that of the mapping.
        revision: Commit, tag or branch on the Hub.
        on_bad_row: ``error``: nothing is written if a row cannot be used; ``skip``: such rows are left out.
        bad_rows: File that lists them; ``None``: a file beside ``out`` that ends in ``.bad_rows.jsonl``.
        samples_per_shard: Records per tar file.

    Raises:
        TableError: If the source cannot be read or its columns do not fit, or (``BadRowsError``) rows cannot be used.
        ShardError: If ``out`` cannot be written.
        SourceInterrupted: If the connection to the Hub broke off; the same command goes on.
        ValueError: If name or licence are unknown.
    """
    for name in ("name", "licence"):
        if not getattr(mapping, name).strip():
            raise ValueError(f"--{name}: the mapping states none; name it")
    steps, origin = plan(source, mapping, images, revision)
    about: dict[str, Any] = {
        "name": mapping.name,
        "licence": mapping.licence,
        "taxonomy": mapping.taxonomy,
        "origin": origin,
    }
    writer = ShardWriter(out, **about, samples_per_shard=samples_per_shard, resumable=True)
    listed = bad_rows or default_list(out)
    with writer, BadRows(Path(source), listed, on_bad_row) as bad, Identifier() as identifier:
        run = _Import(writer, mapping, steps, bad, identifier)
        try:
            run.go(_input_digest(steps, mapping, about, samples_per_shard))
            bad.finish(run.good + run.ledger.dropped.total())
            if not run.good:
                raise TableError(f"{source}: no row is left; {'; '.join(notes_of(run.ledger, mapping))}")
        except TableError:
            writer.discard()
            raise
        writer.extras = lambda manifest: write_card(manifest, run.ledger, mapping, bad.count, writer.root)
    return Imported(run.good, bad.count, bad.file, out, tuple(notes_of(run.ledger, mapping)))


def plan(
    source: str, mapping: DataMapping, images: Path | None, revision: str | None
) -> tuple[list[Step], dict[str, str]]:
    """What is read in which order, and the origin for the manifest.

    Raises:
        TableError: If columns or splits do not fit the mapping.
        ValueError: If there is no folder of images.
    """
    if images is not None:
        check_folder(images)
    origin = {"dataset": mapping.source or mapping.name, "mapping": mapping.sha256}
    if not source.startswith(HUB) and Path(source).exists():
        parts = local_parts(Path(source), mapping, images)
        origin["source"] = Path(source).resolve().name
    else:
        name = source.removeprefix(HUB)
        if not source.startswith(HUB) and not NAME.fullmatch(name):
            raise TableError(f"{source}: no such file or folder, and no name on the Hub (owner/name)")
        parts, commit = hub_parts(name, revision, images)
        origin["source"] = name if commit else Path(name).name
        origin |= {"revision": commit} if commit else {}
    if mapping.testing_only:
        origin["use"] = TESTING_ONLY
    steps: list[Step] = []
    for part, schema in itertools.chain.from_iterable(schemas_of(part, mapping) for part in parts):
        split = "" if schema.by_row else mapping.split_of(part.split)
        if not schema.by_row and not split:
            raise TableError(
                f"{part.name}: its split is {part.split!r:.80}, and the mapping {mapping.name!r} knows "
                f"{', '.join(mapping.splits)}; rename the file, or add it to splits in a copy of the mapping"
            )
        kinds = (False, True) if schema.by_row else (split == TRAIN,)
        steps += [Step(part, schema, split, training) for training in kinds]
    order = ("test", "calibration", "validation")
    rank = {name: i for i, name in enumerate(order)}
    return sorted(
        steps, key=lambda step: (step.training, rank.get(step.split, len(order)), step.split, step.part.slug)
    ), origin


def schemas_of(part: Part, mapping: DataMapping) -> list[tuple[Part, Schema]]:
    """The form of a part's rows; of a JSON object with several entries, one for each of these.

    Raises:
        TableError: If none fits.
    """
    entries = dict.fromkeys(schema.rows for schema in mapping.schemas)
    if len(entries) == 1:
        return [(part, mapping.detect(part.present(*entries), part.name))]
    fitting = []
    for entry in entries:
        named = part._replace(name=f"{part.name}:{entry}")
        with contextlib.suppress(TableError):  # the file has no such entry
            fitting.append(
                (named, replace(mapping, schemas=_with(mapping, entry)).detect(part.present(entry), named.name))
            )
    if not fitting:
        raise TableError(
            f"{part.name}: has none of the entries {', '.join(entries)} with the columns of the mapping {mapping.name!r}"
        )
    return fitting


def _with(mapping: DataMapping, entry: str) -> tuple[Schema, ...]:
    return tuple(schema for schema in mapping.schemas if schema.rows == entry)


def _input_digest(steps: list[Step], mapping: DataMapping, about: Mapping[str, Any], samples_per_shard: int) -> str:
    """What an import depends on: another input begins anew."""
    parts = [(step.part.identity, step.split, step.training, str(step.part.images)) for step in steps]
    inputs = [SCHEMA_VERSION, samples_per_shard, mapping.text, dict(mapping.cut), repr(about), parts]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


class _Import:
    """One run of an import.

    Attributes:
        good: Number of records written.
        ledger: What is known of them.
    """

    def __init__(
        self, writer: ShardWriter, mapping: DataMapping, steps: list[Step], bad: BadRows, identifier: Identifier
    ) -> None:
        self.writer = writer
        self.mapping = mapping
        self.steps = steps
        self.bad = bad
        self.identifier = identifier
        self.good = 0
        self.ledger = Ledger(mapping.cut)

    def go(self, digest: str) -> None:
        """Read what is left to be read."""
        progress = self._restored(digest)
        rows = [step.part.rows for step in self.steps]
        total = None if None in rows else sum(filter(None, rows))
        done = sum(filter(None, rows[: self.at[0]])) + self.at[1]
        with progress, tqdm(total=total, initial=done, desc="importing", unit="row", disable=None) as bar:
            waiting: deque[Chunk] = deque()
            for chunk in self._chunks():
                waiting.append(chunk)
                if len(waiting) > AHEAD:
                    self._settle(waiting.popleft(), progress, bar)
            while waiting:
                self._settle(waiting.popleft(), progress, bar)

    def _restored(self, digest: str) -> Progress:
        """Take over what an interrupted run has done, if its input was the same."""
        self.at = (0, 0)
        target = self.writer.target
        progress = Progress(target.progress, target.token, digest)
        if progress.is_ours:
            try:
                for line in progress.lines():
                    self._remember(line)
                self.writer.go_on()
                return progress
            except (ShardError, ValueError, KeyError, TypeError) as error:
                raise ShardError(
                    f"{self.writer.root}: the interrupted import in it cannot go on ({error}); delete the folder, or name another"
                ) from None
        if target.progress.exists():
            tqdm.write(f"{self.writer.root}: begins anew, because the interrupted import in it was of another input")
        target.restart()
        return Progress(target.progress, target.token, digest)

    def _remember(self, line: dict[str, Any]) -> None:
        step, position = line["at"]
        self.at = (step, position)
        for body in line["entries"]:
            entry = Entry.from_json(body)
            self.writer.remember(entry.split, entry.record, entry.place)
            self._count(entry, step)
            for image, likeness in zip(entry.record.images, entry.likenesses, strict=True):
                self.identifier.remember(image, likeness)
        for file, number, row_line, problems in line["bad"]:
            row = Row(number, row_line, {})
            row.file = file
            row.problems = [(column, problem) for column, problem in problems]
            self.bad.add(row)
        for body in line["dropped"]:
            self.ledger.drop(Dropped(*body))
        self.writer.remember_mark(line["mark"])

    def _count(self, entry: Entry, step: int) -> None:
        self.good += 1
        self.ledger.add(entry, fixed=not self.steps[step].training)

    def _chunks(self) -> Iterator[Chunk]:
        for number, step in enumerate(self.steps):
            if number < self.at[0]:
                continue
            position = self.at[1] if number == self.at[0] else 0
            rows = self._rows(step, position)
            while batch := list(itertools.islice(rows, BATCH)):
                chunk = Chunk(number, batch[-1][0].number, [], [], len(batch))
                for row, partner, alone in batch:
                    self._draft(step, row, partner, alone, chunk)
                yield chunk

    def _rows(self, step: Step, position: int) -> Iterator[tuple[Row, Row | None, bool]]:
        """Rows, their earlier partners, and whether they should have one and have none."""
        part = step.part
        columns = sorted(step.schema.columns())
        if step.schema.pair_by:
            partners = Partners(part, step.schema)
            yield from partners.pairs(part.read(step.schema, partners.start(position), columns), position)
            return
        for batch in part.read(step.schema, position, columns):
            for row in batch:
                yield row, None, False

    def _draft(self, step: Step, row: Row, partner: Row | None, alone: bool, chunk: Chunk) -> None:
        """Begin the records of a row."""
        row.file = step.part.name
        split = step.split or self._own_split(step, row)
        if not split:
            return
        if partner is not None:
            self._draft_pair(step, row, partner, split, chunk)
            return
        if alone and not step.schema.keep_unpaired:
            chunk.dropped.append(Dropped("a response without a second one to its prompt", step.part.slug, row.number))
            return
        for one in drafts(step.schema, step.part, row, self.identifier):
            one.row.file = row.file
            if one.dropped:
                chunk.dropped.append(Dropped(one.dropped, step.part.slug, row.number))
            else:
                chunk.drafts.append((one, split))

    def _draft_pair(self, step: Step, row: Row, partner: Row, split: str, chunk: Chunk) -> None:
        splits = {split, step.split or self._stated_split(step, partner)}
        pair, reason = joined(step.schema, partner, row)
        if not reason and len(splits - {UNKNOWN}) > 1:  # half of it is for testing, and must not be trained on
            reason = "two responses to one prompt in different splits"
        if reason:
            chunk.dropped.append(Dropped(reason, step.part.slug, row.number))
            return
        chunk.drafts.append((draft(pair, step.part.key(pair.number), step.part, self.identifier), split))

    def _own_split(self, step: Step, row: Row) -> str:
        """The split that a row states; "" if the row belongs to another step."""
        split = self._stated_split(step, row)
        return split if (split == TRAIN) == step.training else ""

    def _stated_split(self, step: Step, row: Row) -> str:
        """The split that a row states; :data:`UNKNOWN`, with a problem noted, if the mapping does not know it."""
        try:
            stated = step.schema.records[0]["split"].cell(row.cells) if row.readable else None
        except FieldError as error:
            row.bad("split", str(error))
            stated = None
        split = self.mapping.split_of(str(stated)) if stated else self.mapping.split_of("*")
        if not split and row.readable:
            row.bad("split", f"{stated!r:.80} is none of {', '.join(self.mapping.splits)}")
        return split if row.readable and not row.problems else UNKNOWN

    def _settle(self, chunk: Chunk, progress: Progress, bar: Any) -> None:
        """Write the records of a chunk, and note the progress."""
        entries: list[Entry] = []
        bad: list[Row] = []
        for dropped in chunk.dropped:
            self.ledger.drop(dropped)
        for one, split in chunk.drafts:
            record, likenesses = one.record(self.mapping.taxonomy)
            if not one.row.problems and record.key in self.writer:
                one.row.bad("key", f"{record.key!r:.140} is the key of an earlier row, too")
            if not one.row.problems:
                target, reason = self.ledger.place(record, split)
                if reason:
                    dropped = Dropped(reason, one.part, one.row.number)
                    self.ledger.drop(dropped)
                    chunk.dropped.append(dropped)
                    continue
                try:
                    entry = Entry.of(target, record, self.writer.write(target, record), likenesses)
                except RecordError as error:
                    one.row.bad(column_of(error.field), error.problem)
                else:
                    self._count(entry, chunk.step)
                    entries.append(entry)
                    continue
            self.bad.add(one.row)
            bad.append(one.row)
        progress.add({
            "at": (chunk.step, chunk.position),
            "entries": [entry.to_json() for entry in entries],
            "bad": [(row.file, row.number, row.line, row.problems) for row in bad],
            "dropped": chunk.dropped,
            "mark": self.writer.mark(),
        })  # fmt: skip
        bar.update(chunk.rows)


def overridden(
    mapping: DataMapping, name: str | None, licence: str | None, cut: Mapping[str, float] | None
) -> DataMapping:
    """A mapping with other values of these, where they are given."""
    changes: dict[str, Any] = {"name": name, "licence": licence, "cut": cut}
    return replace(mapping, **{key: value for key, value in changes.items() if value is not None})
