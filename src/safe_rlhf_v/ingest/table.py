"""Rows of a CSV or JSONL file, and the images they name; every message says which row and column."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safe_rlhf_v.records import Image
from safe_rlhf_v.shards.images import ImageError, probe


class TableError(ValueError):
    """A row cannot be read; the message names file, row and column."""

    def __init__(self, path: Path, row: int, column: str, problem: str) -> None:
        """Args:
        path: The table.
        row: 1-based number of the data row.
        column: The column.
        problem: What is wrong.
        """
        super().__init__(f"{path}, row {row}, column {column!r}: {problem}")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and columns of each row; empty cells of a CSV are ``None``.

    Raises:
        TableError: For a row that is no row.
        ValueError: If the file is neither ``.csv`` nor ``.jsonl``.
    """
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                if None in row or None in row.values():
                    raise TableError(path, number, "?", "has another number of cells than the header")
                yield number, {name: value or None for name, value in row.items()}
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(filter(str.strip, file), start=1):
                try:
                    body = json.loads(line)
                except ValueError as error:
                    raise TableError(path, number, "?", f"not JSON ({error})") from None
                if not isinstance(body, dict):
                    raise TableError(path, number, "?", "must be a JSON object")
                yield number, body
    else:
        raise ValueError(f"{path}: tables are .csv or .jsonl files")


def read_image(folder: Path, name: str, path: Path, row: int, column: str) -> Image:
    """The image a row names.

    Raises:
        TableError: If it lies outside the folder, is missing, or is no readable picture.
    """
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise TableError(path, row, column, f"{name!r} lies outside {folder}")
    if not file.is_file():
        raise TableError(path, row, column, f"there is no {folder / name}")
    try:
        return probe(file.read_bytes())
    except ImageError as error:
        raise TableError(path, row, column, f"{name}: {error}") from None
