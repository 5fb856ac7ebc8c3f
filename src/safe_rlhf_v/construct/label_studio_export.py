"""What people said, out of Label Studio's JSON exports; whatever is not plainly a vote is named and nothing is guessed."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safe_rlhf_v.construct.label_studio import QUESTIONS, SIDES, Question, task_data
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import FileError, printable, read_bounded

NoteKind = Literal["skipped", "empty", "partial", "repeated", "invalid", "foreign", "edited", "unknown_annotator"]
NOTE_KINDS: tuple[NoteKind, ...] = get_args(NoteKind)
MAX_EXPORT = 4 << 30
"""Exports hold the pictures."""
_EARLIEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one person said of one pair, in the order of the record's responses.

    Attributes:
        key: The record's key.
        annotator: Number of the person in Label Studio, as text.
        more_helpful: Index of the more helpful response, -1 for a tie, ``None`` if left open.
        safer: Index of the safer response, likewise.
        safety: Safety level -3..3 of each response, ``None`` where left open.
        helpfulness: Helpfulness 0..3 of each response, likewise.
    """

    key: str
    annotator: str
    more_helpful: int | None = None
    safer: int | None = None
    safety: tuple[int | None, int | None] = (None, None)
    helpfulness: tuple[int | None, int | None] = (None, None)


class Note(NamedTuple):
    """Something in an export that is not plainly a vote.

    Attributes:
        kind: ``skipped`` by the person; ``empty``; ``partial`` (what is there counts); ``repeated`` (the newest of one person
            counts, and takes an older one back if it has no answer); ``invalid`` (this value does not count); ``foreign`` (no
            task of these); ``edited`` (the task shows something else than was written, so nothing of it counts);
            ``unknown_annotator`` (counts as a person of its own).
        where: File, task and annotation.
        message: What it is.
    """

    kind: NoteKind
    where: str
    message: str


class Export(NamedTuple):
    """What came back.

    Attributes:
        annotations: One per person and record, sorted by key and person.
        notes: What was not plainly a vote.
    """

    annotations: tuple[Annotation, ...]
    notes: tuple[Note, ...]

    @property
    def summary(self) -> str:
        """One line of counts."""
        records = len({annotation.key for annotation in self.annotations})
        people = len({annotation.annotator for annotation in self.annotations})
        return f"{len(self.annotations)} annotations of {records} records by {people} people; {counted(self.notes)}"


def counted(notes: Iterable[Note]) -> str:
    """Notes in a few words: how many of each kind."""
    counts = Counter(note.kind for note in notes)
    return ", ".join(f"{counts[kind]} {kind}" for kind in NOTE_KINDS if counts[kind]) or "nothing to note"


class Answers(NamedTuple):
    """What one person answered on one task.

    Attributes:
        key: The task's key.
        annotator: Number of the person in Label Studio, as text.
        values: Value by question; questions that were left open are missing.
        data: What the task shows.
    """

    key: str
    annotator: str
    values: dict[str, int]
    data: dict[str, Any]


class _Dated(NamedTuple):
    """Answers and when they were last changed; a skipped or empty annotation has none, and takes back older ones."""

    when: datetime
    where: str
    answers: Answers


Fault = tuple[NoteKind, str]
"""Why nothing of a task counts."""


def read_exports(paths: Iterable[Path], records: Mapping[str, Record]) -> Export:
    """Read exports in Label Studio's format *JSON* (not *JSON-MIN*).

    Args:
        paths: Exported files, in any order.
        records: The records that were written as tasks, by key; a task that shows something else does not count.

    Raises:
        FileError: If a file is no such export.
    """
    answers, notes = read_answers(paths, QUESTIONS, lambda data: _fault_of_pair(data, records))
    return Export(tuple(map(_in_order, answers)), notes)


def read_answers(
    paths: Iterable[Path], questions: Iterable[Question], fault_of: Callable[[dict[str, Any]], Fault | None]
) -> tuple[list[Answers], tuple[Note, ...]]:
    """What people answered, one line per task and person sorted by both, and what is not plainly an answer.

    Args:
        paths: Exported files, in any order.
        questions: What was asked.
        fault_of: Says why nothing of a task counts, from what it shows; ``None`` if it counts. Then its key is a text.

    Raises:
        FileError: If a file is no export in Label Studio's format *JSON*.
    """
    notes: list[Note] = []
    newest: dict[tuple[str, str], _Dated] = {}
    asked = {question.name: question for question in questions}
    for path in paths:
        for number, task in enumerate(_read(path)):
            where = f"{printable(path)}, task {_number(task) or f'number {number}'}"
            if (fault := fault_of(task["data"])) is not None:
                notes.append(Note(fault[0], where, fault[1]))
                continue
            for dated in _annotations(task, where, asked, notes):
                name = (dated.answers.key, dated.answers.annotator)
                older, newer = sorted((newest.get(name, dated), dated), key=lambda one: one.when)
                if name in newest and older.answers.values:
                    notes.append(Note("repeated", older.where, f"the same person changed it later: {newer.where}"))
                newest[name] = newer
    last = (newest[name].answers for name in sorted(newest))
    return [one for one in last if one.values], tuple(notes)


def _fault_of_pair(data: dict[str, Any], records: Mapping[str, Record]) -> Fault | None:
    key = data.get("key")
    record = records.get(key) if isinstance(key, str) else None
    if record is None:
        return "foreign", f"its key {key!r:.140} is of none of these records"
    order = data.get("order")
    if order not in ([0, 1], [1, 0]):
        return "edited", f"its order is {order!r:.80}, so that nobody knows what stood on the left"
    return changed_task(data, task_data(record, order))


def changed_task(data: dict[str, Any], expected: Mapping[str, Any]) -> Fault | None:
    """The fault of a task that shows something else than was written; ``None`` if it does not.

    Args:
        data: What it shows.
        expected: What was written.
    """
    changed = [name for name, value in expected.items() if data.get(name) != value]
    return ("edited", f"shows something else than the record in: {', '.join(changed)}") if changed else None


def _read(path: Path) -> list[dict[str, Any]]:
    """The tasks of an export."""
    name = printable(path)
    try:
        tasks = json.loads(read_bounded(path, MAX_EXPORT).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{name}: not JSON ({type(error).__name__}: {error}); export it again") from None
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list)
        for task in tasks
    ):
        raise FileError(
            f"{name}: no export of Label Studio in its format 'JSON' ('JSON-MIN' and others leave parts out)"
        )
    return tasks


def _annotations(
    task: dict[str, Any], where: str, asked: Mapping[str, Question], notes: list[Note]
) -> Iterator[_Dated]:
    """The annotations of one task that count, with notes on the others."""
    for entry in task["annotations"]:
        number = (_number(entry) if isinstance(entry, dict) else "") or "?"
        yield from _annotation(entry, f"{where}, annotation {number}", task["data"], asked, notes)


def _annotation(
    entry: Any, where: str, data: dict[str, Any], asked: Mapping[str, Question], notes: list[Note]
) -> Iterator[_Dated]:
    """One annotation, if it can be read."""
    if not isinstance(entry, dict) or not isinstance(entry.get("result"), list):
        notes.append(Note("invalid", where, "it has no list of results"))
        return
    if entry.get("was_cancelled"):
        values = {}
        notes.append(Note("skipped", where, "the person skipped the task"))
    else:
        values = _values(entry["result"], where, asked, notes)
        missing = [name for name in asked if name not in values]
        if not values:
            notes.append(Note("empty", where, "no question was answered"))
        elif missing:
            notes.append(Note("partial", where, f"left open: {', '.join(missing)}"))
    annotator = _annotator(entry)
    if annotator is None:
        annotator = f"annotation {_number(entry) or '?'}"
        if values:
            notes.append(Note("unknown_annotator", where, "who made it is not told; it counts as a person of its own"))
    yield _Dated(_when(entry), where, Answers(data["key"], annotator, values, data))


def _values(results: list[Any], where: str, asked: Mapping[str, Question], notes: list[Note]) -> dict[str, int]:
    """Question to value; what is not one of the question's values, or is answered in two ways, does not count."""
    answers: dict[str, list[Any]] = {}
    for result in results:
        name = result.get("from_name") if isinstance(result, dict) else None
        if not isinstance(name, str) or name not in asked:
            notes.append(Note("invalid", where, f"answers {name!r:.80}, which is not asked"))
            continue
        value = result.get("value")
        choices = value.get("choices") if isinstance(value, dict) else None
        answers.setdefault(name, []).extend(choices if isinstance(choices, list) else [[choices]])
    values = {}
    for name, choices in answers.items():
        allowed = asked[name].values
        first = choices[0] if choices else None
        if not isinstance(first, str) or first not in allowed or any(choice != first for choice in choices):
            notes.append(Note("invalid", where, f"{name} is {choices!r:.80}, not one of {', '.join(allowed)}"))
        else:
            values[name] = allowed[first]
    return values


def _number(entry: dict[str, Any]) -> str:
    """The id of a task or annotation, escaped if it is not the number that Label Studio gives; empty if there is none."""
    value = entry.get("id")
    return "" if value is None else ascii(value)[:80]


def _annotator(entry: dict[str, Any]) -> str | None:
    """Number of the person; addresses and names stay in Label Studio."""
    who = entry.get("completed_by")
    if isinstance(who, dict):
        who = who.get("id")
    return str(who) if isinstance(who, int) and not isinstance(who, bool) else None


def _when(entry: dict[str, Any]) -> datetime:
    """When an annotation was last changed; at the beginning of time if it does not say."""
    try:
        when = datetime.fromisoformat(entry.get("updated_at") or entry.get("created_at") or "")
    except (TypeError, ValueError):
        return _EARLIEST
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _in_order(answers: Answers) -> Annotation:
    """The annotation in the order of the record: the task says which response stood on each side."""
    order = answers.data["order"]

    def pick(name: str) -> int | None:
        side = answers.values.get(name)
        return order[side] if side in (0, 1) else side

    def per_response(axis: str) -> tuple[int | None, int | None]:
        by_side = [answers.values.get(f"{side}_{axis}") for side in SIDES]
        return by_side[order.index(0)], by_side[order.index(1)]

    votes = (pick("more_helpful"), pick("safer"), per_response("safety"), per_response("helpfulness"))
    return Annotation(answers.key, answers.annotator, *votes)
