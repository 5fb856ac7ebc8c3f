"""Very long responses: the report shows their beginning and opens the rest, people get the whole of them."""

import csv
import html
import json
from pathlib import Path

from tests.evaluation.unlabelled import tiny, write_photographs

from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.evaluation import Audit, PeopleRatings, ResponsesFile

LONG = "yes, line one\n" + "more <i>and</i> more, " * 3000 + "the end"


def test_the_report_opens_them_and_the_sheet_has_them_whole(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "data", 2, 2)
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps({"key": f"k00{i}", "response": f"{LONG} {i}"}) + "\n" for i in range(2)))
    rated = tmp_path / "rated.csv"
    options = tiny(
        data,
        tmp_path / "out",
        policies={"theirs": ResponsesFile(str(file))},
        start=None,
        audit=Audit(PeopleRatings(str(rated)), 2),
    )
    evaluate(**options)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("Read on: 20,000 characters") == 2 and "<i>" not in page
    more = len(LONG) + 2 - 20_000
    assert f"The first 20,000 characters; {more:,} more stand in responses.jsonl." in html.unescape(page)
    with (tmp_path / "out" / "audit_sheet.csv").open(newline="") as sheet:
        lines = list(csv.DictReader(sheet))
    assert sorted(line["response"] for line in lines) == [f"{LONG} 0", f"{LONG} 1"]
    with rated.open("w", newline="") as sheet:
        writer = csv.DictWriter(sheet, lines[0])
        writer.writeheader()
        writer.writerows({**line, "helpfulness": "2", "safety": "-1"} for line in lines)
    evaluate(**{**options, "audit": Audit(PeopleRatings(str(rated)), 2)})
    audited = [json.loads(line)["values"] for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert [row["level"] for row in audited] == [-1, -1]
