"""Read the picture that a row names."""

from pathlib import Path

from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.records import Image
from safe_rlhf_v.records.user_files import FileError, printable, read_bounded
from safe_rlhf_v.shards.images import MAX_BYTES, ImageError, probe


class PictureError(ValueError):
    """A picture cannot be read; the message says why in one line."""


def read_picture(folder: Path, name: str, row: Row, column: str) -> Image | None:
    """The picture; ``None``, with a problem noted, if its file is outside the folder, missing, or not a readable picture.

    Args:
        folder: Folder of the pictures.
        name: File name inside it.
        row: Row that names it.
        column: Column that names it.
    """
    try:
        return probe(read_file(folder, name))
    except PictureError as error:
        row.bad(column, str(error))
    except ImageError as error:
        row.bad(column, f"{describe(name)}: {error}")
    return None


def read_file(folder: Path, name: str) -> bytes:
    """The bytes of a file inside a folder.

    Args:
        folder: Folder of the pictures.
        name: File name inside it.

    Raises:
        PictureError: If it is outside the folder, missing, too large, or not a regular file.
    """
    try:
        file = (folder / name).resolve()
        inside = file.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise PictureError(f"{describe(name)} is not a file name ({error!s:.80})") from None
    if not inside:
        raise PictureError(f"{describe(name)} is outside {folder}")
    try:
        return read_bounded(file, MAX_BYTES)
    except FileError as error:
        raise PictureError(f"{describe(name)}: {str(error).removeprefix(f'{printable(file)}: ')}") from None


def check_folder(folder: Path) -> None:
    """Check that the folder of images exists.

    Raises:
        ValueError: If it does not.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
