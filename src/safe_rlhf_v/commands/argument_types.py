"""Types of command-line arguments: a value that makes no sense is refused by its option, before anything is loaded."""

import argparse
from collections.abc import Callable
from pathlib import Path


def said(error: Exception) -> str:
    """An error in one line, beginning with the file where it is about one."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__


def path(text: str) -> Path:
    """A path; what an unset shell variable leaves is none, though ``Path`` takes it for the working directory.

    Raises:
        argparse.ArgumentTypeError: If it is empty.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty (an unset variable?); name a file or folder")
    return Path(text)


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least ``least``."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r:.40} is no whole number of at least {least}")
        return value

    return number
