"""Rows that cannot be used: all of them are listed in a file, and either nothing is written or these rows are left out."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TextIO

from safe_rlhf_v.ingest.rows import Row
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.records.user_files import write_whole

OnBadRow = Literal["error", "skip"]
MAX_PROBLEMS = 50
"""Number of problems that an error message holds; the file lists all of them."""
_KEYS = {"row", "line", "columns", "reason"}


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        records: Number of records written.
        skipped: Number of rows left out.
        bad_rows: The file that lists the rows left out.
        folder: The shard folder.
        notes: What else the user should know, a line each.
    """

    records: int
    skipped: int
    bad_rows: Path
    folder: Path
    notes: tuple[str, ...] = ()


class BadRowsError(TableError):
    """Rows of a table cannot be used; the message counts them and names the file that lists them.

    Attributes:
        problems: The first problems, one line each.
        more: Number of further problems.
    """

    def __init__(self, message: str, problems: list[str], more: int) -> None:
        """Store the problems.

        Args:
            message: One line.
            problems: The first problems, one line each.
            more: Number of further problems.
        """
        super().__init__(message)
        self.problems = problems
        self.more = more


class BadRows:
    """Lists bad rows in a file, one JSON line for each: row, line, columns and reason."""

    def __init__(self, table: Path, file: Path, on_bad_row: OnBadRow) -> None:
        """Remove the list of an earlier import.

        Args:
            table: Table of the rows.
            file: The list; written only if there are bad rows.
            on_bad_row: ``error`` or ``skip``.

        Raises:
            TableError: If ``file`` exists and is not such a list.
        """
        self.table = table
        self.file = file
        self._on_bad_row = on_bad_row
        self.count = 0
        self._problems = list[str]()
        self._total = 0
        self._open: TextIO | None = None
        if file.is_symlink() or file.exists():
            if not _is_ours(file):
                raise TableError(f"{file}: exists and is not a list of bad rows; name another file with --bad_rows")
            file.unlink()

    def add(self, row: Row) -> None:
        """Add a row with all its problems."""
        reasons = [f"{_column(column)}{problem}" for column, problem in row.problems]
        columns = list(dict.fromkeys(column for column, _ in row.problems if column))
        file = {"file": row.file} if row.file else {}
        line = {**file, "row": row.number, "line": row.line, "columns": columns, "reason": "; ".join(reasons)}
        text = json.dumps(line) + "\n"
        try:
            if self._open is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.file, text.encode())  # a killed import leaves a list that can be recognised
                self._open = self.file.open("a", encoding="utf-8", buffering=1)
            else:
                self._open.write(text)
        except OSError as error:
            raise self._unwritten(error) from None
        self.count += 1
        self._total += len(reasons)
        self._problems += [f"{row.file or self.table}, row {row.number}, {reason}" for reason in reasons][
            : MAX_PROBLEMS - len(self._problems)
        ]

    def finish(self, good: int) -> None:
        """Check the result after the last row.

        Args:
            good: Number of rows that can be used.

        Raises:
            BadRowsError: If there are bad rows and they must not be skipped, or no row can be used.
        """
        if not self.count:
            if not good:
                raise TableError(f"{self.table}: has no rows")
            return
        if good and self._on_bad_row == "skip":
            return
        rows = f"{self.count} of {good + self.count} rows cannot be used"
        hint = "correct them, or leave them out with --on_bad_row skip" if good else "no row is left"
        message = f"{self.table}: {rows}, nothing was written; {hint}; all problems: {self.file}"
        raise BadRowsError(message, self._problems, self._total - len(self._problems))

    def __enter__(self) -> Self:
        """The collector itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        try:
            if self._open is not None:
                self._open.close()
        except OSError as failure:
            if error is None:
                raise self._unwritten(failure) from None

    def _unwritten(self, error: OSError) -> TableError:
        reason = (error.strerror or type(error).__name__).lower()
        return TableError(f"{self.file}: cannot be written ({reason}); make room, or name another file with --bad_rows")


def default_list(out: Path) -> Path:
    """The default list of bad rows: a file beside the folder to create."""
    folder = out.resolve()
    return folder.with_name(f"{folder.name}.bad_rows.jsonl")


def _column(name: str) -> str:
    return f"column {name!r:.140}: " if name else ""


def _is_ours(file: Path) -> bool:
    """Whether the first line of a file is that of a list of bad rows."""
    try:
        if file.is_symlink() or not file.is_file():
            return False
        with file.open("rb") as lines:
            first = lines.readline(10_000_000)
        return isinstance(body := json.loads(first), dict) and set(body) - {"file"} == _KEYS
    except (OSError, ValueError, RecursionError):
        return False
