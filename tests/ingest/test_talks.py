"""Tables of conversations, several pictures and votes: in both formats the same shards, and every problem in its column."""

import csv
import io
import json

import pytest
from tests.ingest.conftest import lines, listed

from safe_rlhf_v.records import PairVotes, Turn, Votes
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.shards.check import check

HISTORY = [{"role": "user", "text": 'what, "here" ?', "images": 2}, {"role": "assistant", "text": "two\nthings"}]
ROW = {
    "question": "and this ?", "image": ["0.jpg", "1.jpg", "2.jpg"], "system": "be kind", "history": HISTORY, "prompt_safety": -2,
    "response_0": "a", "safety_0": 1, "helpfulness_0": 2, "response_1": "b", "safety_1": -1, "helpfulness_1": 2.0,
    "more_helpful": 0, "safer": 0, "safety_votes_0": [1, 1, -1], "is_safe_votes_0": [True, False],
    "helpfulness_votes_1": [2.5, 1], "more_helpful_votes": [0, -1, 1], "safer_votes": [0], "split": "train", "key": "talk",
}  # fmt: skip


def as_csv(row):
    def cell(name, value):
        if name == "history" and not isinstance(value, str):
            return json.dumps(value)
        return ";".join(map(str, value)) if isinstance(value, list) else value

    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow({name: cell(name, value) for name, value in row.items()})
    return text.getvalue()


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_conversation_with_votes_is_imported(tmp_path, run, format):
    assert run(as_csv(ROW) if format == "csv" else lines(ROW), f"t.{format}") == 0
    record = ShardedSplit(tmp_path / "out", "train")[0]
    assert record.system == "be kind" and record.prompt_safety == -2
    assert record.history == (Turn("user", 'what, "here" ?', 2), Turn("assistant", "two\nthings"))
    assert record.turns[-1] == Turn("user", "and this ?", 1)
    assert len({image.id for image in record.images}) == 3
    assert record.helpfulness_tie and not record.safety_tie
    assert record.votes == PairVotes((0, -1, 1), (0,))
    assert [r.votes for r in record.responses] == [Votes((1, 1, -1), (True, False)), Votes(helpfulness=(2.5, 1.0))]
    assert check(tmp_path / "out") == []


def test_both_formats_give_the_same_bytes(tmp_path, run):
    assert run(lines(ROW), "t.jsonl") == 0
    first = (tmp_path / "out" / "train-000000.tar").read_bytes()
    (tmp_path / "out").rename(tmp_path / "first")
    assert run(as_csv(ROW), "t.csv") == 0
    assert (tmp_path / "out" / "train-000000.tar").read_bytes() == first


TURN = HISTORY[0]


@pytest.mark.parametrize(
    ("changes", "column", "problem"),
    [
        ({"history": [TURN]}, "history", "must end with a turn of the assistant"),
        ({"history": HISTORY[::-1]}, "history", "roles alternate"),
        ({"history": [{"role": "user"}, HISTORY[1]]}, "history", "[0].text is missing"),
        ({"history": [{**TURN, "mood": 1}, HISTORY[1]]}, "history", "[0].mood is not part of the schema"),
        ({"history": [{**TURN, "images": 4}, HISTORY[1]]}, "history", "hold 4 images, the record has 3"),
        ({"history": [{**TURN, "text": "a\0"}, HISTORY[1]]}, "history", "[0].text holds a NUL"),
        ({"history": "what ?"}, "history", ("must be list", "not readable as JSON")),
        ({"history": {"a": 1}}, "history", "must be list"),
        ({"image": ["0.jpg", "gone.jpg", "1.jpg"]}, "image", "'gone.jpg'"),
        ({"image": ["0.jpg", "", "1.jpg"]}, "image", "entry 1 is empty"),
        ({"image": ["0.jpg", "../t.csv", "1.jpg"]}, "image", "outside"),
        ({"prompt_safety": 4}, "prompt_safety", "outside -3..3"),
        ({"prompt_safety": "bad"}, "prompt_safety", "must be a whole number"),
        ({"safety_votes_0": [1, 5]}, "safety_votes_0", "outside -3..3"),
        ({"safety_votes_0": [1, "bad"]}, "safety_votes_0", "entry 1 must be a whole number"),
        ({"is_safe_votes_0": ["maybe", True]}, "is_safe_votes_0", "entry 0 must be"),
        ({"helpfulness_votes_1": ["nan", 1]}, "helpfulness_votes_1", "entry 0 must be a number"),
        ({"more_helpful_votes": [2, 0]}, "more_helpful_votes", "neither -1 (a tie) nor"),
        ({"safer_votes": ["a"]}, "safer_votes", "entry 0 must be a whole number"),
        ({"safety_votes_2": [1]}, "safety_votes_2", "response_2 is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_each_problem_is_named_by_its_column(tmp_path, run, changes, column, problem, format):
    row = ROW | changes
    assert run(as_csv(row) if format == "csv" else lines(row), f"t.{format}") == 2
    ((_, columns, reason),) = listed(tmp_path)
    assert columns == [column], reason
    assert any(words in reason for words in ([problem] if isinstance(problem, str) else problem)), reason


@pytest.mark.parametrize("value", [1, "1;2", {"a": 1}, True])
def test_a_json_list_is_a_list(tmp_path, run, value):
    assert run(lines(ROW | {"safety_votes_0": value}), "t.jsonl") == 2
    assert listed(tmp_path)[0][1:] == (["safety_votes_0"], listed(tmp_path)[0][2])
    assert "must be a list" in listed(tmp_path)[0][2]


def test_one_text_in_json_is_one_name(tmp_path, run, pictures):
    """A name may hold a semicolon there; in CSV it separates."""
    odd = pictures / "a;b.jpg"
    odd.write_bytes((pictures / "3.jpg").read_bytes())
    try:
        assert run(lines({"question": "q", "image": "a;b.jpg", "split": "s"}), "t.jsonl") == 0
        assert len(ShardedSplit(tmp_path / "out", "s")[0].images) == 1
        assert run(b"question,image\nq,a;b.jpg\n", "t.csv") == 2
    finally:
        odd.unlink()
