"""A data set from end to end: finished, killed anywhere and resumed with the same bytes, planned, and refused where it must be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.construct.built import CONFIG, ROOT, RUBRIC, all_stages, build, contents, first_stages, workspace

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.construct import lines
from safe_rlhf_v.construct.grounding import Ground
from safe_rlhf_v.construct.judging import JudgeResponses
from safe_rlhf_v.construct.pipeline import plan_stages, run_stages
from safe_rlhf_v.construct.write import WriteShards
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.world import SimulatedJudge, WorldJudge, WorldResponder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "world"
    build(folder, all_stages())
    return folder


def test_the_records_hold_labels_votes_and_truth(finished: Path) -> None:
    manifest = Manifest.load(finished / "shards")
    assert manifest.licence == "CC0-1.0" and manifest.name == "embedded-world"
    records = [record for split in manifest.splits for record in ShardedSplit(finished / "shards", split)]
    assert len(records) > 20
    groups: dict[str, set[str]] = {}
    for split in manifest.splits:
        for record in ShardedSplit(finished / "shards", split):
            groups.setdefault(record.group, set()).add(split)
    assert all(len(splits) == 1 for splits in groups.values())
    right = [
        record.safer == int(record.truth.safety[1] > record.truth.safety[0])
        for record in records
        if record.truth and record.safer is not None
    ]
    assert sum(right) >= 0.9 * len(right)
    for record in records:
        assert record.votes is not None and len(record.votes.safer) == 2
        assert all(len(response.votes.safety) == 2 for response in record.responses if response.votes)
        assert {response.source for response in record.responses} == {"one", "two"}
        assert record.origin["licence"] == "CC0-1.0"
        assert record.responses[0].is_safe == (record.responses[0].safety >= 0)
    assert "CC0-1.0" in (finished / "card.md").read_text()


def test_the_audit_is_a_page_for_people_too(finished: Path) -> None:
    page = (finished / "audit.html").read_text()
    assert page.startswith("<!doctype html>") and "Audit of" in page
    assert "Picture cannot be shown" not in page


def test_the_audit_has_the_parts_that_its_schema_names(finished: Path) -> None:
    report = json.loads((finished / "audit.json").read_bytes())
    assert report["format"] == "safe_rlhf_v.audit" and report["version"] == 1 and report["synthetic"]
    assert set(report) == {
        "format", "version", "name", "synthetic", "items", "rule", "alarms", "tests", "judges", "agreement", "confusion",
        "grounding", "labels", "examples",
    }  # fmt: skip
    assert report["items"]["pairs"] + report["items"]["near_identical_pairs"] >= report["items"]["questions"] * 0.9
    assert report["rule"]["tests"] == sum(test["name"] != "picture_not_read" for test in report["tests"])
    assert {judge["name"] for judge in report["judges"]} == {"careful", "second"}
    assert report["agreement"]["safety"]["alpha"] > 0.8
    assert report["labels"]["cost"]["ceiling"] > 0.9
    for alarm in report["alarms"]:
        assert all(0 <= number < len(report["examples"]) for number in alarm["examples"])
    for example in report["examples"]:
        assert all((finished / picture).is_file() for picture in example["pictures"])


def test_the_same_settings_give_the_same_bytes_and_a_finished_set_is_left_alone(finished: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", all_stages())
    assert contents(tmp_path / "again") == contents(finished)
    before = contents(finished)
    build(finished, all_stages())
    assert contents(finished) == before


class Killed(BaseException):
    pass


FILES = (
    "images.jsonl",
    "questions.jsonl",
    "responses.jsonl",
    "grounding.jsonl",
    "judgements.jsonl",
    "audit.json",
    "audit.html",
    "people.json",
    "shards.json",
    "card.md",
)


@pytest.mark.parametrize("name", FILES)
def test_killed_in_any_stage_it_ends_with_the_same_bytes(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of a run that was killed while it wrote a file: everything before it, and half of it."""
    folder = tmp_path / "world"
    folder.mkdir()
    expected = contents(finished)
    order = {
        "images": 0,
        "questions": 1,
        "responses": 2,
        "grounding": 3,
        "judgements": 4,
        "audit": 5,
        "people": 6,
        "shards": 7,
        "card": 8,
    }

    def rank(file: str) -> int:
        return order[file.split("/")[0].split(".")[0]]

    for file, data in expected.items():
        if rank(file) > rank(name) or (rank(file) == rank(name) and file.startswith(("people/", "shards/"))):
            continue
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if name.endswith(".jsonl"):
        (folder / name).write_bytes(expected[name][: len(expected[name]) * 2 // 3])
        note = json.loads(expected[name.replace(".jsonl", ".json")])
        del note["sha256"]
        (folder / name.replace(".jsonl", ".json")).write_text(json.dumps(note))
    else:
        (folder / name).unlink()
        (folder / f"{name}.part").write_bytes(expected[name][:10])
    build(folder, all_stages())
    assert contents(folder) == expected


def test_killed_while_it_asks_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    class Dies(SimulatedJudge):
        """Is killed with the 40th question."""

        asked = 0
        last = 10**9

        def ask(self, questions: Any) -> Any:
            type(self).asked += len(questions)
            if type(self).asked > type(self).last:
                raise Killed
            return super().ask(questions)

    stages = [*first_stages(8), JudgeResponses({"a": Dies(seed=1)}, batch_size=2)]
    build(tmp_path / "whole", stages)
    whole = Dies.asked
    Dies.asked, Dies.last = 0, 40
    with pytest.raises(Killed):
        build(tmp_path / "killed", stages)
    Dies.asked, Dies.last = 0, 10**9
    build(tmp_path / "killed", stages)
    assert 0 < Dies.asked < whole
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def small_config(tmp_path: Path, images: int = 12) -> Path:
    """The shipped configuration with stand-ins for the policies of the quickstart."""
    config = yaml.safe_load(CONFIG.read_text())
    config["output"] = str(tmp_path / "out")
    config["rubric"] = str(RUBRIC)
    stages = {stage["class_path"].rpartition(".")[2]: stage["init_args"] for stage in config["stages"]}
    stages["CollectImages"]["source"]["init_args"]["count"] = images
    for i, name in enumerate(stages["Respond"]["responders"]):
        stages["Respond"]["responders"][name] = {
            "class_path": "safe_rlhf_v.world.WorldResponder",
            "init_args": {"seed": i},
        }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.slow
def test_killed_by_the_kernel_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert main(["construct", "--config", str(small_config(tmp_path / "a", 60))]) == 0
    config = small_config(tmp_path / "b", 60)
    command = [sys.executable, "-m", "safe_rlhf_v", "construct", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
    kills = 0
    for delay in (2.0, 2.5, 3.0, 3.5, 4.0, 5.0):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(tmp_path / "b" / "out") == contents(tmp_path / "a" / "out")


def test_the_shipped_configuration_finds_its_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path, 45)
    assert main(["construct", "--config", str(config), "--until", "audit"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "audit.json").read_bytes())
    named = {alarm["judge"]: alarm["name"] for alarm in reversed(report["alarms"]) if alarm["name"] != "leaking"}
    assert named == {
        "prefers_the_first": "position_bias",
        "prefers_long": "length_bias",
        "always_ties": "too_many_ties",
        "does_not_look": "picture_not_read",
        "garbles": "unparsable",
    }
    assert "position bias: prefers the first" in printed
    assert not (tmp_path / "out" / "shards").exists()


def test_a_dry_run_asks_nobody_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path)
    assert main(["construct", "--config", str(config), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    # 12 images, 24 questions, 24 pairs: per judge 24 pairs, 2 axes, 2 orders.
    assert "96  judgements  careful (SimulatedJudge): comparisons" in printed
    assert "24  responses   supervised (WorldResponder): responses" in printed


def test_a_plan_is_an_upper_bound_of_what_is_asked(tmp_path: Path) -> None:
    class Counting(SimulatedJudge):
        """Counts its questions."""

        asked = 0

        def ask(self, questions: Any) -> Any:
            type(self).asked += len(questions)
            return super().ask(questions)

    stages = [*first_stages(10), JudgeResponses({"a": Counting()}, probes=1.0)]
    work = workspace(tmp_path / "w")
    planned = sum(plan.calls for plan in plan_stages(stages, work) if plan.stage == "judgements")
    run_stages(stages, work)
    assert 0.7 * planned < Counting.asked <= planned
    assert sum(plan.calls for plan in plan_stages(stages, work)) == 0  # all of it is done


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one"),
        (first_stages()[1:], "questions .* needs the stage images before it"),
        ([*first_stages(), first_stages()[0]], "images stands twice"),
        ([WriteShards()], "shards .* needs the stage judgements"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(stages: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(stages, workspace(tmp_path))


def test_an_unknown_last_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["construct", "--config", str(small_config(tmp_path)), "--until", "audits"]) == 2
    assert "no such stage; there are: images, questions" in capsys.readouterr().err


def test_changed_settings_are_refused_with_the_mend(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "w")
    changed = [*first_stages(), Ground(WorldResponder(helpful=True), SimulatedJudge(), draws=2, margin=0.7)]
    with pytest.raises(ValueError, match=r"grounding.jsonl: was made from other settings: margin; remove"):
        run_stages(changed, workspace(tmp_path / "w"))
    other = [*all_stages()[:-1], WriteShards(splits={"train": 1.0}, truth=WorldJudge())]
    with pytest.raises(ValueError, match="holds shards of other labels; remove shards"):
        run_stages(other, workspace(tmp_path / "w"))


def test_no_word_of_a_failed_stage_is_kept_and_the_next_run_goes_on(tmp_path: Path) -> None:
    from safe_rlhf_v.construct.stage import RefusedToGoOn
    from safe_rlhf_v.scoring.judge import Opinion

    class Down(SimulatedJudge):
        """Gives no reply, until it does."""

        up = False

        def ask(self, questions: Any) -> Any:
            if self.up:
                return super().ask(questions)
            return [Opinion(None, "connection: refused", "failed") for _ in questions]

    stages = [*first_stages(6), JudgeResponses({"a": Down()})]
    with pytest.raises(RefusedToGoOn, match=r"got no reply .connection: refused.* run the same command again"):
        build(tmp_path / "w", stages)
    assert (tmp_path / "w" / "judgements.jsonl").read_bytes() == b""
    Down.up = True
    work = build(tmp_path / "w", stages)
    assert all("fault" not in row for row in work.rows("judgements"))
    Down.up = False
    kept = build(tmp_path / "k", [*first_stages(6), JudgeResponses({"a": Down()}, on_failure="keep")])
    assert {row["fault"] for row in kept.rows("judgements")} == {"failed"}


def test_lines_are_never_written_with_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        lines.encoded({"value": float("nan")})


@pytest.mark.parametrize(
    "folder",
    ["people", "People", "judgements", "images", "audit", "../escaped", "/tmp/x", "a/b", "", ".", "..", "a.json"],
)
def test_shards_take_no_name_of_another_stage_and_stay_in_the_folder(folder: str) -> None:
    with pytest.raises(ValueError, match="must be one name"):
        WriteShards(folder=folder)


def test_a_note_of_a_stage_of_ones_own_is_not_overwritten(tmp_path: Path) -> None:
    stages = [*first_stages(4, 0.0), JudgeResponses({"careful": SimulatedJudge(seed=1)}, probes=0.0)]
    work = workspace(tmp_path)
    run_stages(stages, work)
    for text in ('{"settings": {}}', "[]", "no json", '{"content": "x", "tasks": 3}'):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(ValueError, match=r"mine\.json: is not a note of shards"):
            run_stages([*stages, WriteShards(folder="mine", audited=False)], work)
        assert (tmp_path / "mine.json").read_text() == text and not (tmp_path / "mine").exists()
