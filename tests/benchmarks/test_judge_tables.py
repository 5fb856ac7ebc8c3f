"""The page on judges holds the tables that its evidence gives."""

import json

from tests.benchmarks.scripts import BENCHMARKS, importable

DOCS = BENCHMARKS.parent / "docs"


def test_every_row_of_the_page_stands_in_the_evidence() -> None:
    first, second = (DOCS / "results" / "judges.md").read_text().split("### A second run")
    again, rest = second.split("## Who looks")
    with importable(BENCHMARKS) as load:
        tables = load("judge_tables").tables
    for file, part, least in (("judges.json", first + rest, 40), ("judges_second_run.json", again, 6)):
        lines = tables(json.loads((DOCS / "evidence" / file).read_text()))
        rows = [line for line in part.splitlines() if line.startswith("|") and "picture" not in line]
        assert len(rows) > least
        assert {*rows} <= {*lines}
