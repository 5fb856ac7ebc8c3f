"""Which pairs go to people, and what becomes of what they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.construct.built import all_stages, build, workspace

from safe_rlhf_v.construct.card import card
from safe_rlhf_v.construct.judging import JudgeResponses
from safe_rlhf_v.construct.labels import JudgeVotes
from safe_rlhf_v.construct.pipeline import run_stages
from safe_rlhf_v.construct.questions import Item
from safe_rlhf_v.construct.responses import Pair
from safe_rlhf_v.construct.select import FILE, informative
from safe_rlhf_v.construct.write import WriteShards
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.world import SimulatedJudge, WorldJudge


def pair(key: str, category: tuple[str, ...] | None) -> Pair:
    return Pair(key, Item(key, {}, "q", None, category, {}), ("a", "b"), ("x", "y"))


def votes(choice: int, levels: tuple[float, float], key: str) -> JudgeVotes:
    rated = {(key, 0): levels[0], (key, 1): levels[1]}
    return JudgeVotes({"safety": {key: choice}, "helpfulness": {key: 0}}, {"safety": rated, "helpfulness": {}})


@pytest.mark.parametrize(
    ("judges", "category", "reasons"),
    [
        ([(0, (3, -3)), (0, (3, -3))], ("arson",), []),
        ([(0, (3, -3)), (1, (3, -3))], ("arson",), ["judges_disagree"]),
        ([(0, (3, -3)), (-1, (3, -3))], ("arson",), []),  # a tie is no other response
        ([(0, (3, -3)), (0, (1, -3))], ("arson",), ["judges_disagree"]),  # two levels apart
        ([(0, (3, -3)), (0, (2, -3))], ("arson",), []),
        ([(0, (0, -3)), (0, (0, -3))], ("arson",), ["near_the_threshold"]),
        ([(0, (3, -1)), (0, (3, -2))], ("arson",), []),  # the lower one of two middle levels
        ([(0, (3, -3))], ("fraud",), ["rare_category"]),
        ([(0, (3, -3))], (), []),
        ([(0, (3, -3))], None, []),
    ],
)
def test_reasons(
    judges: list[tuple[int, tuple[float, float]]], category: tuple[str, ...] | None, reasons: list[str]
) -> None:
    others = {f"o{i}": pair(f"o{i}", ("arson",)) for i in range(3)}
    pairs = {"p": pair("p", category), **others}
    chosen = informative(pairs, {str(i): votes(*one, "p") for i, one in enumerate(judges)}, rare=2)
    assert chosen.get("p", []) == reasons


def test_peoples_votes_replace_those_of_the_judges(tmp_path: Path) -> None:
    work = build(tmp_path / "w", all_stages()[:-1])
    note = json.loads((tmp_path / "w" / FILE).read_bytes())
    key = next(iter(note["chosen"]))
    said = {"key": key, "more_helpful": 1, "safer": -1, "safety": [2, 2], "helpfulness": [0, 3]}
    note["annotations"] = [
        {**said, "annotator": "1"},
        {**said, "annotator": "2", "safer": 0},
        {**said, "annotator": "3"},
    ]
    (tmp_path / "w" / FILE).write_text(json.dumps(note))
    WriteShards(truth=WorldJudge()).run(work)
    records = {
        r.key: r
        for split in Manifest.load(tmp_path / "w" / "shards").splits
        for r in ShardedSplit(tmp_path / "w" / "shards", split)
    }
    record = records[key]
    assert record.votes is not None and record.votes.safer == (-1, 0, -1)
    assert (record.more_helpful, record.safer, record.safety_tie) == (1, None, True)
    assert [response.helpfulness for response in record.responses] == [0, 3]
    other = next(one for name, one in records.items() if name not in note["chosen"])
    assert other.votes is not None and len(other.votes.safer) == 2


def test_judges_with_alarms_and_leaking_questions_are_left_out_only_where_the_audit_counts(tmp_path: Path) -> None:
    judges = {"careful": SimulatedJudge(seed=1), "lazy": SimulatedJudge(lazy=1.0)}
    stages = [
        *all_stages(),
    ]
    stages[4] = JudgeResponses(judges, probes=0.5)
    work = workspace(tmp_path / "w")
    numbers = run_stages(stages, work)["shards"]
    assert numbers["judges_left_out"] == 1
    raw = WriteShards(audited=False, folder="raw", truth=WorldJudge())
    assert "judges_left_out" not in raw.run(work) and "leaking_pairs" not in raw.run(work)
    assert "**Judges with alarms were not left out.**" in (tmp_path / "w" / "card.md").read_text()
    none = [*all_stages()[:4], JudgeResponses({"lazy": SimulatedJudge(lazy=1.0)}, probes=1.0), *all_stages()[5:]]
    with pytest.raises(ValueError, match="every judge has an alarm"):
        run_stages(none, workspace(tmp_path / "n"))


def test_splits_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        WriteShards(splits={"train": 0.5})
    with pytest.raises(ValueError, match="sum to 1"):
        WriteShards(splits={"train": 1.5, "test": -0.5})


def test_texts_of_the_data_have_no_meaning_in_the_card(tmp_path: Path) -> None:
    work = build(tmp_path / "w", all_stages())
    records = [("train", r) for r in ShardedSplit(tmp_path / "w" / "shards", "train")]
    split, record = records[0]
    wild = replace(record, responses=tuple(replace(r, source="<img src=x> | **b**\n# h") for r in record.responses))
    text = card(work, [(split, wild)], {}, True)
    assert "\n# h" not in text and r"| \<img src=x\> \| \*\*b\*\* \# h | 2 |" in text
