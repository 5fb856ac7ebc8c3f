"""A folder that appears complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safe_rlhf_v.records.user_files import FileError, locked_folder, printable

_PART = "safe_rlhf_v-part"
"""Ending of a folder that is being written: ``.NAME.safe_rlhf_v-part``, beside the folder NAME."""


def check_new(folder: Path) -> None:
    """Refuse a place where something stands already: nothing in it is replaced.

    Raises:
        FileError: If it is anything but missing, or an empty folder.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileError(f"{printable(folder)}: exists and is no folder; name a new one")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileError(
            f"{printable(folder)}: exists and is not empty, and nothing in it is replaced; name a new folder"
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A context with an empty folder that gets its name when the block ends.

    A killed process leaves a hidden folder beside it, which the next call for the same name removes; a block that fails
    leaves nothing.

    Args:
        folder: See :func:`check_new`.

    Raises:
        FileError: If something stands there, or another process is writing it.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  links in it are not resolved
    check_new(folder)
    part = folder.with_name(f".{folder.name}.{_PART}")
    if part.is_symlink() or (part.exists() and not part.is_dir()):
        raise FileError(f"{printable(part)}: is in the way; remove it")
    with locked_folder(part):
        _clear(part)
        try:
            yield part
            mask = os.umask(0o077)
            os.umask(mask)
            for file in part.rglob("*"):
                file.chmod(
                    (0o777 if file.is_dir() else 0o666) & ~mask
                )  # some libraries write files for their owner alone
                _sync(file)
            check_new(folder)
            part.rename(folder)
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
