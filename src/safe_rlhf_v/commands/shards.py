"""``python -m safe_rlhf_v shards``: write, look at and check shard folders."""

import contextlib
import errno
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from safe_rlhf_v.commands import shards_demonstrate, shards_import
from safe_rlhf_v.commands.options import AnyPath, NonNegativeInt
from safe_rlhf_v.commands.runner import dispatch, run
from safe_rlhf_v.commands.shards_import import show_imported
from safe_rlhf_v.ingest.bad_rows import Imported
from safe_rlhf_v.records.user_files import printable, whole_file
from safe_rlhf_v.shards.manifest import Manifest, ShardError

SHOWN_ERRORS = 50
SHOWN_WARNINGS = 3
"""Of each kind."""


def main(args: Sequence[str]) -> int:
    """Run one of the ``shards`` commands; returns the exit status."""
    commands = {
        "inspect": (_inspect, "print counts and label histograms"),
        "check": (_check, "recompute everything, list every problem"),
        "import": (shards_import.main, "a public data set, or images and a table of your own"),
        "presets": (shards_import.presets, "the public data sets that import knows, and how it reads their columns"),
        "import-ordinal": (_import_ordinal, "pictures with one ordered label each, as preference pairs"),
        "demonstrate": (shards_demonstrate.main, "the prompts of a split with responses from a file, to be imitated"),
    }
    return dispatch("shards", commands, args)


def _inspect(args: Sequence[str]) -> int:
    examples = ("shards inspect data/world",)
    return run(inspect_shards, args, name="shards inspect", show=_table, examples=examples, positional=True)


def _check(args: Sequence[str]) -> int:
    return run(
        check_shards,
        args,
        name="shards check",
        show=_summary,
        examples=("shards check data/world", "shards check data/mine --report problems.jsonl"),
        positional=True,
        status=lambda checked: int(checked.errors > 0),
    )


def _import_ordinal(args: Sequence[str]) -> int:
    example = "shards import-ordinal --config leaves.yaml --label_column severity --out data/leaves"
    return run(import_ordinal, args, name="shards import-ordinal", show=_imported_splits, examples=(example,))


# --- looking at shards ------------------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """What :func:`check_shards` gives.

    Attributes:
        path: The shard folder.
        counts: Findings by severity and kind.
        reported: Whether all of them were written to a file.
    """

    path: Path
    counts: Counter[tuple[str, str]]
    reported: bool

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(count for (severity, _), count in self.counts.items() if severity == "error")


def inspect_shards(path: AnyPath) -> Manifest:
    """Print counts and label histograms of a shard folder.

    A group holds the records of one picture, or of one prompt where there is none; it is never in two splits.

    Args:
        path: Shard folder.

    Raises:
        ShardError: If it is none.
    """
    return Manifest.load(Path(path))


def check_shards(path: AnyPath, report: AnyPath | None = None) -> Checked:
    """Recompute everything about a shard folder, and list every problem.

    The status is 1 for errors: damage, broken records, an image in two splits. Labels of a record that contradict each other
    are warnings, as noisy labels are normal.

    Args:
        path: Shard folder.
        report: File to write every finding to, one JSON line each.

    Raises:
        ShardError: If there is no such folder.
        FileExistsError: If there is a report of this name.
    """
    from safe_rlhf_v.shards.check import examine

    if not Path(path).is_dir():
        raise ShardError(f"{path}: no such folder")
    if report is not None and os.path.lexists(report):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(report))
    counts: Counter[tuple[str, str]] = Counter()
    with contextlib.nullcontext() if report is None else whole_file(Path(report)) as file:
        for finding in examine(Path(path), progress=True):
            group = (finding.severity, finding.kind)
            counts[group] += 1
            if file is not None:
                line = json.dumps(asdict(finding), ensure_ascii=False) + "\n"
                # A file name may not be UTF-8; JSON has the same escapes.
                file.write(line.encode(errors="backslashreplace"))
            if counts[group] <= (SHOWN_ERRORS if finding.severity == "error" else SHOWN_WARNINGS):
                tqdm.write(printable(f"{finding.severity}: {finding}"))
    return Checked(Path(path), counts, report is not None)


def _table(manifest: Manifest) -> str:
    taxonomy = manifest.taxonomy
    named = f"{printable(taxonomy.name)}: {len(taxonomy.categories)} categories"
    lines = [f"{printable(manifest.name)}   licence {printable(manifest.licence)}   {named}"]
    lines += [f"  {printable(name)}: {printable(value)}" for name, value in manifest.origin.items()]
    lines.append(f"\n{'split':<28}{'records':>9}{'groups':>9}{'shards':>8}{'MB':>9}")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        lines.append(f"{printable(name):<28}{split.samples:>9}{split.groups:>9}{len(split.shards):>8}{size:>9.1f}")
    for name, split in manifest.splits.items():
        lines.append(f"\n{printable(name)}")
        for field, counts in split.histograms.items():
            total = sum(counts.values()) or 1  # a stranger's folder may state anything
            cells = "  ".join(f"{printable(value)}: {count} ({count / total:.1%})" for value, count in counts.items())
            lines.append(f"  {printable(field):<16}{cells}")
    return "\n".join(lines)


def _summary(checked: Checked) -> str:
    from safe_rlhf_v.shards.contradictions import KINDS

    counts = checked.counts
    errors = checked.errors
    lines = [f"... and {errors - SHOWN_ERRORS} more errors"] if errors > SHOWN_ERRORS else []
    contradictions = [
        f"{counts['warning', kind]} x {about}" for kind, about in KINDS.items() if counts["warning", kind]
    ]
    if contradictions:
        lines.append("labels that contradict each other: " + "; ".join(contradictions))
        lines.append(
            "noisy labels do that; if no noise is expected, see to their source. Training uses them as they are."
        )
    if sum(counts.values()) > min(errors, SHOWN_ERRORS) and not checked.reported:
        lines.append("--report FILE writes all of them, one JSON line each")
    lines.append(f"{printable(checked.path)}: {f'{errors} error(s)' if errors else 'no error'}")
    return "\n".join(lines)


# --- other people's files ---------------------------------------------------------------------------------------------


def import_ordinal(
    table: AnyPath,
    images: AnyPath,
    out: AnyPath,
    template: AnyPath,
    name: str,
    licence: str,
    id_column: str = "id",
    label_column: str = "label",
    pattern: str = "{}.jpg",
    pairs: int = 4,
    seed: NonNegativeInt = 0,
    on_bad_row: Literal["error", "skip"] = "error",
    bad_rows: AnyPath | None = None,
) -> Imported:
    """Turn pictures with one ordered label each into preference pairs, by picture in train, validation and test.

    Args:
        table: CSV or JSONL file with one row per picture.
        images: Folder of the pictures.
        out: Folder to create.
        template: JSON file with questions, and claims per level.
        name: Data set name.
        licence: Licence of the data, kept in the manifest.
        id_column: Column that names the picture.
        label_column: Column with the level, from 0 on.
        pattern: File name of a picture; {} is the id.
        pairs: Pairs per picture of the most frequent level; rarer levels get more, up to five times as many.
        seed: Seed of claims and wordings.
        on_bad_row: What happens to a row that cannot be used: error writes nothing, skip leaves it out.
        bad_rows: File that lists such rows; without it a file beside the output that ends in .bad_rows.jsonl.

    Raises:
        TableError: If the table cannot be read, or (``BadRowsError``) rows cannot be used.
        ShardError: If ``out`` cannot be written.
        ValueError: If there is no folder of images, or an option makes no sense.
    """
    from safe_rlhf_v.ingest import ordinal

    return ordinal.import_ordinal(
        Path(table),
        Path(images),
        Path(out),
        ordinal.Template.load(Path(template)),
        name=name,
        licence=licence,
        id_column=id_column,
        label_column=label_column,
        pattern=pattern,
        pairs_per_image=pairs,
        seed=seed,
        on_bad_row=on_bad_row,
        bad_rows=None if bad_rows is None else Path(bad_rows),
    )


def _imported_splits(imported: Imported) -> str:
    splits = Manifest.load(imported.folder).splits
    return f"{show_imported(imported)}\nsplits: " + ", ".join(
        f"{split.samples} {name}" for name, split in splits.items()
    )
