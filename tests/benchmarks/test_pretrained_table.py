"""The tables of the run on pretrained networks, by hand."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from tests.benchmarks.scripts import BENCHMARKS, importable


@pytest.fixture
def tables() -> Iterator[Any]:
    with importable(BENCHMARKS / "pretrained") as load:
        yield load("table")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.25], "0.250"),
        ([0.5, 0.5], "0.500"),
        ([1.0, 2.0, 3.0], "2.000 ± 2.484 (1.000 / 2.000 / 3.000)"),  # 4.3027 x 1 / sqrt(3)
        ([30.0, 32.0], "31.0 ± 12.7 (30.0 / 32.0)"),  # 12.706 x sqrt(2) / sqrt(2)
        ([0.5, math.nan], ""),
    ],
)
def test_a_cell_has_mean_half_width_and_seeds(values: list[float], text: str, tables: Any) -> None:
    assert tables.cell(values) == text


def results(right: float) -> dict[str, Any]:
    """Of one seed; what is not there is left empty."""
    means = {"severity_right": {"mean": right}, "harmful": {"mean": 0.5}}
    return {"majority": 1 / 3, "policies": {"supervised": {"test": means}}, "greedy": {"supervised": means},
            "language": {"vision": {"facts_right": 0.4}}, "cpu_seconds": {"vision": 1000.4, "cost": 234.0, "test_cost": 5.5}, "seed": 0}  # fmt: skip


def test_numbers_stand_in_their_columns(tables: Any) -> None:
    blocks = tables.tables({"seeds": [results(0.75)]}).split("\n\n")
    rows = {line.split(" | ")[0]: line for line in blocks[0].splitlines()}
    assert rows["| severity named rightly, shown its photograph"].endswith("| 0.750 |  | 0.750 |  |")
    assert rows["| harmful, of those that claim something"].endswith("| 0.500 |  | 0.500 |  |")
    assert rows["| severity named rightly, shown a picture without content"].endswith("|  |  |  |  |")
    assert "| facts answered rightly | 0.400 |  |  |" in blocks[3]
    seconds = {line.split(" | ")[0]: line.split(" | ")[1] for line in blocks[4].splitlines()}
    assert [seconds[row] for row in ("| vision", "| cost", "| calibration and tests", "| together")] == [
        "1,000 |",
        "234 |",
        "6 |",
        "1,240 |",
    ]
    assert all(line.count("|") == blocks[0].splitlines()[0].count("|") for line in blocks[0].splitlines())
