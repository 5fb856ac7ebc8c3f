"""The page on judges holds the tables that its evidence gives."""

import json

from tests.benchmarks.scripts import BENCHMARKS, importable

DOCS = BENCHMARKS.parent / "docs"


def test_every_row_of_the_page_stands_in_the_evidence() -> None:
    found = json.loads((DOCS / "evidence" / "judges.json").read_text())
    page = (DOCS / "results" / "judges.md").read_text()
    with importable(BENCHMARKS) as load:
        tables = load("judge_tables")
    lines = [
        *tables.trust_table(found["judges"], "all"),
        *tables.trust_table(found["judges"], "intent"),
        *tables.ranking_table(found["judges"]),
        *tables.picture_tables(found),
    ]
    rows = [line for line in page.splitlines() if line.startswith("|") and "picture" not in line]
    assert len(rows) > 40
    assert set(rows) <= set(lines)
