"""Is every number of the pages found in docs/evidence, or said to be a setting?

    python benchmarks/page_numbers.py [PAGE ...]

Comments that readers do not see say where numbers come from, each up to the next one or to the end of its section (then the
comment of the section around holds again):

    <!-- evidence: policy.json: runs.ppo_lag.test.harmful.mean, runs.dual_*.test.cost; settings: 0.3 95% -->
    <!-- evidence: gpu.json: ceilings.bytes_per_second / 1e12, reading.json: cases -->
    <!-- table: policy_tables.confirmed policy_confirm.json; table: pretrained/table.responses pretrained.json -->
    <!-- settings -->

``evidence`` names values by their keys, joined with dots: what begins so, ``*`` being anything (``?`` for a comma). A row of a
list is named by its texts, or by its place. Values may be combined with + - x / from left to right, a space on both sides, and
``mean KEYS`` is their mean. ``table`` names a function of a script here, which makes the table from the JSON files behind it;
whole rows are compared. A file's name with a ``*`` means all such files, as one list. ``settings`` are numbers that nobody
measured: options, definitions, arithmetic, examples.

A number has a decimal point, an exponent, a percent sign or a unit of time or memory, or stands in a table without a function. It
is found if a value, or 100 times the value before a percent sign, has it at the printed precision, whatever its sign. What is
found by accident: *another* says how many of the other numbers of the same form, from half to one and a half times as large,
would have been found as well.
"""

import importlib
import itertools
import json
import math
import operator
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence"
WRITTEN = {"_build", "api"}
"""Folders that building the site writes."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if not WRITTEN & {*page.relative_to(ROOT).parts}),
]
MARK = re.compile(r"<!--\s*((?:evidence|table|settings)\b.*?)\s*-->", re.DOTALL)
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1", re.MULTILINE | re.DOTALL)
SILENT = re.compile(  # code, comments, addresses, formulas, and numbers that name something
    r"`(?:[^`\n]|\n(?!\n))*`|<!--.*?-->|\]\([^)]*\)|https?://\S+|\$\$.*?\$\$|\$[^$\n]+\$"
    r"|\b(arXiv|DOI|doi|version|section|torch|transformers|lmms-eval|Python|CUDA|NC|BY):? ?[\d.]*\d|\b20[12]\d-\d\d-\d\d\b",
    re.DOTALL,
)
OPERATIONS = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.truediv}
AMOUNT = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"
UNIT = r"(?:[CG]PU[- ])?(?:milli)?(?:seconds|minutes|hours)\b|(?:ms|s|[kMGT]i?B)\b"
NUMBER = re.compile(
    rf"(?<![\w.,/#])(?<!\w-)(?P<amount>{AMOUNT})(?!\w|\.\d|-[A-Za-z])"
    rf"(?P<percent>(?=(?:\s*(?:,|and|or|to|against|±|\.\.|/)+\s*[-+]?{AMOUNT})*\s?%))?(?:[ -]?(?P<unit>{UNIT}))?"
)


class Number(NamedTuple):
    """A number as a page prints it."""

    written: str
    units: float
    """Its value in units of its last digit."""
    scale: float
    """What a value of the evidence is in these units."""

    def equals(self, value: float) -> bool:
        return abs(abs(value) * self.scale - self.units) <= 0.5 + 1e-6

    def chance(self, values: Iterable[float]) -> float:
        """Share of the other numbers of this form between half and one and a half times this one that some value has."""
        here = round(self.units)
        around = range(max(here - max(here // 2, 5), 0), here + max(here // 2, 5) + 1)
        near = {round(abs(value) * self.scale + end) for value in values for end in (-1e-6, 1e-6)}
        return len(near.intersection(around) - {here}) / (len(around) - 1)


@dataclass
class Region:
    """What one comment says."""

    level: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    rows: set[str] | None = None
    settings: set[str] | None = None
    """``None``: whatever stands here is a setting."""
    used: set[str] = field(default_factory=set)


class Finding(NamedTuple):
    """A number or a row of a table, and where it was found; nowhere is a fault."""

    line: int
    text: str
    where: str | None
    chance: float = 0.0


def flat(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON file by its keys."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            words = [word for word in part.values() if isinstance(word, str)] if isinstance(part, dict) else []
            yield from flat(part, f"{path}.{' '.join(words) or i}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


@cache
def read(name: str) -> Any:
    """What a file holds; a list of several if the name has a ``*``, in the order of their names."""
    if "*" in name:
        return [json.loads(file.read_text()) for file in sorted(EVIDENCE.glob(name))]
    return json.loads((EVIDENCE / name).read_text())


@cache
def function(name: str) -> Callable[..., str | list[str]]:
    """A function of a script; scripts of other folders have the same names, so they are forgotten afterwards."""
    path, _, called = name.rpartition(".")
    folder, script = (Path(__file__).parent / path).parent, Path(path).name
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module(script), called)
    finally:
        sys.path.remove(str(folder))
        for new in set(sys.modules) - before:
            if (folder / f"{new}.py").is_file():
                del sys.modules[new]


@cache
def numbers_in(name: str) -> list[tuple[str, float]]:
    return list(flat(read(name)))


@cache
def values_of(file: str, term: str) -> list[float]:
    """The values that a term names, combined from left to right."""
    total: list[float] = []
    parts = re.split(r" ([-+x/]) ", f"0 + {term}")
    for sign, part in zip(["", *parts[1::2]], parts[::2], strict=True):
        key = part.removeprefix("mean ")
        place = re.compile(re.escape(key).replace(r"\*", ".*").replace(r"\?", ".") + r"(\..*)?")
        values = [value for path, value in numbers_in(file) if place.fullmatch(path)]
        if re.fullmatch(AMOUNT, part):
            values = [float(part)]
        if not values:
            raise ValueError(f"{file} has no number at {key!r}")
        if key != part:
            values = [statistics.fmean(values)]
        size = max(len(total), len(values))
        pairs = zip(*(some * size if len(some) == 1 else some for some in (total, values)), strict=True)
        total = list(itertools.starmap(OPERATIONS[sign], pairs)) if sign else values
    return total


def region(comment: str, level: int) -> Region:
    """What a comment says, with its evidence read and its tables made."""
    found = Region(level, settings=None if comment.split()[0] == "settings" else set())
    for clause in re.split(r";\s*", " ".join(comment.split())):
        kind, _, rest = clause.partition(":")
        if kind == "settings":
            found.settings = found.settings if found.settings is None else set(rest.split())
        elif kind == "table":
            name, *files = rest.split()
            made = function(name)(*map(read, files))
            rows = made.splitlines() if isinstance(made, str) else made
            found.rows = (found.rows or set()) | {plain(row) for row in rows}
        elif kind == "evidence":
            file = ""
            for term in re.split(r",\s+", rest.strip()):
                named, _, keys = term.partition(".json")
                file, keys = (
                    (f"{named}.json", keys.lstrip(": ") or "*") if keys or term.endswith(".json") else (file, term)
                )
                found.values[f"{file}: {keys}"] = values_of(file, keys)
        else:
            raise ValueError(f"a comment has evidence, table or settings, not {kind!r}")
    return found


def plain(row: str) -> str:
    return " ".join(row.split())


def check(text: str) -> list[Finding]:
    """Every number of a page that counts, and where it was found."""
    text = FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)
    blank = SILENT.sub(lambda part: re.sub(r"[^\n]", " ", part[0]), text)
    bare = re.sub(r"`[^`\n]+`", lambda code: " " * len(code[0]), text)
    marks = sorted([*HEADING.finditer(bare), *MARK.finditer(bare)], key=lambda mark: mark.start())
    found: list[Finding] = []
    level, nested, regions = 0, [], []
    for mark, after in zip([None, *marks], [*marks, None], strict=True):
        if mark:
            heading, line = mark[0].startswith("#"), line_of(text, mark.start())
            level = len(mark[1]) if heading else level
            nested = [one for one in nested if one.level < level]
            if not heading:
                nested.append(Region(level))
                try:
                    nested[-1] = region(mark[1], level)
                except (ValueError, OSError, ArithmeticError, AttributeError, ImportError, KeyError) as error:
                    found.append(Finding(line, f"{type(error).__name__}: {error}", None))
                regions.append((line, nested[-1]))
        start, end = mark.end() if mark else 0, after.start() if after else len(text)
        found += numbers(text, blank, (start, end), nested[-1] if nested else None)
    for line, one in regions:
        unused = {*one.values, *(one.settings or ())} - one.used
        found += [Finding(line, f"{name} of the comment is used by no number", None) for name in sorted(unused)]
    return sorted(found, key=lambda one: one.line)


def line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def numbers(text: str, blank: str, span: tuple[int, int], here: Region | None) -> Iterator[Finding]:
    """The numbers and rows of a span that lies under one comment, or under none."""
    if here and here.rows is not None:
        for row in re.finditer(r"^\|.*$", text[slice(*span)], re.MULTILINE):
            place = span[0] + row.start()
            if not set(row[0]) <= set("|-: "):
                yield Finding(line_of(text, place), row[0], "its table" if plain(row[0]) in here.rows else None)
            blank = blank[:place] + " " * len(row[0]) + blank[place + len(row[0]) :]
    for match in NUMBER.finditer(blank, *span):
        line = blank[blank.rfind("\n", 0, match.start()) + 1 : match.start()]
        cell = line.lstrip().startswith("|") and line.count("|") > 1
        exact = re.search(r"[.e]", match["amount"]) or match["percent"] is not None
        if not (exact or (here and here.settings is not None and (cell or match["unit"]))):
            continue
        amount, percent = match["amount"].replace(",", ""), match["percent"] is not None
        mantissa, _, exponent = amount.partition("e")
        digit = 10.0 ** (len(mantissa.partition(".")[2]) - int(exponent or 0))
        number = Number(amount + "%" * percent, float(amount) * digit, digit * (100 if percent else 1))
        yield Finding(line_of(text, match.start()), number.written, *find(number, here))


def find(number: Number, here: Region | None) -> tuple[str | None, float]:
    """Where a number was found, and how likely another one would have been found."""
    if here is None:
        return None, 0.0
    if here.settings is None or number.written in here.settings:
        here.used.add(number.written)
        return "settings", 0.0
    sources = [name for name, values in here.values.items() if any(map(number.equals, values))]
    here.used.update(sources)
    return "; ".join(sources) or None, number.chance([v for values in here.values.values() for v in values])


def main() -> None:
    faults = 0
    pages = {name: Path(name) for name in sys.argv[1:]} or {str(page.relative_to(ROOT)): page for page in PAGES}
    for name, page in pages.items():
        found = check(page.read_text())
        for one in found:
            faults += one.where is None
            print(f"{name}:{one.line}: {one.text}: {one.where or 'FOUND NOWHERE'}"
                  + (f" (another: {one.chance:.0%})" if one.chance else ""))  # fmt: skip
        searched = [one.chance for one in found if one.where not in (None, "settings", "its table")]
        if searched:
            print(f"   {len(searched)} numbers of {page.name} were searched for; another one is found in "
                  f"{statistics.fmean(searched):.0%}, at most {max(searched):.0%}")  # fmt: skip
    sys.exit(f"{faults} numbers are found nowhere" if faults else 0)


if __name__ == "__main__":
    main()
