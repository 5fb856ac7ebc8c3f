"""Rows of a foreign WebDataset shard: a tar file in which the members of one name, ``KEY.jpg`` and ``KEY.json``, are a row.

A column is named like the members' ending: ``jpg``, ``json`` (parsed, so that ``json.caption`` is an entry), ``txt``, ``1.png``;
``__key__`` is the name. Members are bytes to us: nothing is unpickled, and a shard that holds pickled members is refused.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safe_rlhf_v.ingest.json_rows import unique_fields
from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.records.user_files import open_regular
from safe_rlhf_v.shards.images import MAX_BYTES

KEY = "__key__"
PICKLED = ("pkl", "pickle", "pyd", "pth", "pt")
"""Endings of members that the library of this format would unpickle, and a stranger's pickle is a stranger's program."""
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
_META = re.compile(r"__[^/]*__($|/)")
"""Members about the shard itself, which the library passes over."""
_BLOCK = 512
_EVERY = 32
"""A place to start from is kept for every so many rows."""


class Scanned(NamedTuple):
    """What the headers of a shard say.

    Attributes:
        rows: Number of rows.
        columns: Endings of the members.
        starts: Where rows 0, 32, 64, ... begin.
    """

    rows: int
    columns: list[str]
    starts: list[int]


def scan(path: Path) -> Scanned:
    """Read the headers only, and refuse what cannot be read whole.

    Raises:
        TableError: If it is no plain tar file, is cut off or damaged, or holds a member that is too large or pickled.
        FileError: If it is missing or not a regular file.
    """
    from webdataset.tariterators import base_plus_ext

    columns: dict[str, None] = {}
    starts: list[int] = []
    rows = 0
    last: str | None = None
    with open_regular(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # or it keeps every header
                    if not member.isreg() or _META.match(member.name):
                        continue
                    key, ending = base_plus_ext(member.name)
                    if key is None:
                        continue
                    ending = ending.lower()
                    _check(path, member, ending)
                    columns[ending] = None
                    if key != last:
                        if rows % _EVERY == 0:
                            starts.append(member.offset)
                        rows += 1
                        last = key
                end = archive.offset
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise TableError(f"{path}: damaged or cut off at byte {end}; get it again")
        except (tarfile.TarError, EOFError, ValueError) as error:
            if isinstance(error, TableError):
                raise
            raise TableError(f"{path}: not a plain tar file ({error!s:.100}); unpack it if it is compressed") from None
    return Scanned(rows, [KEY, *columns], starts)


def tar_rows(path: Path, scanned: Scanned, start: int, columns: Sequence[str] | None) -> Iterator[Row]:
    """The rows from row ``start`` (0 is the first) on.

    Args:
        path: The shard.
        scanned: What :func:`scan` has given.
        start: Number of the first row.
        columns: Columns that are needed; ``None``: all.

    Raises:
        TableError: If the file changed, or cannot be read to its end.
    """
    if start >= scanned.rows:
        return
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    place = start // _EVERY
    number = place * _EVERY
    with open_regular(path) as file:
        file.seek(scanned.starts[place])
        try:
            members = ({**member, "__url__": ""} for member in tar_file_iterator(file))
            for sample in group_by_keys(members):
                number += 1
                if number > start:
                    yield _row(number, sample, columns)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise TableError(f"{path}: damaged behind row {number} ({error!s:.150})") from None
    if number != scanned.rows:
        raise TableError(f"{path}: has {number} rows, and had {scanned.rows} before; it was changed meanwhile")


def _row(number: int, sample: dict[str, Any], columns: Sequence[str] | None) -> Row:
    row = Row(number, number, {})
    for name, data in sample.items():
        if name in (KEY, "__url__") or (columns is not None and name not in columns):
            continue
        try:
            row.cells[name] = _cell(name, data)
        except (ValueError, RecursionError) as error:
            row.bad(name, f"is not JSON ({error!s:.100})")
            row.readable = False
    row.cells[KEY] = sample[KEY]
    return row


def _cell(name: str, data: bytes) -> Any:
    """What JSON holds, a text, or the bytes as they are."""
    ending = name.rpartition(".")[2]
    if ending in PICTURES:
        return data
    if ending == "json":
        return json.loads(data.decode("utf-8-sig"), parse_constant=lambda name: None, object_pairs_hook=unique_fields)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _check(path: Path, member: tarfile.TarInfo, ending: str) -> None:
    if ending.rpartition(".")[2] in PICKLED:
        raise TableError(
            f"{path}: member {describe(member.name)} is a pickle, which can hold a program; pack the shard without it"
        )
    if member.size > MAX_BYTES or member.issparse():
        raise TableError(
            f"{path}: member {describe(member.name)} has {member.size} bytes; the limit is {MAX_BYTES}, and none may be sparse"
        )
