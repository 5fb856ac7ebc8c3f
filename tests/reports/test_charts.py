"""Positions are inside the drawing and numbers readable, whatever the values are."""

import itertools
import math
import re

import pytest

from safe_rlhf_v.reports import charts
from safe_rlhf_v.reports.blocks import Bar, Bars, Confusion, Curve, Histogram, Point, Scatter, Section, Table
from safe_rlhf_v.reports.page import Page, render

ODD = [0.0, -0.0, 1e-320, -1e308, 1e308, math.inf, -math.inf, math.nan, 0.1, 5]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "share", "12.3 %"),
        (0.5, "share", "50 %"),
        (0.0004, "share", "<0.1 %"),
        (-0.0001, "share", ">−0.1 %"),
        (0.99996, "share", ">99.9 %"),
        (-0.9999, "share", "<−99.9 %"),
        (0.0, "share", "0 %"),
        (-0.0, "share", "0 %"),
        (1.0, "share", "100 %"),
        (1234.5678, "", "1,235"),
        (-999.7, "", "−1,000"),
        (0.00001234, "", "1.23e−05"),
        (-0.25, "share", "−25 %"),
        (1234567, "count", "1,234,567"),
        (12.6, "count", "13"),
        (0.123456, "", "0.123"),
        (1e300, "", "1e+300"),
        (None, "share", "–"),
        (math.nan, "", "–"),
        (math.inf, "count", "∞"),
        (-math.inf, "share", "−∞"),
        ("as it is", "share", "as it is"),
        (True, "", "1"),
    ],
)
def test_numbers_as_people_write_them(value, unit, text):
    assert charts.number(value, unit) == text


@pytest.mark.parametrize("low", [-1e308, -3.0, 0.0, 0.999])
@pytest.mark.parametrize("high", [-3.0, 0.0, 1e-320, 1.0, 7.3, 1e308])
def test_ticks_rise_within_the_range(low, high):
    values = charts.ticks(low, high)
    assert 1 <= len(values) <= 11
    if low < high:
        assert values == sorted(set(values))
        slack = 1e-8 * (high / 2 - low / 2)
        assert low - slack <= values[0] and values[-1] <= high + slack


def test_ticks_are_round():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts.ticks(-3, 3) == [-2, 0, 2]
    assert charts.ticks(0, 1234) == [0, 250, 500, 750, 1000]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (97, 106, ["98", "100", "102", "104", "106"]),
        (100, 100.9, ["100", "100.2", "100.4", "100.6", "100.8"]),
        (1000, 1002, ["1,000", "1,000.5", "1,001", "1,001.5", "1,002"]),
        (-100.5, -99.5, ["−100.4", "−100.2", "−100"]),
        (96, 107, ["97.5", "100", "102.5", "105"]),
        (0, 3e-6, ["0", "1e−06", "2e−06", "3e−06"]),
    ],
)
def test_labels_of_an_axis_tell_its_ticks_apart(low, high, labels):
    assert charts.axis_labels(charts.ticks(low, high))[: len(labels)] == labels
    drawing = charts.scatter(Scatter("c", "x", "y", [Point(low, high), Point(high, low)]))
    for texts in ([text for _, text in drawing.x_ticks], [text for _, text in drawing.y_ticks]):
        assert len(set(texts)) == len(texts)


def test_ranges_of_a_histogram_are_told_apart():
    assert charts.ranges(Histogram("c", [100.0, 100.2, 100.4], [1, 2])) == ["100 to 100.2", "100.2 to 100.4"]
    assert charts.ranges(Histogram("c", [0.001, 0.5, 1.0], [1, 2])) == ["0.001 to 0.5", "0.5 to 1"]
    assert charts.ranges(Histogram("c", ["a", "b"], [1, 2])) == ["a", "b"]


def test_a_rare_cell_of_a_confusion_is_not_called_0_per_cent():
    chart = Confusion("c", "r", "c", ["a"], ["x", "y"], [[4, 99_996]])
    page = render(Page("t", "", [Section("s", blocks=[chart])]))
    assert "&lt;0.1 %" in page and "&gt;99.9 %" in page and "--share: 1.0" in page


def test_bars_begin_at_zero_and_carry_their_interval():
    chart = Bars("c", [Bar("a", 0.5, 0.25, 0.75), Bar("b", -0.5)], start=-1, end=1, reference=0)
    assert charts.bar_shape(chart.bars[0], chart) == (50, 25, 62.5, 87.5, 50)
    assert charts.bar_shape(chart.bars[1], chart) == (25, 25, None, None, 50)


@pytest.mark.parametrize("value", ODD)
def test_every_position_is_inside_the_drawing(value):
    bars = Bars("c", [Bar("a", value, value, value)], start=-1, end=None, reference=value)
    for position in charts.bar_shape(bars.bars[0], bars):
        assert position is None or 0 <= position <= 100
    for x, y, width, height, _ in charts.histogram(Histogram("c", [0, 1, 2], [value, 3])).marks:
        assert x >= 0 and x + width <= charts.WIDTH and y >= 0 and height >= 0 and y + height <= charts.HEIGHT
    for other in ODD:
        points = [Point(value, other), Point(other, value), Point(1, 2)]
        drawing = charts.scatter(Scatter("c", "x", "y", points))
        assert len(drawing.marks) + drawing.left == 3
        for x, y, *_ in drawing.marks:
            assert 0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT
    shares = charts.shares([[value, 1], [0, 0]])
    assert all(0 <= share <= 1 for row in shares for share in row)


@pytest.mark.parametrize("value", ODD)
def test_odd_values_are_rendered(value):
    blocks = [
        Bars("c", [Bar("a", value, value, None)], end=None),
        Histogram("c", [value, 1], [value]),
        Confusion("c", "r", "c", ["a"], ["b"], [[value]]),
        Scatter("c", "x", "y", [Point(value, value)]),
    ]
    assert "nan" not in render(Page("t", "s", [Section("x", blocks=blocks)]))


def test_empty_charts_are_rendered():
    blocks = [
        Bars("c", [], end=None),
        Histogram("c", [], []),
        Confusion("c", "r", "c", [], [], []),
        Scatter("c", "", "", []),
    ]
    render(Page("t", "s", [Section("x", blocks=blocks)]))


def test_of_very_many_points_some_are_drawn_and_the_rest_is_counted():
    drawing = charts.scatter(Scatter("c", "x", "y", [Point(i, i) for i in range(10_001)]))
    assert len(drawing.marks) <= charts.MAX_POINTS
    assert len(drawing.marks) + drawing.left == 10_001


def test_labels_of_points_that_coincide_stand_below_each_other_while_they_are_near():
    points = [Point(0.1, 0.9, str(i)) for i in range(9)] + [Point(0.9, 0.9, "right")]
    heights = [height for *_, height in charts.scatter(Scatter("c", "x", "y", points)).marks]
    written = [height for height in heights[:9] if height is not None]
    assert 2 <= len(written) < 9
    assert all(low + charts.LINE <= high for low, high in itertools.pairwise(written))
    assert heights[9] == written[0]
    low = [Point(0.1, 0.0, str(i)) for i in range(3)]
    assert None in [height for *_, height in charts.scatter(Scatter("c", "x", "y", low)).marks]


@pytest.mark.parametrize("value", ODD)
def test_curves_and_limits_are_inside_the_drawing(value):
    chart = Scatter(
        "c", "x", "y", [Point(0, 0), Point(1, 2)], [Curve([(value, 0), (1, value), (2, 2)], True)], limit=value
    )
    drawing = charts.scatter(chart)
    ((path, dashed),) = drawing.curves
    numbers = [float(part) for part in path.replace("M", " ").replace("L", " ").split()]
    assert dashed and all(0 <= x <= charts.WIDTH for x in numbers)
    assert (drawing.limit is None) == (not math.isfinite(value))
    assert drawing.limit is None or charts.LEFT <= drawing.limit <= charts.WIDTH
    assert f'd="{path}"' in render(Page("t", "", [Section("s", blocks=[chart])])) or not path


def test_a_long_curve_is_written_to_its_end():
    chart = Scatter("c", "x", "y", [], [Curve([(i, i * i) for i in range(2000)])])
    path = re.search(r'class="curve" d="([^"]*)"', render(Page("t", "", [Section("s", blocks=[chart])])))[1]
    assert re.fullmatch(r"M[\d.]+ [\d.]+(L[\d.]+ [\d.]+){1999}", path)


def test_a_curve_of_one_point_is_not_drawn():
    assert charts.scatter(Scatter("c", "x", "y", [Point(0, 0)], [Curve([(0, 0)])])).curves == [("", False)]


def test_rings_have_no_label_and_take_no_room_from_others():
    rings = [Point(i / 40, 0.5, f"ring {i}", hollow=True) for i in range(30)]
    heights = [mark[3] for mark in charts.scatter(Scatter("c", "x", "y", [*rings, Point(0.9, 0.5, "named")])).marks]
    assert heights[:-1] == [None] * 30 and heights[-1] is not None


def test_a_label_at_the_lower_edge_is_drawn():
    assert charts.label_heights([(100, charts.HEIGHT - charts.BOTTOM)]) == [charts.HEIGHT - charts.BOTTOM - 3]


@pytest.mark.parametrize(
    ("value", "dark"), [(0.5, 0.5), (-1, 0.0), (7, 1.0), (math.nan, 0.0), (None, 0.0), ("text", 0.0)]
)
def test_how_dark_a_cell_is(value, dark):
    assert charts.shade(value) == dark
    assert f"--share: {dark}" in render(
        Page("t", "", [Section("s", blocks=[Table("c", ["a", "b"], [["r", value]], shaded=True)])])
    )
