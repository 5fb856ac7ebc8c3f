"""The data card: a Markdown page beside the shards that says what is in them, what was left out, and why."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from safe_rlhf_v.ingest.contact_sheet import contact_sheet
from safe_rlhf_v.ingest.ledger import NEAR, TRAIN, Ledger
from safe_rlhf_v.ingest.mapping import DataMapping
from safe_rlhf_v.ingest.statistics import QUANTILES, quantiles
from safe_rlhf_v.records.markdown import escaped, table
from safe_rlhf_v.records.taxonomy import LEVEL_NAMES
from safe_rlhf_v.shards.manifest import Manifest
from safe_rlhf_v.shards.target import CARD, CONTACT_SHEET

MAX_VALUES = 40
"""Rows of a table; the rarer values are added up."""
BAR = 20


def write_card(manifest: Manifest, ledger: Ledger, mapping: DataMapping, bad: int, root: Path) -> dict[str, bytes]:
    """The card and, if there are pictures, the contact sheet, by file name.

    Args:
        manifest: What the shards hold.
        ledger: What happened while they were written.
        mapping: How the columns were read.
        bad: Number of rows that could not be used.
        root: Folder of the shards.
    """
    sheet = contact_sheet([(split, place, i) for _, _, split, place, i in sorted(ledger.pictures, reverse=True)], root)
    sections = [
        _head(manifest),
        _splits(manifest, notes_of(ledger, mapping)),
        _left_out(ledger, bad),
        _pictures(ledger, bool(sheet)),
        "## Labels\n\nCounts per split.\n\n" + "\n\n".join(_histograms(manifest, ledger)),
        _lengths(ledger),
        f"## Mapping\n\nWhich column became which field (SHA-256 {mapping.sha256}):\n\n{_fenced(mapping.text)}",
    ]
    files = {CARD: ("\n\n".join(sections) + "\n").encode(errors="replace")}
    return {**files, CONTACT_SHEET: sheet} if sheet else files


def notes_of(ledger: Ledger, mapping: DataMapping) -> list[str]:
    """What a user should know about splits, pictures and rows left out, a line each."""
    records = {
        name: len(one.counts["safer"]) and one.counts["safer"].total() for name, one in ledger.statistics.splits.items()
    }
    notes = []
    for name, share in mapping.cut.items():
        if name in ledger.fixed or TRAIN not in records:
            continue
        count = records.get(name, 0)
        few = "" if count else "; no picture fell into it: give a larger share with --cut"
        notes.append(f"{name}: {count} records cut from train by hash of the picture (share {share:g}){few}")
    if ledger.reused:
        notes.append(
            f"{ledger.images} distinct pictures in {len(ledger.files)} distinct files; {ledger.reused} further uses of the "
            "same pixels share one image id"
        )
    notes += [f"left out: {count} rows: {reason}" for reason, count in sorted(ledger.dropped.items())]
    for split, count in ledger.alike().items():
        notes.append(
            f"warning: {count} pictures of {split} look like one of train (perceptual hashes differ in at most {NEAR} of 64 "
            "bits); they were kept"
        )
    if count := ledger.alike_in_train():
        notes.append(f"note: {count} pictures of train have the perceptual hash of another one; they were kept")
    if mapping.testing_only:
        notes.append("testing only: training commands refuse this data set")
    return notes


def _head(manifest: Manifest) -> str:
    about = {
        "Name": manifest.name,
        "Licence": manifest.licence,
        **{key.capitalize(): v for key, v in manifest.origin.items()},
    }
    scale = "; ".join(f"{level:+d} {name}" if level else f"0 {name}" for level, name in LEVEL_NAMES.items())
    return (
        f"# {escaped(manifest.name)}\n\n{table(('', ''), about.items())}\n\n"
        f"Safety levels: {scale}; below 0 is harmful. This page was written by the import; the labels are those of the source."
    )


def _splits(manifest: Manifest, notes: Sequence[str]) -> str:
    rows = [
        (name, one.samples, one.groups, len(one.shards), f"{sum(shard.bytes for shard in one.shards) / 1e6:.1f}")
        for name, one in manifest.splits.items()
    ]
    lines = "\n".join(f"- {escaped(note)}" for note in notes)
    return f"## Splits\n\n{table(('Split', 'Records', 'Image groups', 'Shards', 'MB'), rows)}\n\n{lines}".rstrip()


def _left_out(ledger: Ledger, bad: int) -> str:
    rows = (
        [("cannot be used (damaged picture, wrong or missing value); see the list of bad rows", bad, "")] if bad else []
    )
    for reason, count in sorted(ledger.dropped.items()):
        examples = ", ".join(f"{one.part} {one.row}" for one in ledger.examples[reason])
        rows.append((reason, count, examples + (", ..." if count > len(ledger.examples[reason]) else "")))
    return "## Left out\n\n" + (table(("Reason", "Rows", "Part and row"), rows) if rows else "Nothing.")


def _pictures(ledger: Ledger, sheet: bool) -> str:
    contact_sheet = f"\n\nA choice by hash:\n\n![Some of the pictures]({CONTACT_SHEET})" if sheet else ""
    return f"## Pictures\n\n{ledger.images} distinct pictures in {len(ledger.files)} distinct files.{contact_sheet}"


def _histograms(manifest: Manifest, ledger: Ledger) -> Iterable[str]:
    """One table per field, values in rows and splits in columns."""
    fields: dict[str, dict[str, Counter[str]]] = {}
    for split, one in manifest.splits.items():
        for field, counts in one.histograms.items():
            fields.setdefault(field, {})[split] = Counter(counts)
    for split, statistics in ledger.statistics.splits.items():
        for field, more in statistics.counts.items():
            fields.setdefault(field, {})[split] = more
    splits = list(manifest.splits)
    for field, by_split in fields.items():
        total: Counter[str] = sum((by_split[split] for split in splits if split in by_split), Counter())
        if not total:
            continue
        largest = max(total.values())
        values = (
            sorted(total, key=_order)
            if len(total) <= MAX_VALUES
            else [value for value, _ in total.most_common(MAX_VALUES)]
        )
        rows = [
            (value, *(by_split.get(split, Counter())[value] for split in splits), f"{total[value] / total.total():.1%}",
             "█" * round(BAR * total[value] / largest))
            for value in values
        ]  # fmt: skip
        if rest := len(total) - len(values):
            others = [sum(count for value, count in by_split.get(s, {}).items() if value not in values) for s in splits]
            rows.append((f"{rest} others", *others, f"{sum(others) / total.total():.1%}", ""))
        yield f"### {escaped(field)}\n\n{table((field, *splits, 'Share', ''), rows)}"


def _order(value: str) -> tuple[int, float, str]:
    """Numbers by their size, then texts."""
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def _lengths(ledger: Ledger) -> str:
    rows = [
        (measure, split, len(values), *quantiles(values))
        for split, statistics in ledger.statistics.splits.items()
        for measure, values in statistics.lengths.items()
        if values
    ]
    heads = ("", "Split", "Number", *(f"{q} %" for q in QUANTILES))
    return "## Lengths\n\n" + table(heads, sorted(rows))


def _fenced(text: str) -> str:
    fence = "`" * (1 + max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=2))
    fence = fence if len(fence) > 2 else "```"
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"
