"""The progress of an import, one JSON line per batch: enough to go on after a kill as if nothing had happened."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safe_rlhf_v.records.user_files import FileError, open_regular, open_to_append
from safe_rlhf_v.shards import ShardError


class Progress:
    """A file that grows by one line per batch; a line that a kill has cut off does not count."""

    def __init__(self, path: Path, token: str, input_digest: str) -> None:
        """Open the file, or begin it.

        Args:
            path: The file.
            token: Names the run whose journal stands beside it.
            input_digest: Names the input; progress with another input is of no use.
        """
        self.path = path
        self._head = [token, input_digest]
        self._end = 0

    @property
    def is_ours(self) -> bool:
        """Whether there is progress of this run with this input."""
        try:
            with open_regular(self.path) as file:
                return [file.readline(1000).decode(errors="replace").strip() for _ in self._head] == self._head
        except FileError:
            return False

    def lines(self) -> Iterator[Any]:
        """The complete lines behind the head."""
        with open_regular(self.path) as file:
            for _ in self._head:
                self._end += len(file.readline())
            for line in file:
                try:
                    body = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    body = None
                if body is None:
                    return
                self._end += len(line)
                yield body

    def __enter__(self) -> Self:
        """Cut off what is incomplete, or begin the file.

        Raises:
            ShardError: If it cannot be written.
        """
        try:
            if not self._end:
                self.path.unlink(missing_ok=True)
            self._file = open_to_append(self.path)
            self._file.truncate(self._end)
            if not self._end:
                self._file.write("".join(f"{line}\n" for line in self._head).encode())
                self._file.flush()
        except (FileError, OSError) as error:
            raise ShardError(f"{self.path}: cannot be written ({error})") from None
        return self

    def add(self, body: Any) -> None:
        """Add a line.

        Raises:
            ShardError: If it cannot be written.
        """
        try:
            self._file.write(json.dumps(body, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise ShardError(f"{self.path}: cannot be written ({os.strerror(error.errno or 0)})") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()
