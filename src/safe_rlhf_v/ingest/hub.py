"""The rows of a data set on the Hugging Face Hub, through the ``datasets`` library, as a stream."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safe_rlhf_v.ingest.rows import Row
from safe_rlhf_v.ingest.sources import BATCH, Batches, Part, arrow_rows
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.records.packages import package

NAME = re.compile(r"[\w.-]+/[\w.-]+")
_T = TypeVar("_T")


class SourceInterrupted(OSError):
    """A source could not be read to its end; what was imported so far is kept, and the same command goes on."""


def hub_parts(name: str, revision: str | None, images: Path | None) -> tuple[list[Part], str]:
    """The configurations and splits of a data set, and its commit.

    Args:
        name: Its name, ``owner/name``, or a local folder that is laid out in the same way.
        revision: Commit, tag or branch; ``None``: the newest.
        images: Folder of the pictures that rows name.

    Raises:
        TableError: If it cannot be found, or the library is not installed.
    """
    datasets = package("datasets", "data")
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    commit = "" if Path(name).is_dir() else _asked(name, lambda: _commit(name, revision))
    if commit:
        options = {"revision": commit}  # the same data in every part, and when an interrupted import goes on
    parts: list[Part] = []
    for config in _asked(name, lambda: datasets.get_dataset_config_names(name, **options)):
        parts += [_part(name, config, split, options, images) for split in _splits(name, config, options)]
    return parts, commit


def _splits(name: str, config: str, options: dict[str, Any]) -> list[str]:
    datasets = package("datasets", "data")
    return list(_asked(name, lambda: datasets.get_dataset_split_names(name, config, **options)))


def _part(name: str, config: str, split: str, options: dict[str, Any], images: Path | None) -> Part:
    datasets = package("datasets", "data")

    def stream() -> Any:
        data = _asked(name, lambda: datasets.load_dataset(name, config, split=split, streaming=True, **options))
        return data.with_format("arrow")  # pictures stay encoded

    def present(_: str) -> list[str]:
        data = stream()
        return list(data.column_names or next(iter(data.iter(batch_size=1))).column_names)

    def batches(start: int, columns: Sequence[str] | None) -> Iterator[list[Row]]:
        first = start
        data = stream()
        if columns is not None:
            data = data.select_columns([one for one in present("") if one in columns])
        batch_iterator = iter((data.skip(start) if start else data).iter(batch_size=BATCH))
        while (table := _read(name, lambda: next(batch_iterator, None), first)) is not None:
            yield arrow_rows(table, first)
            first += table.num_rows

    folder = "" if config == "default" else config
    about = f"{name} {config} {split} {options}"
    return Part(
        f"{folder or 'data'}/{split}",
        folder,
        split,
        _count(name, config, split, options),
        about,
        images,
        present,
        _any(batches),
    )


def _any(batches: Batches) -> Callable[[str], Batches]:
    return lambda _: batches


def _count(name: str, config: str, split: str, options: dict[str, Any]) -> int | None:
    """Number of rows, if the data set's card states it."""
    datasets = package("datasets", "data")

    try:
        info = datasets.load_dataset_builder(name, config, **options).info
        return int(info.splits[split].num_examples) if info.splits and info.splits[split].num_examples else None
    except Exception:  # a missing or wrong card is no reason not to read the rows
        return None


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name, revision=revision).sha)


def _asked(name: str, ask: Callable[[], _T]) -> _T:
    """What the library gives; its many kinds of errors become one line."""
    try:
        return ask()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise TableError(
            f"{name}: no file or folder, and as a name on the Hub it cannot be read ({type(error).__name__}: {reason:.200})"
        ) from None


def _read(name: str, ask: Callable[[], _T], row: int) -> _T:
    try:
        return ask()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SourceInterrupted(
            f"{name}: broke off behind row {row} ({type(error).__name__}: {reason:.200}); the same command goes on from there"
        ) from None
