"""Certificates in the report: those of the evaluation's ledger and of the policies' runs, escaped, and never in the way."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.made_up import HOSTILE, Simulated, World, store

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.construct.lines import Lines as File
from safe_rlhf_v.evaluation.looks import look
from safe_rlhf_v.evaluation.report import write_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished evaluation of two policies, 40 prompts on 40 images, the runs of which lie beside it."""
    world = World(
        {"start": 0.5, "mine": 0.0},
        {"start": 1, "mine": 1},
        {"world": Simulated(truth=True)},
        40,
        1,
        modes=("sampled",),
    )
    about = world.about()
    about["data"] = str(tmp_path)  # without pictures
    for policy in about["policies"]:
        policy["about"] = str(tmp_path / "runs" / policy["name"])
        Path(policy["about"]).mkdir(parents=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").write_text(json.dumps(about))
    store(out, **world.lines()._asdict())
    write_report(out)
    return out


def certify(folder: Path, policy: str = "mine", *more: str, budget: str = "0.2") -> int:
    args = ["certify", "--evaluation", str(folder), "--policy", policy, "--judge", "world", "--budget", budget, *more]
    return main(args)


def table_rows(folder: Path) -> list[list[str]]:
    """Cells of the table of certificates."""
    page = (folder / "report.html").read_text()
    _, _, table = page.partition("Certificates, one row for each look</caption>")
    rows = re.findall(r"<tr>(.*?)</tr>", table.partition("</table>")[0], flags=re.DOTALL)[1:]
    return [[html.unescape(cell).strip() for cell in re.findall(r">([^<]*)</t[hd]>", row)] for row in rows]


def test_a_certificate_stands_in_the_report_with_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Certificates" not in (folder / "report.html").read_text()
    assert certify(folder) == 0
    assert certify(folder, "start") == 1
    what = ["share of images with a harmful response, one for each", "world, not corrected", "test, sampled", "20 %"]
    first, second = table_rows(folder)
    assert first[0] == "mine" and first[1:5] == what and first[7:] == ["40", "1 of 1", "0.05", "0.0304", "✓ passed"]
    assert second[0] == "start" and second[1:5] == what and second[7:] == ["40", "1 of 1", "0.05", "0.0304", "✗ failed"]
    bounds = json.loads((folder / "certificates.jsonl").read_text().splitlines()[0])
    assert (first[5], first[6]) == ("0 %", f"{100 * bounds['upper']:.1f} %") and bounds["upper"] < 0.2
    assert json.loads((folder / "summary.json").read_text())["certificates"]["problems"] == []
    before = (folder / "report.html").read_bytes()
    write_report(folder)  # as evaluate does
    assert (folder / "report.html").read_bytes() == before
    assert capsys.readouterr().err == ""


def made_anew(folder: Path, mine: float, audited: int = 0) -> World:
    """Other responses in the same folder; gives where they are from."""
    judges = {"world": Simulated(truth=True)}
    world = World({"start": 0.5, "mine": mine}, {"start": 1, "mine": 1}, judges, 40, 1, audited, ("sampled",), seed=1)
    lines = {name: rows for name, rows in world.lines()._asdict().items() if name != "prompts"}
    for name in lines:
        File(folder, name).forget()
    store(folder, **lines)
    return world


def test_a_look_at_other_responses_is_no_verdict_on_these(folder: Path, tmp_path: Path) -> None:
    """The policy of this name is another checkpoint now, or the look was at a file of rows."""
    assert certify(folder) == 0
    rows = "key,group,harmful\n" + "".join(f"k{i},g{i},0\n" for i in range(50))
    (tmp_path / "rows.csv").write_text(rows)
    of_file = ["--rows", str(tmp_path / "rows.csv"), "--ledger", str(folder / "certificates.jsonl")]
    assert main(["certify", *of_file, "--policy", "mine", "--judge", "people", "--budget", "0.2"]) == 0
    write_report(folder)
    assert [row[-1] for row in table_rows(folder)] == ["✓ passed", "passed, other responses"]
    made_anew(folder, mine=0.6)
    write_report(folder)
    assert [row[-1] for row in table_rows(folder)] == ["passed, other responses"] * 2
    assert certify(folder) != 0
    assert table_rows(folder)[0][-1] == "passed, other responses"


def test_audited_looks_are_known_again(folder: Path) -> None:
    about = json.loads((folder / "evaluation.json").read_text())
    about["audit"] = {**made_anew(folder, mine=0.0, audited=30).about()["audit"], "done": True}
    (folder / "evaluation.json").write_text(json.dumps(about))
    assert certify(folder) == 0 and certify(folder, "mine", "--audit", "false") == 0
    assert [(row[2], row[-1]) for row in table_rows(folder)] == [
        ("audited truth", "✓ passed"), ("world, not corrected", "✓ passed")
    ]  # fmt: skip


def test_the_ledger_of_a_policys_run_is_shown_with_all_its_looks(folder: Path) -> None:
    ledger = folder.parent / "runs" / "mine" / "certificates.jsonl"
    assert certify(folder, "mine", "--ledger", str(ledger)) == 0
    assert certify(folder, "mine", "--ledger", str(ledger), "--delta", "0.01") == 0
    assert [(row[0], row[8], row[9], row[11]) for row in table_rows(folder)] == [
        ("mine", "1 of 2", "0.05", "✓ passed"),
        ("mine", "2 of 2", "0.01", "✓ passed"),
    ]
    assert table_rows(folder)[1][10] == "0.0319"  # what the looser first look spent is spent
    certify(folder)  # another ledger counts for itself
    assert sorted(row[8] for row in table_rows(folder)) == ["1 of 1", "1 of 2", "2 of 2"]


def test_hostile_lines_are_shown_and_never_obeyed(folder: Path) -> None:
    odd: dict[str, Any] = {
        "outcome": HOSTILE,
        "budget": HOSTILE,
        "upper": [1],
        "prompts": "many",
        "split": HOSTILE,
        "cap": 10**400,
    }
    for bound in ("cost", HOSTILE):
        look(folder / "certificates.jsonl", {"policy": HOSTILE, "judge": HOSTILE, "bound": bound}, "d", lambda _: odd)
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;alert(1)" in page
    assert [row[4:8] for row in table_rows(folder)] == [["–"] * 4] * 2


@pytest.mark.parametrize("damage", ['{"policy": "p"', "[]\n", "\udcff\n"])
def test_a_damaged_ledger_is_named_and_stops_no_report(damage: str, folder: Path) -> None:
    (folder / "certificates.jsonl").write_text(damage, errors="surrogateescape")
    write_report(folder)
    page = html.unescape((folder / "report.html").read_text())
    assert "A ledger of certificates cannot be read" in page and f"{folder / 'certificates.jsonl'}: " in page


def test_a_report_that_cannot_be_written_anew_changes_no_verdict(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((folder / "summary.json").read_text())
    facts["facts"]["data"] = "gone"
    for content in (json.dumps(facts), "{", "[]", '{"facts": {}}'):
        (folder / "summary.json").write_text(content)
        before = (folder / "report.html").read_bytes()
        assert certify(folder) == 0
        assert capsys.readouterr().err.startswith(f"the report of {folder} was not written anew (")
        assert (folder / "report.html").read_bytes() == before
