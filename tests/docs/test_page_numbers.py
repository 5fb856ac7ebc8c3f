"""Every number of the pages is found in the evidence, or is said to be a setting; and changed digits are noticed."""

import sys
from pathlib import Path

import pytest
from tests.benchmarks.scripts import BENCHMARKS, importable

ROOT = BENCHMARKS.parent
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def page_numbers():
    with importable(BENCHMARKS) as load:
        yield load("page_numbers")


@pytest.fixture
def faults(page_numbers):
    """Lines of a text at which something is found nowhere."""
    return lambda text: [found.line for found in page_numbers.check(text) if found.where is None]


def test_every_number_of_every_page_is_found(page_numbers):
    found = {page: page_numbers.check(page.read_text()) for page in page_numbers.PAGES}
    lost = [
        f"{page.name}:{one.line}: {one.text}" for page, all_of in found.items() for one in all_of if one.where is None
    ]
    assert not lost, "benchmarks/page_numbers.py says how a page names what its numbers come from"
    assert sum(len(one) for one in found.values()) > 100


CHANGED = [
    pytest.param(README, "| 2.19 ± 0.10 |", "| 2.18 ± 0.10 |", id="a cell of the first table"),
    pytest.param(README, "0.067 ± 0.036", "0.067 ± 0.063", id="an interval"),
    pytest.param(README, "0.38 to 0.81 GPU-seconds", "0.38 to 0.18 GPU-seconds", id="seconds in prose"),
    pytest.param(README, "from 0.363 to", "from 0.336 to", id="a share in prose"),
    pytest.param(RESULTS / "policy.md", "38 % more harmful", "83 % more harmful", id="a percentage in prose"),
    pytest.param(
        RESULTS / "policy.md", "met 5, undecided 1", "met 6", id="a verdict, without any digit after the point"
    ),
    pytest.param(RESULTS / "guard.md", "| 1 of 76 (6.1%) |", "| 2 of 76 (6.1%) |", id="a count beside a bound"),
    pytest.param(ROOT / "docs" / "world.md", "| 84 % | 50 % |", "| 84 % | 55 % |", id="a table without a function"),
    pytest.param(RESULTS / "judges.md", "and 88.7 % of", "and 88.9 % of", id="the second of two percentages"),
]


@pytest.mark.parametrize("page, right, wrong", CHANGED)
def test_changed_digits_are_noticed(faults, page: Path, right: str, wrong: str):
    text = page.read_text()
    assert text.count(right) == 1
    line = text[: text.index(right)].count("\n") + 1
    assert faults(text) == []
    assert line in faults(text.replace(right, wrong))


EVIDENCE = "<!-- evidence: policy.json: about.budget; settings: 95% -->"
LOST = [
    pytest.param(f"{EVIDENCE}\nd = -0.5 (95 %)\n", [], id="both are there"),
    pytest.param(f"{EVIDENCE}\nd = -0.5\n", [1], id="a setting that stands nowhere"),
    pytest.param(f"{EVIDENCE}\nat 95 %\n", [1], id="evidence that no number needs"),
    pytest.param("d = -0.5\n", [1], id="no comment"),
    pytest.param(f"## A\n{EVIDENCE}\n-0.5 (95 %)\n### B\n-0.5\n## C\n-0.5\n", [7], id="the section has ended"),
    pytest.param(f"# A\n<!-- settings -->\n## B\n{EVIDENCE}\n-0.5 (95 %)\n\n0.7\n## C\n0.7\n", [7], id="the outer one holds again"),
    pytest.param(f"{EVIDENCE}\n-0.5 (95 %)\n```\n0.7\n```\n`0.7` [at](0.7) arXiv 2503.17682 <!-- 0.7 -->\n", [], id="no numbers of the text"),
    pytest.param(f"{EVIDENCE}\n-0.5 (95 %)\n| a | 7 |\n", [3], id="a whole number in a table"),
    pytest.param(f"{EVIDENCE}\n-0.5 (95 %) and 7 CPU-seconds\n", [2], id="seconds"),
    pytest.param("<!-- evidence: policy.json: about.budgets -->\n-0.5\n", [1], id="no such key"),
    pytest.param("<!-- evidence: polity.json: about.budget -->\n-0.5\n", [1], id="no such file"),
    pytest.param("<!-- table: policy_tables.nothing policy.json -->\n", [1], id="no such function"),
    pytest.param("<!-- table: world_tables.sizes foundation.json:about -->\n", [1], id="a part without the numbers"),
    pytest.param("<!-- evidence: policy.json: mean about.seeds -->\n1.0 and 2.0\n", [2], id="a mean"),
    pytest.param("<!-- evidence: policy.json: about.seeds + about.budget x policy_step -->\n1.0\n", [1], id="no such part"),
    pytest.param("<!-- evidence: policy.json: about.budget + about.seeds / 10 -->\n0.05, 0.15 and 0.25\n", [2], id="arithmetic"),
]  # fmt: skip


@pytest.mark.parametrize("text, lines", LOST)
def test_where_a_comment_holds_and_what_it_allows(faults, text: str, lines: list[int]):
    assert faults(text) == lines


def test_several_files_are_one_list(page_numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for seed in (21, 20):
        (tmp_path / f"seed-{seed}.json").write_text(f'{{"harm": {seed / 100}}}')
    monkeypatch.setattr(page_numbers, "EVIDENCE", tmp_path)
    text = "<!-- evidence: seed-*.json: *.harm, mean *.harm -->\nFrom 0.20 to 0.21, 0.205 on average, at most {}."
    assert [found.where is None for found in page_numbers.check(text.format("0.21"))] == [False] * 4
    assert [found.where is None for found in page_numbers.check(text.format("0.22"))] == [False] * 3 + [True]


def test_what_the_quickstart_takes_stands_in_a_block_of_the_readme(page_numbers):
    """Blocks of code are not searched; this number is in the comment of one."""
    assert f"{page_numbers.read('quickstart_steps.json')['now']['total']} CPU-seconds" in README.read_text()


def test_no_table_function_is_left_behind(page_numbers):
    before = set(sys.modules)
    assert page_numbers.function("world_tables.sizes")
    assert not {"world_tables", "policy_tables"} & (set(sys.modules) - before)


@pytest.mark.parametrize("page", [README, *(RESULTS / f"{name}.md" for name in ("index", "policy", "judges", "guard"))])
def test_pages_of_results_list_their_settings(page: Path):
    """Where measured numbers stand, no section is a setting as a whole."""
    assert "<!-- settings -->" not in page.read_text()


def test_another_number_would_rarely_be_found(page_numbers):
    """A pool of many values finds any number: what a comment names has to be narrow."""
    for page in page_numbers.PAGES:
        searched = [one for one in page_numbers.check(page.read_text()) if one.where and ".json" in one.where]
        assert all(one.chance < 0.5 for one in searched), page
        if searched:
            assert sum(one.chance for one in searched) / len(searched) <= 0.1, page
