"""Rows that cannot be used: all are listed, in a file, and either nothing is written or they alone are left out."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TextIO

from safe_rlhf_v.ingest.rows import Row
from safe_rlhf_v.ingest.table import TableError

OnBadRow = Literal["error", "skip"]
SHOWN = 50
_KEYS = {"row", "line", "columns", "reason"}


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        records: Written.
        skipped: Rows left out.
        bad_rows: The file that lists them.
    """

    records: int
    skipped: int
    bad_rows: Path


class BadRowsError(TableError):
    """Rows of a table cannot be used; the message counts them and names the file that lists them.

    Attributes:
        problems: The first problems, one line each.
        more: How many further ones there are.
    """

    def __init__(self, message: str, problems: list[str], more: int) -> None:
        """
        Args:
            message: One line.
            problems: See above.
            more: See above.
        """
        super().__init__(message)
        self.problems, self.more = problems, more


class BadRows:
    """Collects them, into a file with one JSON line for each: row, line, columns, and the reason."""

    def __init__(self, table: Path, file: Path, on_bad_row: OnBadRow) -> None:
        """
        Args:
            table: Whose rows they are.
            file: Where to list them; written only if there are any. One that an earlier import wrote is replaced.
            on_bad_row: ``error`` or ``skip``.

        Raises:
            TableError: If something else has the file's name.
        """
        self.table, self.file, self._on_bad_row = table, file, on_bad_row
        self.count, self._problems, self._total = 0, list[str](), 0
        self._open: TextIO | None = None
        if file.is_symlink() or file.exists():
            if not _is_ours(file):
                raise TableError(f"{file}: exists and is no list of bad rows; name another file with --bad-rows")
            file.unlink()

    def add(self, row: Row) -> None:
        """List a row with all its problems."""
        reasons = [f"{_column(column)}{problem}" for column, problem in row.problems]
        columns = list(dict.fromkeys(column for column, _ in row.problems if column))
        line = {"row": row.number, "line": row.line, "columns": columns, "reason": "; ".join(reasons)}
        try:
            if self._open is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._open = self.file.open("x", encoding="utf-8")
            self._open.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._unwritten(error) from None
        self.count += 1
        self._total += len(reasons)
        self._problems += [f"{self.table}, row {row.number}, {reason}" for reason in reasons][
            : SHOWN - len(self._problems)
        ]

    def finish(self, good: int) -> None:
        """Say that the table is read.

        Args:
            good: How many rows can be used.

        Raises:
            BadRowsError: If rows are bad and not to be skipped, or none is left.
        """
        if not self.count:
            if not good:
                raise TableError(f"{self.table}: has no rows")
            return
        if good and self._on_bad_row == "skip":
            return
        rows = f"{self.count} of {good + self.count} rows cannot be used"
        mend = "mend them, or leave them out with --on-bad-row skip" if good else "none is left"
        message = f"{self.table}: {rows}, nothing was written; {mend}; all problems: {self.file}"
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
        return TableError(f"{self.file}: cannot be written ({reason}); make room, or name another file with --bad-rows")


def beside(out: Path) -> Path:
    """Where bad rows are listed by default: beside the folder to create."""
    whole = out.resolve()
    return whole.with_name(f"{whole.name}.bad_rows.jsonl")


def _column(name: str) -> str:
    return f"column {name!r:.140}: " if name else ""


def _is_ours(file: Path) -> bool:
    """Whether a file begins as a list of bad rows does."""
    try:
        if file.is_symlink() or not file.is_file():
            return False
        with file.open("rb") as lines:
            first = lines.readline(10_000_000)
        return isinstance(body := json.loads(first), dict) and set(body) == _KEYS
    except (OSError, ValueError, RecursionError):
        return False
