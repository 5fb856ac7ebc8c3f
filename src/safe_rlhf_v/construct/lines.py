"""JSON lines that grow while work lasts: appended in whole batches, so that killed work goes on and gives the same bytes.

Beside ``NAME.jsonl`` stands ``NAME.json``: from what the lines are made, and once all are there their hash and what they took.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_v.records.parsing import RecordError, parse_json
from safe_rlhf_v.records.user_files import (
    FileError,
    digest,
    lock,
    open_regular,
    open_to_append,
    read_bounded,
    write_whole,
)

Row = dict[str, Any]
_MAX_LINE = 50_000_000
_MAX_NOTE = 10_000_000


def encoded(row: Row) -> bytes:
    """One line."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


class Lines:
    """One file of lines, one for each task, in the tasks' order; each line holds the hash of its task.

    Attributes:
        path: The file.
        note: The note beside it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Name the files; nothing is opened.

        Args:
            folder: Working folder.
            name: Without ending.
        """
        self.path = folder / f"{name}.jsonl"
        self.note = folder / f"{name}.json"

    @property
    def finished(self) -> bool:
        """Whether every line was written."""
        return "sha256" in self._noted()

    def forget(self) -> None:
        """Remove both files, so that the work begins anew."""
        for path in (self.note, self.path):
            path.unlink(missing_ok=True)

    def settings(self) -> Row:
        """From what settings finished work was made.

        Raises:
            ValueError: If the work is not finished.
        """
        noted = self._noted()
        if "sha256" not in noted:
            raise ValueError(f"{self.path}: is not finished; run the stage first")
        return dict(noted["settings"])

    def rows(self) -> list[Row]:
        """The lines of finished work.

        Raises:
            ValueError: If the work is not finished, or the file was changed since.
        """
        noted = self._noted()
        if "sha256" not in noted:
            raise ValueError(f"{self.path}: is not finished; run the stage first")
        rows: list[Row] = []
        seen = hashlib.sha256()
        with open_regular(self.path) as file:
            for line in file:
                seen.update(line)
                rows.append(_parsed(line, self.path))
        if seen.hexdigest() != noted["sha256"]:
            raise ValueError(f"{self.path}: was changed after it was written; {self._advice()}")
        return rows

    def write(
        self,
        tasks: Sequence[Row],
        settings: Row,
        batch_size: int,
        work: Callable[[Sequence[Row]], Sequence[Row]],
        progress: Callable[[Sequence[Row]], None],
    ) -> None:
        """Do every task that has no line yet; finished work is left alone.

        Args:
            tasks: What is to be done, plain data each.
            settings: What else the lines depend on.
            batch_size: Tasks at a time; lines of a batch are written together.
            work: From tasks to lines without their ``task``.
            progress: Told the lines of every batch, those of earlier runs first.

        Raises:
            FileError: If another process is writing the file.
            ValueError: If the lines there come from other tasks or settings, or the batch size is below 1.
        """
        if batch_size < 1:  # with a negative one no task would be done, and the work would count as finished
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        hashes = [digest(task) for task in tasks]
        about = {"settings": settings, "tasks": len(tasks), "of": digest(hashes), "batch_size": batch_size}
        with open_to_append(self.path) as file:
            lock(file, self.path)
            self._check(about, bool(self.path.stat().st_size))
            if self.finished:
                progress(self.rows())
                return
            write_whole(self.note, _text(about))
            done = self._resume(hashes, batch_size, progress)
            for start in range(done, len(tasks), batch_size):
                batch = tasks[start : start + batch_size]
                rows = [
                    {"task": name, **row}
                    for name, row in zip(hashes[start : start + batch_size], work(batch), strict=True)
                ]
                file.write(b"".join(map(encoded, rows)))
                file.flush()
                progress(rows)
            os.fsync(file.fileno())
        content = hashlib.sha256()
        with open_regular(self.path) as file:
            for line in file:
                content.update(line)
        write_whole(self.note, _text({**about, "sha256": content.hexdigest()}))

    def _check(self, about: Row, begun: bool) -> None:
        noted = self._noted()
        if begun and not noted:
            raise ValueError(
                f"{self.path}: there is no {self.note.name} beside it that says how it was made; move it away"
            )
        different = [name for name in about if noted.get(name) != about[name]]
        if not different or not (begun or self.finished):
            return
        what = "other tasks (other options, or an earlier stage gave something else)"
        if "settings" in different:
            what = f"other settings: {_difference(noted.get('settings'), about['settings'])}"
        elif different == ["batch_size"]:
            what = "another batch_size"
        raise ValueError(f"{self.path}: was made from {what}; {self._advice()}")

    def _advice(self) -> str:
        return f"remove {self.path.name}, {self.note.name} and those of later stages, or name another --output"

    def _noted(self) -> Row:
        """The note; {} if there is none."""
        try:
            return parse_json(read_bounded(self.note, _MAX_NOTE), self.note.name, _MAX_NOTE)
        except FileError:
            if self.note.exists():
                raise
            return {}
        except RecordError as error:
            raise ValueError(f"{self.note}: {error.problem}; {self._advice()}") from None

    def _resume(self, hashes: Sequence[str], batch_size: int, progress: Callable[[Sequence[Row]], None]) -> int:
        """Number of tasks whose lines are there; a batch that was cut off is dropped."""
        batch: list[Row] = []
        done = end = at = 0
        with self.path.open("r+b") as file:
            for line in file:
                number = done + len(batch) + 1
                row = _row_of(line)
                if row is None and line.endswith(b"\n"):  # a kill leaves a line without its end, never a damaged one
                    raise ValueError(
                        f"{self.path}: line {number} is damaged; remove it and what stands behind it, or {self._advice()}"
                    )
                if row is None or number > len(hashes):
                    break
                if row.get("task") != hashes[number - 1]:
                    raise ValueError(f"{self.path}: line {number} is of another task; {self._advice()}")
                at += len(line)
                batch.append(row)
                if len(batch) == batch_size or done + len(batch) == len(hashes):
                    progress(batch)
                    done += len(batch)
                    batch = []
                    end = at
            file.truncate(end)
        return done


def _row_of(line: bytes) -> Row | None:
    """The row of a line, ``None`` if it was not written whole."""
    try:
        return parse_json(line, "", _MAX_LINE) if line.endswith(b"\n") else None
    except RecordError:
        return None


def _parsed(line: bytes, path: Path) -> Row:
    row = _row_of(line)
    if row is None:
        raise ValueError(f"{path}: holds a line that is not one JSON object")
    return row


def _text(note: Row) -> bytes:
    return (json.dumps(note, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _difference(before: Any, now: Any) -> str:
    """Names of the settings that differ."""
    names = list(_paths(before, now, ""))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _paths(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _paths(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield name or "all of them"
