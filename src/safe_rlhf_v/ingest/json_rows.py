"""Rows of a JSON file: an array of objects, read piece by piece, or one object that holds them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.ingest.table import MAX_LINE, TableError
from safe_rlhf_v.records.user_files import open_regular

MAX_OBJECT = 200_000_000
_CHUNK = 1 << 16
_SPACE = " \t\r\n"


def json_rows(path: Path, entry: str = "") -> Iterator[Row]:
    """The rows, in order.

    Args:
        path: A file in UTF-8.
        entry: Entry of the file's object that holds the rows; empty: the file is an array, or an object of objects.

    Raises:
        TableError: If it is no such file; rows before a damaged place have been given.
        FileError: If it is missing or not a regular file.
    """
    with open_regular(path) as raw:
        import io

        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        try:
            items = _array(path, text) if not entry else iter(_held(path, text, entry))
            for number, item in enumerate(items, 1):
                if isinstance(item, dict):
                    yield Row(number, number, item)
                else:
                    yield Row(number, number, {}, problem=f"must be an object, not {describe(item)}")
        except UnicodeDecodeError:
            raise TableError(f"{path}: is not UTF-8 text") from None
        finally:
            text.detach()


def _array(path: Path, text: TextIO) -> Iterator[Any]:
    """Items of an array, each parsed when it has been read; nothing but white space may stand behind it."""
    decoder = json.JSONDecoder(
        parse_constant=lambda name: None, object_pairs_hook=unique_fields
    )  # NaN is a missing number
    buffer = text.read(_CHUNK).lstrip()
    if buffer.startswith("{"):
        text.seek(0)
        yield from _held(path, text, "")
        return
    if not buffer.startswith("["):
        raise TableError(f"{path}: is not a JSON array of objects")
    at = _behind_space(buffer, 1)
    number = 0
    size = _CHUNK
    while True:
        try:
            if buffer[at : at + 1] == "]":
                break
            if number and buffer[at : at + 1] != ",":
                raise ValueError("a comma is missing, or the end of the array")
            item, end = decoder.raw_decode(buffer, _behind_space(buffer, at + 1) if number else at)
            if end == len(buffer):
                raise ValueError("the array has no end")  # a number may go on in what is not read yet
        except (ValueError, RecursionError) as error:
            more = text.read(size) if len(buffer) - at <= MAX_LINE else ""
            if not more:
                raise TableError(f"{path}: damaged or too large behind entry {number} ({error!s:.100})") from None
            buffer = buffer[at:] + more
            at = _behind_space(buffer, 0)
            size *= 2
            continue
        at = _behind_space(buffer, end)
        size = _CHUNK
        number += 1
        yield item
    rest = buffer[at + 1 :]
    while rest:
        if rest.strip(_SPACE):
            raise TableError(f"{path}: something stands behind the array of {number} entries; make it one array")
        rest = text.read(_CHUNK)


def _behind_space(buffer: str, at: int) -> int:
    """The place of the next character that is no white space."""
    while at < len(buffer) and buffer[at] in _SPACE:
        at += 1
    return at


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object.

    Args:
        pairs: Names and values, in order.

    Raises:
        ValueError: If a name stands twice: another reader might take the other value.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field occurs twice")
    return fields


def _held(path: Path, text: TextIO, entry: str) -> list[Any]:
    """Rows of an entry of an object, or the values of an object of objects."""
    data = text.read(MAX_OBJECT + 1)
    if len(data) > MAX_OBJECT:
        raise TableError(f"{path}: an object of more than {MAX_OBJECT} characters; make it a .jsonl file, a row a line")
    try:
        body = json.loads(data, parse_constant=lambda name: None, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: not readable as JSON ({error!s:.100})") from None
    rows = body.get(entry) if isinstance(body, dict) and entry else body
    if isinstance(rows, dict) and rows and all(isinstance(value, dict) for value in rows.values()):
        return list(rows.values())
    if not isinstance(rows, list):
        there = f"; there are: {', '.join(map(str, list(body)[:20]))}" if isinstance(body, dict) else ""
        raise TableError(
            f"{path}: has no rows in entry {entry!r:.80}{there}" if entry else f"{path}: holds no rows{there}"
        )
    return rows
