"""``python -m safe_rlhf_v shards``: write, look at and check shard folders."""

import argparse
import contextlib
import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from tqdm import tqdm

from safe_rlhf_v.commands.argument_types import path, whole
from safe_rlhf_v.records.user_files import printable
from safe_rlhf_v.shards.manifest import Manifest, ShardError

if TYPE_CHECKING:
    from safe_rlhf_v.ingest.bad_rows import Imported

EXAMPLES = """examples:
  python -m safe_rlhf_v shards inspect data/world                  # counts and label histograms
  python -m safe_rlhf_v shards check data/world                    # recompute everything, list every problem
  python -m safe_rlhf_v shards import --table mine.csv --images pictures --name mine --licence CC0-1.0 --out data/mine
"""
CHECKS = (
    "recompute everything, list every problem; exit status 1 for errors (damage, broken records, an image in two splits). Labels "
    "of a record that contradict each other are warnings, as noisy labels are normal."
)
SHOWN_ERRORS, SHOWN_WARNINGS = 50, 3  # the latter of each kind


def main(argv: list[str]) -> int:
    """Run one of the ``shards`` commands; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v shards",
        description="Image-text shards: plain WebDataset tar files with a manifest.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("inspect", "print counts and label histograms"), ("check", CHECKS)):
        command = commands.add_parser(name, help=about.partition(";")[0], description=about)
        command.add_argument("path", type=path, help="shard folder")
        if name == "check":
            command.add_argument("--report", type=path, help="file to write everything found to, one JSON line each")
    _add_imports(commands)
    options = parser.parse_args(argv)
    run = {"inspect": _inspect, "check": _check, "import": _import, "import-ordinal": _import_ordinal}
    try:
        return run[options.command](options)
    except OSError as error:
        print(f"error: {error.filename or 'disk'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        for problem in getattr(error, "problems", ()):
            print(problem, file=sys.stderr)
        if more := getattr(error, "more", 0):
            print(f"... and {more} more problems", file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_imports(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The two commands that turn other people's files into shards."""
    from safe_rlhf_v.ingest import folder

    for name, about, text in (
        ("import", "a folder of images and a table of questions, responses and labels", folder.__doc__),
        ("import-ordinal", "pictures with one ordered label each, as preference pairs", None),
    ):
        command = commands.add_parser(
            name, help=about, description=text or about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--table", type=path, required=True, help=".csv or .jsonl file")
        command.add_argument("--images", type=path, required=True, help="folder of the images")
        command.add_argument("--out", type=path, required=True, help="folder to create")
        command.add_argument("--name", required=True, help="name of the data set")
        command.add_argument("--licence", required=True, help="licence of the data (kept in the manifest)")
        command.add_argument(
            "--on-bad-row",
            choices=("error", "skip"),
            default="error",
            help="a row that cannot be used: write nothing, or leave it out (%(default)s)",
        )
        command.add_argument(
            "--bad-rows", type=path, metavar="FILE", help="where such rows are listed (default: OUT.bad_rows.jsonl)"
        )
        if name == "import":
            command.add_argument("--categories", nargs="*", default=[], help="harm categories that may occur")
        else:
            command.add_argument(
                "--template", type=path, required=True, help="JSON with questions and claims per level"
            )
            command.add_argument("--id-column", default="id", help="column that names the picture (%(default)s)")
            command.add_argument("--label-column", default="label", help="column with the level (%(default)s)")
            command.add_argument("--pattern", default="{}.jpg", help="file name, {} is the id (%(default)s)")
            command.add_argument(
                "--pairs", type=int, default=4, help="pairs per picture of the commonest level (%(default)s)"
            )
            command.add_argument("--seed", type=whole(0), default=0, help="of claims and wordings (%(default)s)")


def _import(options: argparse.Namespace) -> int:
    from safe_rlhf_v.ingest.folder import import_folder

    found = import_folder(
        options.table,
        options.images,
        options.out,
        name=options.name,
        licence=options.licence,
        categories=options.categories,
        on_bad_row=options.on_bad_row,
        bad_rows=options.bad_rows,
    )
    _say_imported(options, found)
    for name, split in Manifest.load(options.out).splits.items():
        if len(numbers := split.histograms["responses"]) > 1:
            counts = ", ".join(f"{count} with {number}" for number, count in numbers.items())
            print(
                f"note: records of {name!r} differ in their responses ({counts}); preference training takes one number"
            )
    return 0


def _import_ordinal(options: argparse.Namespace) -> int:
    from safe_rlhf_v.ingest.ordinal import Template, import_ordinal

    found = import_ordinal(
        options.table,
        options.images,
        options.out,
        Template.load(options.template),
        name=options.name,
        licence=options.licence,
        id_column=options.id_column,
        label_column=options.label_column,
        pattern=options.pattern,
        pairs_per_image=options.pairs,
        seed=options.seed,
        on_bad_row=options.on_bad_row,
        bad_rows=options.bad_rows,
    )
    _say_imported(options, found)
    splits = Manifest.load(options.out).splits
    print("splits: " + ", ".join(f"{split.samples} {name}" for name, split in splits.items()))
    return 0


def _say_imported(options: argparse.Namespace, found: "Imported") -> None:
    print(f"{found.records} records written to {options.out}; compare their labels with 'shards check {options.out}'")
    if found.skipped:
        print(f"{found.skipped} rows left out; they are listed in {found.bad_rows}")


def _inspect(options: argparse.Namespace) -> int:
    manifest = Manifest.load(options.path)
    taxonomy = manifest.taxonomy
    named = f"{printable(taxonomy.name)}: {len(taxonomy.categories)} categories"
    print(f"{printable(manifest.name)}   licence {printable(manifest.licence)}   {named}")
    for name, value in manifest.origin.items():
        print(f"  {printable(name)}: {printable(value)}")
    print(f"\n{'split':<28}{'records':>9}{'images':>9}{'shards':>8}{'MB':>9}")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        print(f"{printable(name):<28}{split.samples:>9}{split.groups:>9}{len(split.shards):>8}{size:>9.1f}")
    for name, split in manifest.splits.items():
        print(f"\n{printable(name)}")
        for field, counts in split.histograms.items():
            total = sum(counts.values()) or 1  # a stranger's folder may state anything
            cells = "  ".join(f"{printable(value)}: {count} ({count / total:.1%})" for value, count in counts.items())
            print(f"  {printable(field):<16}{cells}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from safe_rlhf_v.shards.check import examine
    from safe_rlhf_v.shards.contradictions import KINDS

    if not options.path.is_dir():
        raise ShardError(f"{options.path}: no such folder")
    counts: Counter[tuple[str, str]] = Counter()
    report = None if options.report is None else options.report.open("x", encoding="utf-8")
    with contextlib.nullcontext() if report is None else report:
        for finding in examine(options.path, progress=True):
            group = (finding.severity, finding.kind)
            counts[group] += 1
            if report is not None:
                report.write(json.dumps(asdict(finding), ensure_ascii=False) + "\n")
            if counts[group] <= (SHOWN_ERRORS if finding.severity == "error" else SHOWN_WARNINGS):
                tqdm.write(printable(f"{finding.severity}: {finding}"))
    errors = sum(count for (severity, _), count in counts.items() if severity == "error")
    if errors > SHOWN_ERRORS:
        print(f"... and {errors - SHOWN_ERRORS} more errors")
    contradictions = [
        f"{counts['warning', kind]} x {about}" for kind, about in KINDS.items() if counts["warning", kind]
    ]
    if contradictions:
        print("labels that contradict each other: " + "; ".join(contradictions))
        print("noisy labels do that; if no noise is expected, see to their source. Training uses them as they are.")
    if sum(counts.values()) > min(errors, SHOWN_ERRORS) and options.report is None:
        print("--report FILE writes all of them, one JSON line each")
    print(f"{options.path}: {errors} error(s)" if errors else f"{options.path}: no error")
    return int(bool(errors))
