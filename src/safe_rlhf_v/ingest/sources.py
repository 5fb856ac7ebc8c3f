"""The rows of a data set on disk: Parquet, CSV, JSONL, JSON files or WebDataset shards, laid out as on the Hugging Face Hub.

Rows come in small batches, and reading may begin at any row: nothing is ever held whole.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from safe_rlhf_v.ingest.json_rows import json_rows
from safe_rlhf_v.ingest.mapping import DataMapping, Schema
from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.ingest.tar_rows import scan, tar_rows
from safe_rlhf_v.records.packages import package
from safe_rlhf_v.records.user_files import printable

BATCH = 32
SUFFIXES = (".parquet", ".jsonl", ".csv", ".tar", ".json")  # a folder of shards often has JSON files about them
_NUMBERED = re.compile(r"(?P<split>.+?)[-_]\d{5}[-_]of[-_]\d{5}([-_.][0-9a-f]+)?")
_NUMBERED_SHARD = re.compile(r"(?P<split>.+?)[-_.]\d{2,}")

Batches = Callable[[int, Sequence[str] | None], Iterator[list[Row]]]


class Part(NamedTuple):
    """One file of a data set, or one split of it on the Hub.

    Attributes:
        name: Its path below the source, or its configuration and split.
        config: Name of its folder or configuration; "" for none.
        split: Its split, as the source calls it; "" if nothing says it.
        rows: Number of rows, if it is known without reading.
        identity: What tells whether it is the same as last time.
        images: Folder of the pictures that its rows name.
        present: Columns of its first rows, given the entry of a JSON object that holds them.
        batches: Its rows from the given number on (0 is the first), and only these columns of them, if they are stated.
    """

    name: str
    config: str
    split: str
    rows: int | None
    identity: str
    images: Path | None
    present: Callable[[str], list[str]]
    batches: Callable[[str], Batches]

    @property
    def slug(self) -> str:
        """Its name as it may stand in a key; a file and the split of the Hub that it is have the same."""
        name = re.sub(r"\.(parquet|jsonl|json|csv|tar)(?=:|$)", "", self.name.removeprefix("data/"))
        short = re.sub("[^A-Za-z0-9_-]+", "-", name)
        if len(short) > 70 or short != re.sub("[/:]", "-", name):
            short = f"{short[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return short

    def key(self, row: int) -> str:
        """Key of the record of a row."""
        return f"{self.slug}-{row:06d}"

    def read(self, schema: Schema, start: int, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        """Batches of rows from row ``start`` (0 is the first)."""
        return self.batches(schema.rows)(start, columns)


def local_parts(source: Path, mapping: DataMapping, images: Path | None) -> list[Part]:
    """The files of a data set on disk, by name.

    Args:
        source: A file, or a folder with files in it or below it.
        mapping: Says which files, and their splits.
        images: Folder of the pictures that rows name; ``None``: that of the mapping.

    Raises:
        TableError: If there are none.
    """
    if source.is_file():
        root = source.parent
        files = [source]
        if source.suffix.lower() not in SUFFIXES:
            raise TableError(f"{source}: data are {', '.join(SUFFIXES)} files, folders of them, or a name on the Hub")
    else:
        root = source
        every = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        every = [path for path in every if not any(part.startswith(".") for part in path.relative_to(root).parts)]
        files = _chosen(root, every, mapping)
    if not files:
        patterns = ", ".join(one.pattern for one in mapping.files) or ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise TableError(f"{source}: holds no data file ({patterns})")
    return [_part(root, path, mapping, images) for path in files]


def _chosen(root: Path, every: list[Path], mapping: DataMapping) -> list[Path]:
    """The files that the mapping names, or all of the first kind that there is."""
    if mapping.files:
        return [
            path for path in every if any(one.matches(PurePosixPath(path.relative_to(root))) for one in mapping.files)
        ]
    kind = next((suffix for suffix in SUFFIXES if any(path.suffix.lower() == suffix for path in every)), "")
    files = [path for path in every if path.suffix.lower() == kind]
    others = {path.suffix.lower() for path in every} - {kind, ".json"}  # JSON files mostly are about the data
    if others:
        tqdm.write(
            f"note: {printable(root)}: only the {len(files)} {kind} files are read, not the {len(every) - len(files)} others "
            f"({', '.join(sorted(others))}); a mapping with files: names them"
        )
    return files


def _part(root: Path, path: Path, mapping: DataMapping, images: Path | None) -> Part:
    relative = PurePosixPath(path.relative_to(root))
    about = mapping.files_of(relative)
    folders = [name for name in relative.parts[:-1] if name not in ("data", "default")]
    numbered = _NUMBERED.fullmatch(path.stem)
    if not numbered and path.suffix.lower() == ".tar":
        numbered = _NUMBERED_SHARD.fullmatch(path.stem)
    names = [about.split, numbered["split"] if numbered else path.stem, *reversed(folders)]
    split = next((name for name in names if name in mapping.splits), names[0] or names[1])
    config = next((name for name in reversed(folders) if name != split), "")
    stat = path.stat()
    identity = f"{relative} {stat.st_size} {stat.st_mtime_ns}"
    folder = images or root / (about.images or mapping.images)
    if path.suffix.lower() == ".parquet":
        file = _parquet(path)
        rows = file.metadata.num_rows
        columns = file.schema_arrow.names
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise TableError(f"{relative}: column {describe(twice[0])} occurs {len(twice)} times; rename one")
        return Part(
            str(relative), config, split, rows, identity, folder, lambda _: columns, lambda _: _parquet_batches(path)
        )
    if path.suffix.lower() == ".tar":
        shard = scan(path)
        return Part(
            str(relative),
            config,
            split,
            shard.rows,
            identity,
            folder,
            lambda _: shard.columns,
            lambda _: _in_batches(lambda start, columns: tar_rows(path, shard, start, columns)),
        )

    def rows_of(entry: str) -> Iterator[Row]:
        return json_rows(path, entry) if path.suffix.lower() == ".json" else read_table(path)

    def present(entry: str) -> list[str]:
        first = list(itertools.islice(rows_of(entry), 100))
        if not any(row.readable for row in first):
            problem = first[0].problems[0][1] if first else "there is none; get the file again, or move it away"
            raise TableError(f"{relative}: no row can be read: {problem}")
        return list(dict.fromkeys(name for row in first for name in row.cells))

    return Part(
        str(relative),
        config,
        split,
        None,
        identity,
        folder,
        present,
        lambda entry: _in_batches(lambda start, columns: itertools.islice(rows_of(entry), start, None)),
    )


def _in_batches(rows: Callable[[int, Sequence[str] | None], Iterator[Row]]) -> Batches:
    def batches(start: int, columns: Sequence[str] | None) -> Iterator[list[Row]]:
        left = rows(start, columns)
        while batch := list(itertools.islice(left, BATCH)):
            yield batch

    return batches


def _parquet(path: Path) -> Any:
    pa = package("pyarrow", "data")
    pq = package("pyarrow.parquet", "data")
    try:
        # Buffered and not read ahead: of a row group only the pages in use are in memory.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({' '.join(str(error).split()):.200})") from None


def _parquet_batches(path: Path) -> Batches:
    pa = package("pyarrow", "data")

    def batches(start: int, columns: Sequence[str] | None) -> Iterator[list[Row]]:
        file = _parquet(path)
        chosen = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
        first = 0
        groups = range(file.metadata.num_row_groups)
        while groups and first + file.metadata.row_group(groups[0]).num_rows <= start:
            first += file.metadata.row_group(groups[0]).num_rows
            groups = groups[1:]
        try:
            for batch in file.iter_batches(batch_size=BATCH, row_groups=list(groups), columns=chosen):
                skipped = min(max(start - first, 0), batch.num_rows)
                if rows := arrow_rows(batch.slice(skipped), first + skipped):
                    yield rows
                first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"{path}: damaged behind row {first} ({' '.join(str(error).split()):.200})") from None
        finally:
            file.close()

    return batches


def arrow_rows(batch: Any, first: int) -> list[Row]:
    """The rows of an Arrow batch or table.

    Args:
        batch: The batch.
        first: Number of its first row; 0 is the first of all.
    """
    return [Row(first + i + 1, first + i + 1, cells) for i, cells in enumerate(batch.to_pylist())]
