"""``python -m safe_rlhf_v shards import`` and ``presets``: data of others, and your own, as shards."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safe_rlhf_v.commands.options import AnyPath
from safe_rlhf_v.commands.runner import refuse, run
from safe_rlhf_v.ingest import folder
from safe_rlhf_v.ingest.bad_rows import Imported
from safe_rlhf_v.ingest.mapping import check_cut, load_mapping, parse_mapping, preset_names, preset_text
from safe_rlhf_v.records.user_files import printable
from safe_rlhf_v.shards.manifest import Manifest

EXAMPLES = (
    "shards import saferlhf-v/BeaverTails-V --preset beavertails-v --out data/beavertails_v",
    "shards import downloads/mine --mapping mine.yaml --out data/mine",
    "shards import --table mine.csv --images pictures --name mine --licence CC0-1.0 --out data/mine",
)
ABOUT = f"""\
SOURCE is a folder, a Parquet, CSV, JSONL or JSON file, a WebDataset shard (.tar), or the name of a data set on the Hugging
Face Hub, of which only the batch at hand is in memory. A mapping says which column becomes which field: one of the presets
('shards presets' lists them), or a file of your own. An import that was interrupted goes on with the same command.

With --table instead: {folder.__doc__}"""


def main(args: Sequence[str]) -> int:
    """Run ``shards import``; returns the exit status."""
    return run(
        import_data, args, name="shards import", show=show_imported, examples=EXAMPLES, about=ABOUT, first="source"
    )


def presets(args: Sequence[str]) -> int:
    """Run ``shards presets``; returns the exit status."""
    if len(args) > 1 or (args and args[0].startswith("-")):
        print(
            "usage: python -m safe_rlhf_v shards presets [NAME]\n\n"
            "Lists the mappings of public data sets, or prints one to be copied."
        )
        return 0 if args[0] in ("-h", "--help") else 2
    try:
        if args:
            print(preset_text(args[0]), end="")
        else:
            for name in preset_names():
                print(f"{name:<16}{parse_mapping(preset_text(name), name).about}")
    except ValueError as error:
        return refuse(error)
    return 0


def import_data(
    out: AnyPath,
    source: str | None = None,
    preset: str | None = None,
    mapping: AnyPath | None = None,
    table: AnyPath | None = None,
    images: AnyPath | None = None,
    name: str | None = None,
    licence: str | None = None,
    categories: Sequence[str] = (),
    fractions: dict[str, float] | None = None,
    cut: dict[str, float] | None = None,
    revision: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    bad_rows: AnyPath | None = None,
) -> Imported:
    """Write shards from a public data set, or from data of your own.

    Args:
        out: Folder to create.
        source: Folder, file, or name on the Hugging Face Hub; it may also stand first, without --source.
        preset: Name of a mapping that is shipped.
        mapping: Mapping file of your own.
        table: CSV or JSONL file with the columns below, instead of a source.
        images: Folder of the pictures that rows name.
        name: Name of the data set; needed with --table, else that of the mapping.
        licence: Licence of the data, kept in the manifest; needed with --table, else that of the mapping.
        categories: Harm categories that may occur in the table; a mapping states its own.
        fractions: Split shares for rows of the table without a split, applied by hash of the picture.
        cut: Shares that are cut from train by hash of the picture, as in {validation: 0.02}; else those of the mapping.
        revision: Commit, tag or branch on the Hub; without it the newest.
        on_bad_row: What happens to a row that cannot be used: error writes nothing, skip leaves it out.
        bad_rows: File that lists such rows; without it a file beside the output that ends in .bad_rows.jsonl.

    Raises:
        TableError: If the data cannot be read, or (``BadRowsError``) rows cannot be used.
        ShardError: If ``out`` cannot be written.
        ValueError: If options are missing or contradict each other.
    """
    listed = None if bad_rows is None else Path(bad_rows)
    if table is not None:
        _refuse_others(
            "--table",
            {"SOURCE": source, "--preset": preset, "--mapping": mapping, "--cut": cut, "--revision": revision},
        )
        if missing := [
            option
            for option, value in (("--images", images), ("--name", name), ("--licence", licence))
            if value is None
        ]:
            raise ValueError(f"--table needs {', '.join(missing)}, too")
        labels: dict[str, Any] = {"name": name, "licence": licence, "categories": categories, "fractions": fractions}
        return folder.import_folder(
            Path(table), Path(images or ""), Path(out), **labels, on_bad_row=on_bad_row, bad_rows=listed
        )
    from safe_rlhf_v.ingest.dataset import import_dataset, overridden

    if source is None or not source.strip():
        raise ValueError(
            "name a SOURCE (a folder, a file, or a data set on the Hub) with --preset or --mapping, or a --table"
        )
    _refuse_others("SOURCE", {"--categories": categories or None, "--fractions": fractions})
    chosen = load_mapping(preset, None if mapping is None else Path(mapping))
    chosen = overridden(chosen, name, licence, None if cut is None else check_cut(cut))
    pictures = None if images is None else Path(images)
    more: dict[str, Any] = {"images": pictures, "revision": revision, "on_bad_row": on_bad_row, "bad_rows": listed}
    return import_dataset(source, Path(out), chosen, **more)


def _refuse_others(one: str, others: Mapping[str, object]) -> None:
    if wrong := [option for option, value in others.items() if value is not None]:
        raise ValueError(f"{one} does not go with {', '.join(wrong)}")


def show_imported(imported: Imported) -> str:
    """What is printed after an import."""
    to = imported.folder
    check = f"python -m safe_rlhf_v shards check {shlex.quote(str(to))}"
    lines = [f"{imported.records} records written to {to}; compare their labels with: {check}"]
    if imported.skipped:
        lines.append(f"{imported.skipped} rows left out; they are listed in {imported.bad_rows}")
    for name, split in Manifest.load(to).splits.items():
        if len(numbers := split.histograms["responses"]) > 1:
            counts = ", ".join(f"{count} with {number}" for number, count in numbers.items())
            lines.append(
                f"note: records of {name!r} differ in their responses ({counts}); preference training takes one number"
            )
    return "\n".join([*lines, *map(printable, imported.notes)])
