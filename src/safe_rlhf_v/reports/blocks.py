"""What a report consists of: plain records without any HTML; ``blocks.html`` has one macro for each, found by its ``kind``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

Unit = Literal["", "share", "count"]
"""How numbers are written: as they are, in per cent, or as whole numbers."""
Severity = Literal["alarm", "warning", "good"]
SEVERITIES: tuple[Severity, ...] = ("alarm", "warning", "good")
"""From the worst to the best."""


@dataclass(frozen=True)
class Finding:
    """One result of a check, in plain words.

    Attributes:
        severity: An ``alarm`` needs an action, a ``warning`` attention; ``good`` is a check that was passed.
        title: What was found, in a few words.
        meaning: What it means for somebody who uses the data or the model.
        action: What can be done about it.
        where: Whom or what it concerns: a judge, a category.
        evidence: The figures behind it.
    """

    severity: Severity
    title: str
    meaning: str = ""
    action: str = ""
    where: str = ""
    evidence: str = ""


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """The findings sorted by severity; those of one severity keep their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: The paragraph.
    """

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Findings:
    """Results of checks, the worst first.

    Attributes:
        findings: The results.
        empty: What is written if there are none.
    """

    kind: ClassVar = "findings"
    findings: Sequence[Finding]
    empty: str = "Nothing was found."

    @property
    def sorted(self) -> list[Finding]:
        """The worst first."""
        return worst_first(self.findings)


@dataclass(frozen=True)
class Figure:
    """A number that stands out.

    Attributes:
        label: What it measures.
        value: The number; ``None`` or NaN if it is not known. A text is written as it is.
        unit: How it is written.
        note: An explanation in small print.
        severity: Colours it; ``None`` for a plain figure.
    """

    label: str
    value: float | str | None
    unit: Unit = ""
    note: str = ""
    severity: Severity | None = None


@dataclass(frozen=True)
class Figures:
    """Key figures, side by side.

    Attributes:
        figures: The figures.
    """

    kind: ClassVar = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Table:
    """A table; numbers are aligned to the right.

    Attributes:
        caption: What it shows.
        header: One title per column.
        rows: One entry per column each; numbers are formatted by ``unit``.
        unit: How numbers are written.
        folded: Only the caption is seen until the reader opens it.
        shaded: Numbers from 0 to 1 have a background, the darker the closer to 1.
    """

    kind: ClassVar = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[float | str | None]]
    unit: Unit = ""
    folded: bool = False
    shaded: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: What it measures.
        value: Its length; ``None`` or NaN if it is not known.
        low: Lower end of the interval of the value.
        high: Upper end of it.
        note: An explanation in small print.
        severity: Colours it; ``None`` for a plain bar.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    severity: Severity | None = None


@dataclass(frozen=True)
class Bars:
    """Horizontal bars with intervals, written as a table so that they can be read without seeing them.

    Attributes:
        caption: What they show.
        bars: The bars.
        unit: How numbers are written.
        start: Left end of the scale.
        end: Right end of the scale; ``None`` for the largest value.
        reference: A value that is marked in every bar, for example a threshold.
        reference_label: What the mark means.
    """

    kind: ClassVar = "bars"
    caption: str
    bars: Sequence[Bar]
    unit: Unit = "share"
    start: float = 0.0
    end: float | None = 1.0
    reference: float | None = None
    reference_label: str = ""


@dataclass(frozen=True)
class Histogram:
    """Counts of values in adjacent ranges.

    Attributes:
        caption: What it shows.
        edges: Borders of the n ranges, n + 1 rising numbers; or n names of values.
        counts: The n counts.
        axis: Name of the horizontal axis.
    """

    kind: ClassVar = "histogram"
    caption: str
    edges: Sequence[float | str]
    counts: Sequence[float]
    axis: str = ""


@dataclass(frozen=True)
class Confusion:
    """How often one label was given where another was right.

    Attributes:
        caption: What it shows.
        row_title: Who gives the labels of the rows, for example "gold".
        column_title: Who gives the labels of the columns, for example a judge.
        rows: Labels of the rows.
        columns: Labels of the columns.
        counts: One list per row, one count per column.
    """

    kind: ClassVar = "confusion"
    caption: str
    row_title: str
    column_title: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot.

    Attributes:
        x: Horizontal position.
        y: Vertical position.
        label: What it stands for.
        severity: Colours it; ``None`` for a plain point.
        hollow: A ring without a label of its own, for the companion of a labelled point.
    """

    x: float
    y: float
    label: str = ""
    severity: Severity | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Curve:
    """A line through points of a scatter plot.

    Attributes:
        points: Where it bends, as (x, y).
        dashed: Drawn with dashes.
    """

    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Scatter:
    """Points in a plane.

    Attributes:
        caption: What they show.
        x_axis: Name of the horizontal axis.
        y_axis: Name of the vertical axis.
        points: The points; of more than 2,000, evenly spaced ones are drawn and the rest is counted.
        curves: Lines between them.
        limit: A value of the horizontal axis that is marked, for example a budget.
        limit_label: What the mark means.
    """

    kind: ClassVar = "scatter"
    caption: str
    x_axis: str
    y_axis: str
    points: Sequence[Point]
    curves: Sequence[Curve] = ()
    limit: float | None = None
    limit_label: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of an example; one that cannot be decoded is replaced by the reason.

    Attributes:
        source: Encoded bytes, or the path of a file; both may be hostile.
        alt: What somebody who does not see the picture should know about it.
    """

    source: bytes | Path
    alt: str = "picture of the example"


@dataclass(frozen=True)
class Side:
    """One of the texts that an example sets side by side.

    Attributes:
        title: Whose text it is, for example "response A".
        text: The text; of a long one the beginning is seen, and the reader can open more of it.
        facts: Labels, as (name, value).
        severity: Colours it; ``None`` for a plain text.
        note: What stands in small print below the whole text.
    """

    title: str
    text: str
    facts: Sequence[tuple[str, str]] = ()
    severity: Severity | None = None
    note: str = ""


@dataclass(frozen=True)
class Example:
    """Pictures, a question, and texts side by side.

    Attributes:
        title: For example the record's key.
        problem: What is wrong here, in one sentence.
        question: What was asked.
        pictures: The pictures.
        sides: The texts.
        facts: Labels of the whole, as (name, value).
    """

    title: str
    problem: str = ""
    question: str = ""
    pictures: Sequence[Picture] = ()
    sides: Sequence[Side] = ()
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Examples:
    """Examples of one thing.

    Attributes:
        caption: What went wrong in them.
        examples: The examples.
        total: How many there are in all; ``None`` if not known.
    """

    kind: ClassVar = "examples"
    caption: str
    examples: Sequence[Example]
    total: int | None = None


@dataclass(frozen=True)
class Card:
    """Everything about one judge, model or component, with its findings first.

    Attributes:
        title: Its name.
        about: What it is.
        marks: Short remarks beside the name, for example "not independent".
        findings: What its checks gave.
        blocks: Figures, bars and tables.
    """

    kind: ClassVar = "card"
    title: str
    about: str = ""
    marks: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    blocks: Sequence["Block"] = ()

    @property
    def sorted(self) -> list[Finding]:
        """The worst finding first."""
        return worst_first(self.findings)

    @property
    def severity(self) -> Severity | None:
        """That of the worst finding; ``None`` without any."""
        return self.sorted[0].severity if self.findings else None


def worst_cards_first(cards: Sequence[Card]) -> list[Card]:
    """The cards sorted by their numbers of alarms, then of warnings; equal ones keep their order."""

    def count(card: Card, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in card.findings)

    return sorted(cards, key=lambda card: (-count(card, "alarm"), -count(card, "warning")))


Block = Text | Findings | Figures | Table | Bars | Histogram | Confusion | Scatter | Examples | Card


@dataclass(frozen=True)
class Section:
    """A titled part of a report.

    Attributes:
        title: The title.
        text: What the reader should know before the blocks.
        blocks: The parts.
    """

    title: str
    text: str = ""
    blocks: Sequence[Block] = ()
