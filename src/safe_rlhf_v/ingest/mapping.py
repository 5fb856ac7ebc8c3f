"""Mapping files: which columns of a public data set, or of anybody's table, become which fields of a record.

A mapping file is YAML. ``python -m safe_rlhf_v shards presets NAME`` prints those that are shipped, to be copied and changed.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from safe_rlhf_v.ingest.fields import Field, FieldError
from safe_rlhf_v.ingest.row_records import MAX_RESPONSES, OF_RECORD, OF_RESPONSE
from safe_rlhf_v.ingest.rows import describe
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V, Taxonomy
from safe_rlhf_v.records.unique_yaml import UniqueKeyLoader
from safe_rlhf_v.records.user_files import read_bounded
from safe_rlhf_v.shards.target import SPLIT_NAME

MAX_BYTES = 1_000_000
_OF_RECORD = (*(name for name in OF_RECORD if name != "history"), "conversation")
_FIELD = re.compile(rf"{'|'.join(_OF_RECORD)}|({'|'.join(OF_RESPONSE)})_[0-{MAX_RESPONSES - 1}]")
_SCHEMA = ("name", "rows", "each", "skip", "pair_by", "unpaired", "fields", "records")
_MAPPING = (
    "about",
    "columns_from",
    "name",
    "licence",
    "source",
    "use",
    "categories",
    "files",
    "images",
    "splits",
    "cut",
    "schemas",
)
USES = ("training", "testing only")


@dataclass(frozen=True)
class Schema:
    """One form in which the rows of a data set are found.

    Attributes:
        name: For messages.
        records: Fields of every record that a row gives; mostly one.
        rows: Entry of a JSON object that holds the rows.
        each: Column with a list, of which every item gives records of its own.
        skip: Reason for leaving out rows in which this column is not empty.
        pair_by: Fields; rows in which they are equal are joined into one record with two responses.
        keep_unpaired: Whether a row without such a partner becomes a record with one response.
    """

    name: str
    records: tuple[Mapping[str, Field], ...]
    rows: str = ""
    each: str = ""
    skip: Mapping[str, str] = field(default_factory=dict)
    pair_by: tuple[str, ...] = ()
    keep_unpaired: bool = False

    def missing(self, present: Sequence[str]) -> list[str]:
        """Columns that it needs and a source does not have."""
        gone = [name for fields in self.records for one in fields.values() for name in one.missing(present)]
        return list(dict.fromkeys([*gone, *([self.each] if self.each and self.each not in present else [])]))

    def columns(self) -> set[str]:
        """Columns that are read."""
        names = {name for fields in self.records for one in fields.values() for name in one.sources}
        return (
            names | {name.partition(".")[0] for name in names} | set(self.skip) | ({self.each} if self.each else set())
        )

    @property
    def by_row(self) -> bool:
        """Whether every row states its own split."""
        return "split" in self.records[0]


@dataclass(frozen=True)
class Files:
    """Files of a local folder.

    Attributes:
        pattern: A glob of paths below the folder or of names.
        split: Their split, as the source calls it; empty: from the file's name.
        images: Folder of their pictures, below the folder.
    """

    pattern: str
    split: str = ""
    images: str = ""

    def matches(self, path: PurePosixPath) -> bool:
        """Whether a file, by its path below the folder or by its name, is one of them."""
        return fnmatchcase(str(path), self.pattern) or fnmatchcase(path.name, self.pattern)


@dataclass(frozen=True)
class DataMapping:
    """A mapping file.

    Attributes:
        text: The file.
        about: What the data set is.
        name: Name of the data set.
        licence: Its licence.
        source: Where it comes from.
        schemas: Forms of its rows; the first whose columns are all there is read.
        taxonomy: Its harm categories; ``None``: those that occur.
        testing_only: Whether training on it is refused.
        files: Files of a local folder; none: every Parquet file, or else every table.
        images: Folder of the pictures, below that of the data.
        splits: Our split for each of the source's; ``*`` stands for any other.
        cut: Shares that are cut from train, by split.
    """

    text: str
    about: str
    name: str
    licence: str
    source: str
    schemas: tuple[Schema, ...]
    taxonomy: Taxonomy | None
    testing_only: bool
    files: tuple[Files, ...]
    images: str
    splits: Mapping[str, str]
    cut: Mapping[str, float]

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def split_of(self, split: str) -> str:
        """Our name of a split of the source, or empty if the mapping has none."""
        return self.splits.get(split) or self.splits.get("*", "")

    def files_of(self, path: PurePosixPath) -> Files:
        """What the mapping says about a file."""
        return next((one for one in self.files if one.matches(path)), Files(str(path)))

    def detect(self, present: Sequence[str], part: str) -> Schema:
        """The form of rows with these columns.

        Raises:
            TableError: Naming what is missing and what there is.
        """
        for schema in self.schemas:
            if not schema.missing(present):
                return schema
        needed = "; ".join(
            f"{f'{schema.name} needs ' if schema.name else 'missing: '}{', '.join(schema.missing(present))}"
            for schema in self.schemas
        )
        there = ", ".join(map(str, present[:30])) or "none"
        raise TableError(
            f"{part}: its columns do not fit the mapping {self.name!r}: {needed}; there are: {there}; "
            f"change a copy of the mapping ('shards presets {self.name}') and give it with --mapping"
        )


def preset_names() -> list[str]:
    """Names of the mapping files that are shipped."""
    return sorted(path.name.removesuffix(".yaml") for path in _presets().iterdir() if path.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """A mapping file that is shipped.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in preset_names():
        raise ValueError(
            f"--preset: there is no {name!r}; there are: {', '.join(preset_names())}; or write a file for --mapping"
        )
    return str((_presets() / f"{name}.yaml").read_text(encoding="utf-8"))


def load_mapping(preset: str | None, path: Path | None) -> DataMapping:
    """A shipped mapping file, or the user's own.

    Raises:
        ValueError: If not exactly one is named, or it is no mapping file.
        FileError: If the file cannot be read.
    """
    if (preset is None) == (path is None):
        raise ValueError(f"name one of --preset ({', '.join(preset_names())}) and --mapping FILE")
    if preset is not None:
        return parse_mapping(preset_text(preset), preset)
    assert path is not None
    try:
        return parse_mapping(read_bounded(path, MAX_BYTES).decode(), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8") from None


def parse_mapping(text: str, where: str) -> DataMapping:
    """Read a mapping file.

    Args:
        text: YAML.
        where: Its name, for messages.

    Raises:
        ValueError: Naming the entry that is wrong, in one line.
    """
    try:
        body = yaml.load(text, UniqueKeyLoader)  # a safe loader
        if not isinstance(body, dict):
            raise FieldError(f"must map names to values, not {describe(body)}")
        if "schemas" not in body:  # a single form, whose entries may stand at the top
            body["schemas"] = [{key: body.pop(key) for key in _SCHEMA if key in body and key != "name"}]
        _check_keys(body, _MAPPING)
        schemas = tuple(_schema(one, f"schemas[{i}]") for i, one in enumerate(_list(body, "schemas")))
        if not schemas:
            raise FieldError("schemas: is empty")
        return _mapping(text, body, schemas)
    except (FieldError, yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{where}: not a mapping file: {' '.join(str(error).split())}") from None


def _mapping(text: str, body: dict[str, Any], schemas: tuple[Schema, ...]) -> DataMapping:
    texts = _texts(body, ("about", "name", "licence", "source", "images"))
    _check_below(texts["images"], "images")
    if (use := body.get("use", "training")) not in USES:
        raise FieldError(f"use: is {describe(use)}; there are: {', '.join(USES)}")
    splits = {str(key): str(value) for key, value in _dict(body, "splits", {"*": "train"}).items()}
    for name in splits.values():
        if not SPLIT_NAME.fullmatch(name):
            raise FieldError(f"splits: {name!r:.80} must be 1-100 letters, digits, '_' or '-'")
    return DataMapping(
        text=text,
        **texts,
        schemas=schemas,
        taxonomy=_taxonomy(body.get("categories"), texts["name"]),
        testing_only=use == USES[1],
        files=tuple(_files(one) for one in _list(body, "files", [])),
        splits=splits,
        cut=check_cut(_dict(body, "cut", {})),
    )


def check_cut(cut: Mapping[str, Any]) -> dict[str, float]:
    """Shares that are cut from train.

    Raises:
        FieldError: If they are no shares.
    """
    for name, share in cut.items():
        if (
            not SPLIT_NAME.fullmatch(str(name))
            or isinstance(share, bool)
            or not isinstance(share, (int, float))
            or not 0 <= share < 1
        ):
            raise FieldError(f"cut: {name}: {describe(share)} is not a share between 0 and 1 of a split")
    if sum(cut.values()) >= 1 or "train" in cut:
        raise FieldError("cut: the shares must leave something of train, which is not named itself")
    return {str(name): float(share) for name, share in cut.items()}


def _schema(body: Any, where: str) -> Schema:
    if not isinstance(body, dict):
        raise FieldError(f"{where}: must have fields, and is {describe(body)}")
    _check_keys(body, _SCHEMA, where)
    if ("fields" in body) == ("records" in body):
        raise FieldError(f"{where}: needs one of fields and records")
    every = [body["fields"]] if "fields" in body else _list(body, "records")
    records = tuple(_fields(fields, where) for fields in every)
    skip = {str(key): str(value) for key, value in _dict(body, "skip", {}).items()}
    pair_by = tuple(map(str, _list(body, "pair_by", [])))
    for name in pair_by:
        if name not in records[0]:
            raise FieldError(f"{where}.pair_by: {name!r:.80} is no field of the record")
    if (unpaired := body.get("unpaired", "drop")) not in ("drop", "keep"):
        raise FieldError(f"{where}.unpaired: is {describe(unpaired)}; there are: drop, keep")
    if pair_by and (len(records) > 1 or body.get("each")):
        raise FieldError(f"{where}.pair_by: does not go with records or each")
    texts = _texts(body, ("name", "rows", "each"))
    return Schema(**texts, records=records, skip=skip, pair_by=pair_by, keep_unpaired=unpaired == "keep")


def _fields(body: Any, where: str) -> dict[str, Field]:
    if not isinstance(body, dict) or not body:
        raise FieldError(f"{where}.fields: must map fields to columns, and is {describe(body)}")
    fields: dict[str, Field] = {}
    for name, options in body.items():
        if not _FIELD.fullmatch(str(name)):
            per = ", ".join(f"{one}_N" for one in OF_RESPONSE)
            raise FieldError(
                f"{where}.fields: {name!r:.80} is no field of a record; there are: {', '.join(_OF_RECORD)}, {per}"
            )
        try:
            fields[str(name)] = Field.parse(options)
        except FieldError as error:
            raise FieldError(f"{where}.fields.{name}: {error}") from None
    if "question" not in fields and "conversation" not in fields:
        raise FieldError(f"{where}.fields: needs a question or a conversation")
    return fields


def _taxonomy(body: Any, name: str) -> Taxonomy | None:
    if body is None:
        return None
    if body == BEAVERTAILS_V.name:
        return BEAVERTAILS_V
    if not isinstance(body, list) or not all(isinstance(one, str) for one in body):
        raise FieldError(f"categories: must be a list of names or {BEAVERTAILS_V.name}, not {describe(body)}")
    return Taxonomy(name, tuple(body))


def _files(body: Any) -> Files:
    body = {"pattern": body} if isinstance(body, str) else body
    if not isinstance(body, dict) or "pattern" not in body:
        raise FieldError(f"files: {describe(body)} has no pattern")
    _check_keys(body, ("pattern", "split", "images"), "files")
    texts = _texts(body, ("pattern", "split", "images"))
    _check_below(texts["images"], "files: images")
    return Files(**texts)


def _texts(body: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """Entries that are texts or numbers; "" for those that are not there."""
    for key in keys:
        if isinstance(body.get(key), (list, dict, bool)):
            raise FieldError(f"{key}: must be text, not {describe(body[key])}")
    return {key: str("" if body.get(key) is None else body[key]) for key in keys}


def _check_below(folder: str, where: str) -> None:
    """A folder that a mapping names is below that of the data; another one is the user's to name."""
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts:
        raise FieldError(f"{where}: {folder!r:.80} must be below the folder of the data; name another with --images")


def _check_keys(body: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    for key in body:
        if key not in known:
            raise FieldError(f"{f'{where}: ' if where else ''}{key!r:.80} is no entry; there are: {', '.join(known)}")


def _list(body: Mapping[str, Any], key: str, default: list[Any] | None = None) -> list[Any]:
    value = body.get(key, default)
    if not isinstance(value, list):
        raise FieldError(f"{key}: must be a list, not {describe(value)}")
    return value


def _dict(body: Mapping[str, Any], key: str, default: dict[str, Any]) -> dict[str, Any]:
    value = body.get(key, default)
    if not isinstance(value, dict):
        raise FieldError(f"{key}: must map names to values, not {describe(value)}")
    return value


def _presets() -> Any:
    return resources.files("safe_rlhf_v.ingest") / "presets"
