"""Guarded generation over a split: files, locks, and reports by hand; a judge and a strategy of one's own by class path."""

import json
import math
from pathlib import Path

import pytest
import yaml

from safe_rlhf_v import generate
from safe_rlhf_v.commands.generate import _beside, _cell, _mean, _outcomes, main
from safe_rlhf_v.guard import GuardedGenerator, Strategy
from safe_rlhf_v.guard.generation import Attempt, GuardedResponses
from safe_rlhf_v.guard.verdict import unchecked
from safe_rlhf_v.ingest.picture_groups import PictureGroups
from safe_rlhf_v.records.user_files import lock
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.world import WorldJudge


class Words(Judge):
    """Calls a response harmful that holds a word; knows nothing about helpfulness."""

    def __init__(self, word: str = "the") -> None:
        """Remember the word.

        Args:
            word: The word.
        """
        self.word = word

    def score(self, record, text):
        if self.word == "broken":
            raise ValueError("a fault of the judge")
        return {"harmful": float(self.word in text.split())}


class Colder(Strategy):
    """Every round draws the likeliest tokens."""

    def options(self, round, options):
        from dataclasses import replace

        return replace(options, temperature=0.0)


def test_the_report_counts_what_each_number_of_rounds_gives(world):
    split = ShardedSplit(world, "test")
    record = next(r for r in (split[i] for i in range(12)) if min(r.truth.safety) < 0)
    bad = record.responses[record.truth.safety.index(min(record.truth.safety))].text
    refusal, blank = "i can not help with that", unchecked("x", "m", 0.5)
    attempts = ((Attempt(0, bad, blank),), (Attempt(0, "0 good", blank),))
    responses = GuardedResponses(("0 good",), (1,), attempts, (3, 3))
    generator = GuardedGenerator(None, None, rounds=2, refusal=refusal)
    (outcomes,) = _outcomes(responses, [record], WorldJudge(), generator)
    assert [row["harm"] for row in outcomes] == [True, False, False, False]
    assert [row["released"] for row in outcomes] == [True, False, True, True]
    assert [row["tokens"] for row in outcomes] == [3, 3, 6, 6]
    mean = _mean("round 0", [outcomes[0], outcomes[1]], PictureGroups())
    assert (mean["harm"], mean["harm_released"], mean["refused"]) == (0.5, 1.0, 0.5)
    assert mean["helpfulness"] == pytest.approx((outcomes[0]["help"] + outcomes[1]["help"]) / 2)


def test_what_a_judge_never_says_is_left_out():
    row = {"picture": "a", "harm": None, "released": True, "help": math.nan, "harmless": False, "tokens": 4}
    mean = _mean("round 0", [row, row], PictureGroups())
    assert mean == {"name": "round 0", "prompts": 2, "refused": 0.0, "tokens": 4}


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_response_without_a_verdict_counts_as_harmful(missing):
    row = {"harm": 0.0, "released": True, "help": 1.0, "harmless": True, "tokens": 4}
    rows = [{**row, "picture": str(i), "harm": missing if i % 2 else 0.0, "released": i > 0} for i in range(300)]
    mean = _mean("round 0", rows, PictureGroups())
    assert (mean["harm"], mean["unjudged"], mean["harm_released"]) == (0.5, 0.5, 150 / 299)
    assert mean["harm_upper"] > 0.5
    silent = _mean("round 0", [{**row, "picture": "a", "harm": math.nan}], PictureGroups())
    assert (silent["harm"], silent["unjudged"]) == (1.0, 1.0)


def test_records_that_share_one_of_several_pictures_are_not_independent():
    pictures = PictureGroups()
    row = {"harm": 0.0, "released": True, "help": 1.0, "harmless": True, "tokens": 4}
    for i in range(300):
        pictures.join((f"p{i}", f"shared{i // 3}"))
    mean = _mean("round 0", [{**row, "picture": f"p{i}"} for i in range(300)], pictures)
    assert mean["harm_upper"] == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-3)
    pictures.join(("shared0", "shared50"))  # through a further record
    mean = _mean("round 0", [{**row, "picture": f"p{i}"} for i in range(3)] + [{**row, "picture": "p150"}], pictures)
    assert mean["harm_upper"] == pytest.approx(0.95)  # one group


def test_no_harm_carries_its_upper_bound_by_picture():
    row = {"harm": 0.0, "released": True, "help": 1.0, "harmless": True, "tokens": 4}
    single = _mean("round 0", [{**row, "picture": str(i)} for i in range(300)], PictureGroups())
    assert single["harm"] == 0.0 and single["harm_upper"] == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-3)
    double = _mean("round 0", [{**row, "picture": str(i // 2)} for i in range(300)], PictureGroups())
    assert double["harm_released_upper"] == pytest.approx(1 - 0.05 ** (1 / 150), rel=1e-3)
    assert "harm_upper" not in _mean("round 0", [{**row, "picture": "a", "harm": 2.5}], PictureGroups())  # no share
    assert (
        _cell(single, "harm") == "0.000 (<= 0.010)" and _cell(single, "refused") == "0.000" and _cell({}, "harm") == "-"
    )


def test_refusals_of_harmless_prompts_are_counted_apart():
    row = {"picture": "a", "harm": False, "released": True, "help": 1.0, "harmless": True, "tokens": 4}
    rows = [row, {**row, "released": False, "help": 0.0}, {**row, "harmless": False, "released": False, "help": -1.0}]
    mean = _mean("round 1", rows, PictureGroups())
    assert (mean["refused"], mean["harmless_refused"]) == (pytest.approx(2 / 3), 0.5)
    assert (mean["helpfulness"], mean["harmless_helpfulness"]) == (0.0, 0.5)


def test_the_command_answers_every_prompt(calibrated_run, policy_stages, world, tmp_path, capsys, monkeypatch):
    command = ["--policy", str(policy_stages / "supervised"), "--guard", str(calibrated_run), "--data", str(world),
               "--rounds", "1", "--max_new_tokens", "6", "--batch_size", "5"]  # fmt: skip
    with (tmp_path / "a.jsonl.part").open("ab") as other:
        lock(other, "a.jsonl")
        assert main([*command, "--output", str(tmp_path / "a.jsonl")]) == 2
    assert "a.jsonl: another process is writing it" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "a.jsonl")]) == 0
    assert main([*command, "--output", str(tmp_path / "b.jsonl")]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and all(set(line) == {"key", "response", "round"} for line in lines)
    drafts = [json.loads(line) for line in (tmp_path / "a.drafts.jsonl").read_text().splitlines()]
    assert sorted(draft["key"] for draft in drafts if draft["round"] == 0) == sorted(line["key"] for line in lines)
    passed = {draft["key"]: draft["draft"] for draft in drafts if draft["decision"] == "allow"}
    assert passed == {line["key"]: line["response"] for line in lines if line["round"] >= 0}
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["name"] for row in rows] == ["no guard", "round 0", "round 1"]
    assert all(row["prompts"] == 12 for row in rows)
    assert "by WorldJudge" in capsys.readouterr().out
    assert main([*command, "--check_prompts", "--output", str(tmp_path / "checked.jsonl")]) == 0
    assert json.loads((tmp_path / "checked.json").read_text())[0]["name"] == "prompts checked only"
    (tmp_path / "a.json").write_text(json.dumps([{"name": "no guard", "prompts": 1, "refused": 0.0}]))
    monkeypatch.setattr("safe_rlhf_v.commands.generate.default_judge", lambda record: None)
    assert main([*command, "--output", str(tmp_path / "a.jsonl")]) == 0
    assert not (tmp_path / "a.json").exists(), "it was of other responses"
    command[1] = "nowhere"
    assert main([*command, "--output", str(tmp_path / "c.jsonl")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_judge_and_a_strategy_of_ones_own_come_by_class_path_or_as_objects(
    calibrated_run, policy_stages, world, tmp_path, capsys
):
    settings = {
        "policy": str(policy_stages / "supervised"),
        "guard": str(calibrated_run),
        "data": str(world),
        "rounds": 1,
        "max_new_tokens": 6,
        "judge": {"class_path": "tests.commands.test_generate.Words", "init_args": {"word": "a"}},
    }
    (tmp_path / "generate.yaml").write_text(yaml.safe_dump(settings))
    output = tmp_path / "out.jsonl"
    own = ["--judge.word=the", "--strategy=tests.commands.test_generate.Colder", f"--output={output}"]
    assert main([f"--config={tmp_path / 'generate.yaml'}", *own]) == 0
    printed = capsys.readouterr().out
    assert "by Words" in printed
    assert f"written: {output}" in printed
    reports = json.loads(output.with_suffix(".json").read_text())
    assert "harm" in reports[0]
    assert "helpfulness" not in reports[0]
    settings |= {"judge": Words("the"), "strategy": Colder(), "output": str(tmp_path / "again.jsonl")}
    again = generate(**settings)
    assert again.reports == reports
    assert again.path.read_bytes() == output.read_bytes()


def test_a_fault_of_ones_own_judge_keeps_its_traceback(calibrated_run, policy_stages, world, tmp_path):
    command = [f"--policy={policy_stages / 'supervised'}", f"--guard={calibrated_run}", f"--data={world}", "--rounds=0"]
    broken = ["--judge=tests.commands.test_generate.Words", "--judge.word=broken", "--max_new_tokens=2"]
    with pytest.raises(ValueError, match="a fault of the judge"):
        main([*command, *broken, f"--output={tmp_path / 'out.jsonl'}"])


def test_outputs_that_differ_behind_a_dot_have_files_of_their_own():
    for ending in (".json", ".drafts.jsonl"):
        names = [_beside(Path(name), ending).name for name in ("ppo.seed1", "ppo.seed2", "ppo.jsonl", "a.b.jsonl")]
        assert names == [f"ppo.seed1{ending}", f"ppo.seed2{ending}", f"ppo{ending}", f"a.b{ending}"]
