"""Label Studio: the labelling page and its tasks as files, and its export back as annotations.

Label Studio itself is not needed here: it imports the files and exports its own JSON.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safe_rlhf_v.records import Record


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
    more_helpful: int | None
    safer: int | None
    safety: tuple[int | None, int | None]
    helpfulness: tuple[int | None, int | None]


class Note(NamedTuple):
    """Something in an export that is not plainly a vote.

    Attributes:
        kind: ``skipped``, ``empty``, ``partial`` (its values count), ``repeated`` (the newest of one person counts), ``invalid``,
            ``foreign`` (not a task of these records), ``edited`` (the task's data were changed) or ``unknown_annotator``.
        where: File, task and annotation.
        message: What it is, and what was done with it.
    """

    kind: str
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


def write_tasks(records: Iterable[Record], folder: Path, seed: int = 0) -> list[Path]:
    """Write ``labelling_config.xml`` and ``tasks-0000.json``, ... with the pictures inside.

    Args:
        records: Pairs to be labelled; each has exactly two responses.
        folder: Where; it may hold the same files already.
        seed: Draws which response stands on the left.
    """
    ...


def read_exports(paths: Iterable[Path], records: Mapping[str, Record]) -> Export:
    """Annotations in Label Studio's JSON exports (not JSON-MIN).

    Args:
        paths: Exported files.
        records: The records that were written as tasks, by key.
    """
    ...
