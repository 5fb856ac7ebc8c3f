"""Files with names from outside: checked before they are read, and never written by two processes at once."""

import errno
import fcntl
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


_BUSY = "{name}: another process is writing it; wait for it or name another output"


class FileError(ValueError):
    """A file cannot be used; the message names it and the reason in one line."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, following links; opening anything else could block or have side effects.

    Args:
        path: A path from an untrusted source.

    Raises:
        FileError: If it is missing, may not be read, or is a folder, named pipe, socket or device.
    """
    name = printable(path)
    try:
        _check_regular(Path(path).stat().st_mode, name)
        # Without blocking, because the file may have been replaced by a pipe since the check.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{name}: {(error.strerror or type(error).__name__).lower()}") from None
    except ValueError as error:  # a NUL or a lone surrogate in the name
        raise FileError(f"{name}: no file can have this name ({error})") from None
    try:
        _check_regular(os.fstat(handle).st_mode, name)
    except FileError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_bounded(path: str | Path, limit: int) -> bytes:
    """All bytes of a regular file; no more than ``limit`` are ever held in memory.

    Args:
        path: A path from an untrusted source.
        limit: Maximum number of bytes.

    Raises:
        FileError: See :func:`open_regular`; or if the file is larger, or cannot be read to its end.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileError(f"{printable(path)}: {size} bytes, the limit is {limit}")
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise FileError(f"{printable(path)}: {(error.strerror or type(error).__name__).lower()}") from None
    if len(data) > limit:  # it grew, or its stated size is 0 (/proc)
        raise FileError(f"{printable(path)}: more than {limit} bytes")
    return data


def open_to_append(path: str | Path) -> BinaryIO:
    """Open a regular file for reading and appending, creating it if it is missing; links are not followed.

    Raises:
        FileError: If the path is something else (a link, a named pipe), or cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        kind = "a link, not a regular file" if error.errno == errno.ELOOP else str(error.strerror).lower()
        raise FileError(f"{printable(path)}: {kind}; remove it or name another output") from None
    try:
        _check_regular(os.fstat(handle).st_mode, printable(path))
    except FileError:
        os.close(handle)
        raise
    return os.fdopen(handle, "r+b")


def create(path: Path, name: str | Path) -> BinaryIO:
    """Create a file and lock it for this process, in place of what an ended process left there; see :func:`lock`.

    Links are replaced and never followed, because the folder may belong to somebody else.

    Args:
        path: The file.
        name: What it will become, for the message.

    Raises:
        FileError: If another process is writing it.
    """
    try:
        old = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    except OSError:  # a link, a socket, not ours to read: nobody holds its lock
        path.unlink(missing_ok=True)
    else:
        try:
            _lock(old, name)  # only who holds the lock of a file takes its name away
            path.unlink(missing_ok=True)
        finally:
            os.close(old)
    try:
        file = path.open("x+b")
    except FileExistsError:
        raise FileError(_BUSY.format(name=printable(name))) from None
    try:
        _lock(file.fileno(), name)
        if not os.path.lexists(path) or not os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
            raise FileError(_BUSY.format(name=printable(name)))
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A context with a file that appears when the block ends: ``.part`` beside it until then, then synced and renamed.

    Until then no other process can write the same file; a block that fails leaves nothing.

    Raises:
        FileError: If another process is writing it.
    """
    part = path.with_name(path.name + ".part")
    with create(part, path) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file completely or not at all; see :func:`whole_file`."""
    with whole_file(path) as file:
        file.write(data)


def digest(value: Any) -> str:
    """Short hash of plain data: 16 hexadecimal digits, whatever the order of the names.

    Args:
        value: Nested dicts, lists and tuples of plain data.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are NaN or infinite, for which it has no word, are null.

    Args:
        value: Nested dicts, lists and tuples of plain data.
        indent: As in ``json.dumps``.
    """
    return json.dumps(_without_nan(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lock(file: BinaryIO, name: str | Path) -> None:
    """Lock an open file for this process; the kernel releases the lock when the file is closed or the process ends.

    Args:
        file: Open file.
        name: Its name in the message.

    Raises:
        FileError: If another process holds the lock.
    """
    _lock(file.fileno(), name)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """A context that locks a folder for this process, creating it if it is missing; see :func:`lock`.

    Raises:
        FileError: If another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def printable(path: str | Path) -> str:
    """A path as one printable line."""
    name = str(path)
    return name if name.isprintable() else repr(name)


def _lock(handle: int, name: str | Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileError(_BUSY.format(name=printable(name))) from None
    except OSError:  # a file system without locks
        return


def _check_regular(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((description for is_kind, description in _KINDS if is_kind(mode)), "something else")
        raise FileError(f"{name}: {kind}, not a regular file")
