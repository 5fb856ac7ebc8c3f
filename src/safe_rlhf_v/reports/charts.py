"""Numbers as text, and values as positions in a drawing; whatever the values are, every position is inside the drawing."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from safe_rlhf_v.reports.blocks import Bar, Bars, Histogram, Point, Scatter, Unit

WIDTH = 480.0
HEIGHT = 220.0
LEFT = 56.0
BOTTOM = 26.0
TOP = 14.0
MAX = 1.7e308
MAX_POINTS = 2000
MAX_LABELS = 16
MAX_ROWS = 200
LINE = 13.0
UNKNOWN = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: float | str | None, unit: Unit = "", step: float = 0.0) -> str:
    """A number as people write it; a dash if it is not known; a text as it is.

    Args:
        value: The number.
        unit: ``share`` in per cent, ``count`` as a whole number, else three significant digits.
        step: Distance to the nearest value beside it; the number gets as many decimals as tell the two apart.
    """
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if unit == "share":
        return _share(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    if unit == "count" and abs(value) < 1e15:
        return f"{round(value):,}".replace("-", MINUS)
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.3g}".replace("-", MINUS)
    last = math.floor(math.log10(abs(value))) - 2  # power of ten of the last digit
    if 0 < step < math.inf:
        last = min(last, math.floor(math.log10(step)) - 1)  # two digits of the step, which may be 2.5
    written = f"{value:,.{min(12, max(0, -last))}f}"
    return (written.rstrip("0").rstrip(".") if "." in written else written).replace("-", MINUS)


def _share(value: float) -> str:
    """A share in per cent; one that is not quite 0 or 1 is not written as if it were."""
    if 0 < abs(value) < 0.0005:
        return "<0.1 %" if value > 0 else f">{MINUS}0.1 %"
    if 0.9995 <= abs(value) < 1:
        return ">99.9 %" if value > 0 else f"<{MINUS}99.9 %"
    # Adding 0 makes a plain zero of a negative one.
    written = f"{100 * value + 0.0:.1f}" if abs(value) < 1e6 else f"{100 * value:.2e}"
    return f"{written.removesuffix('.0')} %".replace("-", MINUS)


def axis_labels(values: Sequence[float | str]) -> list[str]:
    """Values beside each other on an axis as text, with as many decimals as tell neighbours apart."""
    numbers = [float(value) for value in values if not isinstance(value, str)]
    step = min((abs(b - a) for a, b in itertools.pairwise(numbers) if a != b), default=0.0)
    return [number(value, step=step) for value in values]


def known(value: float | None) -> float | None:
    """The value if it can be drawn, else ``None``."""
    return float(value) if value is not None and math.isfinite(value) else None


def place(value: float, low: float, high: float, start: float = 0.0, end: float = 100.0) -> float:
    """Position of a value on a scale; values outside the scale are moved to its ends."""
    # Halves, because the difference of two huge numbers may be infinite.
    span = high / 2 - low / 2
    share = (value / 2 - low / 2) / span if span > 0 else 0.5
    return round(start + min(1.0, max(0.0, share)) * (end - start), 2)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within a range, about ``count`` of them.

    Args:
        low: Lower end.
        high: Upper end.
        count: About how many.
    """
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low] if low == high else [low, high]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power and span / (m * power) <= count), span)
    first = math.ceil(low / step)
    values = [round(i * step, 12) for i in range(first, first + 2 * count + 1) if i * step <= high + step * 1e-9]
    return values if len(set(values)) == len(values) and values else [low, high]


class BarShape(NamedTuple):
    """Positions of a bar within a width of 100.

    Attributes:
        x: Left end.
        width: Width; 0 if the value is not known.
        low: Lower end of the interval, ``None`` without an interval.
        high: Upper end of it.
        reference: Position of the mark, ``None`` without one.
    """

    x: float
    width: float
    low: float | None
    high: float | None
    reference: float | None


def bar_shape(bar: Bar, chart: Bars) -> BarShape:
    """Positions of a bar; bars begin at 0, or at the end of the scale that is next to it."""
    start, end = scale(chart)
    zero = place(0.0, start, end)
    value = known(bar.value)
    reference = known(chart.reference)
    tip = zero if value is None else place(value, start, end)
    low, high = (known(x) if value is not None else None for x in (bar.low, bar.high))
    has_interval = low is not None and high is not None
    return BarShape(
        min(zero, tip),
        round(abs(tip - zero), 2),
        place(low, start, end) if has_interval and low is not None else None,
        place(high, start, end) if has_interval and high is not None else None,
        None if reference is None else place(reference, start, end),
    )


def scale(chart: Bars) -> tuple[float, float]:
    """Both ends of the scale of bars."""
    values = [x for bar in chart.bars for x in (known(bar.value), known(bar.high)) if x is not None]
    end = chart.end if chart.end is not None else max([*values, chart.start], default=1.0)
    return chart.start, end if end > chart.start else chart.start + 1.0


class Drawing(NamedTuple):
    """A chart with two axes.

    Attributes:
        x_ticks: (position, label) on the horizontal axis.
        y_ticks: (position, label) on the vertical axis.
        marks: Of a histogram (x, y, width, height, label) each; of a scatter plot (x, y, point, height of its label).
        left: Number of points that are not drawn.
        curves: Of a scatter plot (path, whether dashed) each.
        limit: Position of the mark on the horizontal axis, ``None`` without one.
    """

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[object, ...]]
    left: int = 0
    curves: Sequence[tuple[str, bool]] = ()
    limit: float | None = None


def histogram(chart: Histogram) -> Drawing:
    """Bars of a histogram; ranges are drawn equally wide, and a count that is not known is drawn as 0."""
    counts = [known(count) or 0.0 for count in chart.counts]
    top = max([*counts, 1.0])
    step = (WIDTH - LEFT) / max(1, len(counts))
    labels = ranges(chart)
    marks: list[tuple[object, ...]] = []
    for i, count in enumerate(counts):
        y = place(count, 0, top, HEIGHT - BOTTOM, TOP)
        x = round(LEFT + i * step + 1, 2)
        marks.append((x, y, round(max(1.0, step - 2), 2), round(HEIGHT - BOTTOM - y, 2), labels[i]))
    named = len(chart.edges) == len(counts)
    every = max(1, math.ceil(len(chart.edges) / 8))
    x_ticks = [
        (round(LEFT + (i + 0.5 * named) * step, 2), label)
        for i, label in enumerate(axis_labels(chart.edges))
        if i % every == 0
    ]
    return Drawing(x_ticks, _y_ticks(0.0, top), marks)


def ranges(chart: Histogram) -> list[str]:
    """Names of the ranges of a histogram."""
    names = axis_labels(chart.edges)
    if len(names) == len(chart.counts):
        return names
    return [f"{low} to {high}" for low, high in itertools.pairwise(names)]


def scatter(chart: Scatter) -> Drawing:
    """Points of a scatter plot; points that are not numbers are left out and counted."""
    points = [p for p in chart.points if known(p.x) is not None and known(p.y) is not None]
    step = max(1, math.ceil(len(points) / MAX_POINTS))
    limit = known(chart.limit)
    x_low, x_high = _range([p.x for p in points] + ([] if limit is None else [limit]))
    y_low, y_high = _range(p.y for p in points)
    places = [
        (place(p.x, x_low, x_high, LEFT, WIDTH - 8), place(p.y, y_low, y_high, HEIGHT - BOTTOM, TOP))
        for p in points[::step]
    ]
    labelled = [i for i, p in enumerate(points[::step]) if not p.hollow]
    heights: list[float | None] = [None] * len(places)
    if len(labelled) <= MAX_LABELS:
        for i, height in zip(labelled, label_heights([places[i] for i in labelled]), strict=True):
            heights[i] = height
    marks: list[tuple[object, ...]] = [
        (x, y, p, height) for (x, y), p, height in zip(places, points[::step], heights, strict=True)
    ]
    columns = ticks(x_low, x_high)
    x_ticks = [
        (place(x, x_low, x_high, LEFT, WIDTH - 8), label)
        for x, label in zip(columns, axis_labels(columns), strict=True)
    ]
    curves: list[tuple[str, bool]] = []
    for curve in chart.curves:
        bends = [(x, y) for x, y in curve.points if known(x) is not None and known(y) is not None]
        path = "L".join(
            f"{place(x, x_low, x_high, LEFT, WIDTH - 8)} {place(y, y_low, y_high, HEIGHT - BOTTOM, TOP)}"
            for x, y in bends
        )
        # Positions only: nothing to escape, and as markup a long path is not cut like a text from data.
        curves.append((Markup(f"M{path}") if len(bends) > 1 else "", curve.dashed))
    mark = None if limit is None else place(limit, x_low, x_high, LEFT, WIDTH - 8)
    return Drawing(x_ticks, _y_ticks(y_low, y_high), marks, len(chart.points) - len(marks), curves, mark)


def label_heights(places: Sequence[tuple[float, float]]) -> list[float | None]:
    """Height of the label beside each point, such that no two labels on one side overlap; ``None`` where there is no room.

    Args:
        places: Positions of the points; labels stand to the right of those in the left half, and to the left of the others.
    """
    heights: list[float | None] = [None] * len(places)
    lowest = {False: -LINE, True: -LINE}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[i]
        height = max(min(y + 4, HEIGHT - BOTTOM - 3), lowest[x < WIDTH / 2] + LINE)
        if height < min(HEIGHT - BOTTOM, y + 4 * LINE):  # farther away nobody would see whose label it is
            heights[i] = height
            lowest[x < WIDTH / 2] = height
    return heights


def quantity(points: Sequence[Point]) -> str:
    """Number of points as text."""
    return number(len(points), "count")


def shade(value: float | str | None) -> float:
    """How dark the background of a number is, 0..1; 0 for what is no number."""
    level = None if isinstance(value, str) else known(value)
    return 0.0 if level is None else round(min(1.0, max(0.0, level)), 3)


def shares(counts: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each count as a share of its row; 0 in an empty row."""
    rows = [[max(0.0, known(count) or 0.0) for count in row] for row in counts]
    return [[count / sum(row) if sum(row) > 0 else 0.0 for count in row] for row in rows]


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Ends of an axis: shares have all of 0 to 1, other values are widened so that no point lies on the edge."""
    numbers = list(values) or [0.0]
    low = min(numbers)
    high = max(numbers)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    space = 0.05 * (high / 2 - low / 2) * 2 if low < high else 1.0
    return max(low - space, -MAX), min(high + space, MAX)


def _y_ticks(low: float, high: float) -> list[tuple[float, str]]:
    rows = ticks(low, high, 4)
    return [
        (place(y, low, high, HEIGHT - BOTTOM, TOP), label) for y, label in zip(rows, axis_labels(rows), strict=True)
    ]
