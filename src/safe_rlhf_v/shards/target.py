"""The folder that a data set is written into: files of others in it are never deleted or overwritten.

A journal beside the shards names every file before it is created, and states its hash before it gets its name; it is removed
after the manifest is written. Files of an interrupted run are recognised by its journal alone, byte for byte. They are
replaced, or, by a writer that can go on, kept.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from safe_rlhf_v.records.user_files import FileError, lock, open_regular, read_bounded
from safe_rlhf_v.shards.manifest import FILE_NAME, ShardError

JOURNAL = ".safe_rlhf_v.unfinished"
PROGRESS = ".safe_rlhf_v.progress"
"""What a writer that can go on has done so far; its first line is the token of the journal."""
SIZES = "sizes.json"
CARD = "data_card.md"
CONTACT_SHEET = "contact_sheet.jpg"
SPLIT_NAME = re.compile(r"[A-Za-z0-9_\-]{1,100}")
OURS = re.compile(
    rf"{SPLIT_NAME.pattern}(-\d{{6}}\.tar|\.index\.npy)|"
    + "|".join(map(re.escape, (SIZES, CARD, CONTACT_SHEET, FILE_NAME)))
)
"""Names of the files that the writer creates; only such files can be in conflict with it."""

_HEAD = "safe_rlhf_v.unfinished 1 "
_MAX_JOURNAL_BYTES = 100_000_000


class Target:
    """Writes complete files into a folder, or restores the folder's previous state."""

    def __init__(self, root: str | Path, *, resume: bool = False) -> None:
        """Lock the folder for this process, creating it if it is missing, and delete the files of an interrupted run.

        Args:
            root: The folder. Files in it with other names than the writer's are not touched.
            resume: Keep the files of an interrupted run until :meth:`restart` or :meth:`keep` is called.

        Raises:
            ShardError: If it holds a finished data set, or a file of others where the writer would write, if another process
                is writing into it, or if it cannot be written to.
        """
        self.root = Path(root)
        self._new_folders: list[Path] = []
        self._files: dict[str, None] = {}
        self.token = ""
        if os.path.lexists(self.root / FILE_NAME):
            raise ShardError(f"{self.root} already holds a finished data set; delete it or choose another folder")
        try:
            self._new_folders = [path for path in (self.root, *self.root.parents) if not path.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
            self._journal = self._claim()
            empty = not os.fstat(self._journal.fileno()).st_size
            try:
                self.token, entries = _read_journal(self.root / JOURNAL)
                if resume and self.token:
                    self._files = dict.fromkeys(entries)
                else:
                    self.restart()
            except BaseException:
                if empty:
                    (self.root / JOURNAL).unlink(missing_ok=True)
                self._journal.close()
                raise
        except OSError as error:
            self._remove_new_folders()
            raise ShardError(f"{self.root}: cannot be written to ({error.strerror or error})") from None

    def restart(self) -> None:
        """Delete the files of an interrupted run, and begin a new journal.

        Raises:
            ShardError: If a file of others is where the writer would write.
        """
        self._clear()
        self._files = {}
        self._journal.truncate(0)
        # Part of the names of unfinished files, so that no file of others has such a name.
        self.token = secrets.token_hex(4)
        self._note(f"{_HEAD}{self.token}")

    def _claim(self) -> BinaryIO:
        """The journal, open and locked."""
        path = self.root / JOURNAL
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_APPEND, 0o666
        )
        journal = os.fdopen(handle, "r+b", buffering=0)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ShardError(f"{path}: not a journal of this library; move it away or choose another folder")
            lock(journal, self.root)
            if not os.path.lexists(path) or not os.path.samestat(os.fstat(handle), os.lstat(path)):
                raise ShardError(f"{self.root}: another process has just finished writing it")
        except FileError as error:
            journal.close()
            raise ShardError(str(error)) from None
        except BaseException:
            journal.close()
            raise
        return journal

    def _clear(self) -> None:
        """Delete the files of an interrupted run, after every file in conflict has been recognised as one of them."""
        token, entries = _read_journal(self.root / JOURNAL)
        leftovers = [self.root / name for name, about in entries.items() if about and _is_ours(self.root / name, about)]
        leftovers += [part for name in entries if os.path.lexists(part := _part(self.root, name, token))]
        leftovers += [self.progress] if token and self._has_progress(token) else []
        recognised = {path.name for path in leftovers}
        names = (path.name for path in self.root.iterdir())
        foreign = sorted(name for name in names if OURS.fullmatch(name) and name not in recognised)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise ShardError(
                f"{self.root / foreign[0]}{more}: has the name of a file that would be written, and no interrupted run is "
                "known to have written it; move it away or choose another folder"
            )
        for path in leftovers:
            path.unlink()

    @property
    def progress(self) -> Path:
        """The file in which a writer that can go on notes what it has done."""
        return self.root / PROGRESS

    def _has_progress(self, token: str) -> bool:
        """Whether the progress is that of this journal's run."""
        try:
            with open_regular(self.progress) as file:
                return file.readline(100).decode(errors="replace").strip() == token
        except FileError:
            return False

    def keep(self, complete: Mapping[str, int], growing: Mapping[str, int]) -> dict[str, BinaryIO]:
        """Keep these files of an interrupted run, and delete its others.

        Args:
            complete: Sizes of complete files.
            growing: Least sizes of files that shall go on growing; complete ones are opened again, too.

        Returns:
            The growing files, open for reading and writing at their first byte.

        Raises:
            ShardError: If one of the files is missing or was changed.
        """
        _, entries = _read_journal(self.root / JOURNAL)
        try:
            for name, about in entries.items():
                path = self.root / name
                part = _part(self.root, name, self.token)
                if name in growing and about and not os.path.lexists(part) and _is_ours(path, about):
                    path.rename(part)
                elif name not in complete and name not in growing:
                    part.unlink(missing_ok=True)
                    if about and _is_ours(path, about):
                        path.unlink()
            for name, size in complete.items():
                if (self.root / name).is_symlink() or (self.root / name).stat().st_size != size:
                    raise ShardError(f"{self.root / name}: was changed since it was written")
            files: dict[str, BinaryIO] = {}
            for name, size in growing.items():
                handle = os.open(_part(self.root, name, self.token), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                files[name] = os.fdopen(handle, "r+b")
                if os.fstat(handle).st_size < size:
                    raise ShardError(f"{self.root / name}: is shorter than what was written")
        except OSError as error:
            raise ShardError(f"{self.root}: cannot be continued ({error.strerror or error})") from None
        self._files = dict.fromkeys((*complete, *growing))
        return files

    def _note(self, line: str) -> None:
        """Add a line to the journal."""
        data = f"{line}\n".encode()
        if self._journal.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _sync(self._journal)

    def begin(self, name: str) -> BinaryIO:
        """Create a file that has its name only after :meth:`complete`: journal entry, temporary file.

        Args:
            name: A name that matches :data:`OURS`.

        Raises:
            ShardError: If another program has created it.
            OSError: If it cannot be created.
        """
        self._note(json.dumps({"part": name}))
        self._check_free(name)
        self._files[name] = None
        return _part(self.root, name, self.token).open("x+b")

    def complete(self, name: str, file: BinaryIO, sha256: str) -> None:
        """Give a file that was begun its name.

        Args:
            name: Its name.
            file: The file, with all its content on disk; it is closed.
            sha256: Hash of the content.

        Raises:
            ShardError: If another program has created a file of this name.
            OSError: If it cannot be renamed.
        """
        size = os.fstat(file.fileno()).st_size
        file.close()
        self._note(json.dumps({"file": name, "bytes": size, "sha256": sha256}))
        part = _part(self.root, name, self.token)
        try:
            self._check_free(name)
        except ShardError:
            part.unlink(missing_ok=True)
            del self._files[name]  # the one of this name is not ours
            raise
        part.rename(self.root / name)

    def _check_free(self, name: str) -> None:
        if os.path.lexists(self.root / name):
            raise ShardError(f"{self.root / name}: another program has created this file; choose another folder")

    def add(self, name: str, data: bytes) -> None:
        """Write one complete file.

        Args:
            name: A name that matches :data:`OURS`.
            data: Content of the file.

        Raises:
            ShardError: If the disk is full, the file cannot be written, or another program has created it.
        """
        with self.writing(name):
            file = self.begin(name)
            file.write(data)
            _sync(file)
            self.complete(name, file, hashlib.sha256(data).hexdigest())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """A context in which a failure of the disk is one line that names the file.

        Raises:
            ShardError: If the file cannot be written.
        """
        try:
            yield
        except OSError as error:
            raise ShardError(f"{self.root}: cannot write {name} ({error.strerror or error})") from None

    def finish(self, manifest: bytes) -> None:
        """Write the manifest, which completes the folder, and remove the journal."""
        _sync_folder(self.root)
        self.add(FILE_NAME, manifest)
        _sync_folder(self.root)
        with contextlib.suppress(OSError):
            if self._has_progress(self.token):
                self.progress.unlink()
            (self.root / JOURNAL).unlink()
        self._journal.close()

    def leave(self) -> None:
        """Leave everything as it is, for a run that goes on."""
        self._journal.close()

    def discard(self) -> None:
        """Delete the written files, the manifest first; the journal stays if any of them cannot be deleted."""
        with contextlib.suppress(OSError):
            for name in reversed(self._files):
                _part(self.root, name, self.token).unlink(missing_ok=True)
                (self.root / name).unlink(missing_ok=True)
            if self._has_progress(self.token):
                self.progress.unlink()
            (self.root / JOURNAL).unlink()
        self._journal.close()
        self._remove_new_folders()

    def _remove_new_folders(self) -> None:
        with contextlib.suppress(OSError):  # not empty: others use it
            for folder in self._new_folders:
                folder.rmdir()


def _read_journal(path: Path) -> tuple[str, dict[str, tuple[int, str] | None]]:
    """Token of a run, and size and hash of every file that it had begun to write; ``None`` for a file without its name yet.

    Raises:
        ShardError: If the file is not a journal of this library.
    """
    refusal = ShardError(f"{path}: not a journal of this library; move it away or choose another folder")
    try:
        text = read_bounded(path, _MAX_JOURNAL_BYTES).decode()
    except (FileError, UnicodeDecodeError):
        raise refusal from None
    head, *lines = text.split("\n")
    if not lines and (_HEAD.startswith(head) or re.fullmatch(rf"{_HEAD}[0-9a-f]{{0,8}}", head)):
        return "", {}  # interrupted before anything was written
    if not re.fullmatch(rf"{_HEAD}[0-9a-f]{{8}}", head):
        raise refusal
    entries: dict[str, tuple[int, str] | None] = {}
    for line in lines[:-1]:  # a line without a line break was interrupted, and its file does not exist
        try:
            entry = json.loads(line)
            name = entry["part"] if "part" in entry else entry["file"]
            about = None if "part" in entry else (entry["bytes"], entry["sha256"])
            if not OURS.fullmatch(name) or (about and [type(value) for value in about] != [int, str]):
                raise refusal
        except (ValueError, KeyError, TypeError, RecursionError):
            raise refusal from None
        entries[name] = about or entries.get(name)
    return head.removeprefix(_HEAD), entries


def _is_ours(path: Path, about: tuple[int, str]) -> bool:
    """Whether a file is, byte for byte, the one in a journal."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size != about[0]:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == about[1]
    except OSError:
        return False


def _part(root: Path, name: str, token: str) -> Path:
    """Path of a file while it is written."""
    return root / f".{name}.{token}.part"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(root: Path) -> None:
    """Make renames durable, if the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(root, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
