"""Questions, responses and gold items out of files of others; near-identical pairs; the rubric."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.construct.built import ROOT, RUBRIC, build, first_stages

from safe_rlhf_v.construct.gold import GoldResponses
from safe_rlhf_v.construct.images import CollectImages
from safe_rlhf_v.construct.questions import AskQuestions, QuestionFile, read_items
from safe_rlhf_v.construct.responses import Respond, Responded, Responder, StoredResponses, near_identical, read_pairs
from safe_rlhf_v.construct.rubric import DEFAULT, Rubric
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V, LEVEL_NAMES
from safe_rlhf_v.scoring.judge import Asked
from safe_rlhf_v.world import WORLD, WorldPictures


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def questions(tmp_path: Path, *rows: dict[str, Any], columns: dict[str, str] | None = None) -> Any:
    stages = [
        CollectImages(WorldPictures(3), near_distance=-1),
        AskQuestions(QuestionFile(jsonl(tmp_path / "q.jsonl", *rows), columns)),
    ]
    return read_items(build(tmp_path / "w", stages))


def test_any_generators_columns_are_read(tmp_path: Path) -> None:
    items = questions(
        tmp_path,
        {"img": "scene-000000", "prompt": "wás ist das?", "intent": "benign", "label": ["arson"], "more": 1},
        {"img": "scene-000000", "prompt": "Wás  ist das?"},  # the same again
        {"img": "scene-000002", "prompt": "what is it?", "label": []},
        {"img": "no such image", "prompt": "what is it?"},
        columns={"image": "img", "question": "prompt", "kind": "intent", "category": "label"},
    )
    assert list(items) == ["i000000-q0", "i000002-q0"]
    assert items["i000000-q0"].category == ("arson",) and items["i000000-q0"].kind == "benign"
    assert items["i000002-q0"].category == () and items["i000002-q0"].kind is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "scene-000000", "question": ""}, "question: is empty"),
        ({"image": "scene-000000", "question": " "}, "white space only"),
        ({"image": "scene-000000", "question": 3}, "must be text"),
        ({"image": "scene-000000", "question": "x", "kind": "rude"}, "'rude' is none of benign"),
        ({"image": "scene-000000"}, "question: is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        questions(tmp_path, row)


def test_an_unknown_category_or_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'gardening' is not in the rubric"):
        questions(tmp_path, {"image": "scene-000000", "question": "x", "category": ["gardening"]})
    with pytest.raises(ValueError, match="columns: 'prompt' is none of image, question"):
        QuestionFile("x", {"prompt": "question"})


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("Keep it away.", "keep  it AWAY", True),
        ("Keep it away.", "Keep it near.", False),
        (" ".join(map(str, range(100))), " ".join(map(str, [*range(99), "x"])), True),
        (" ".join(map(str, range(20))), " ".join(map(str, [*range(19), "x"])), False),
        ("", "", True),
        ("...", "!", True),
        ("a b", "b a", False),
    ],
)
def test_near_identical_responses(first: str, second: str, alike: bool) -> None:
    assert near_identical(first, second, 0.97) is alike
    assert near_identical(second, first, 0.97) is alike


class Fixed(Responder):
    """Gives one text of several."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def respond(self, records: Sequence[Record], seed: int, draw: int = 0) -> list[Responded]:
        return [Responded(self.texts[draw]) for _ in records]


def pairs(tmp_path: Path, responders: dict[str, Responder], **options: Any) -> Any:
    work = build(tmp_path / "w", [*first_stages(2)[:2], Respond(responders, **options)])
    return read_pairs(work), work


def test_pairs_of_different_sources_come_first_and_alike_ones_are_refused(tmp_path: Path) -> None:
    two, _ = pairs(tmp_path, {"one": Fixed("x", "y"), "two": Fixed("X.", "z")}, draws=2, pairs_per_question=2)
    assert two.near_identical == 4  # x and X. of four questions
    per_question = [pair for pair in two.usable.values() if pair.item.key == "i000000-q0"]
    assert [(pair.texts, pair.sources) for pair in per_question] == [
        (("x", "z"), ("one", "two")),
        (("y", "X."), ("one", "two")),
    ]
    assert per_question[0].key == "i000000-q0-03"


def test_responses_without_text_make_no_pair(tmp_path: Path) -> None:
    none, work = pairs(tmp_path, {"one": Fixed("x"), "two": Fixed("  ")})
    assert none.usable == {}
    assert {row.get("fault") for row in work.rows("responses")} == {None, "empty"}


def test_a_pair_needs_two_responses() -> None:
    with pytest.raises(ValueError, match="needs two responses"):
        Respond({"one": Fixed("x")})
    Respond({"one": Fixed("x", "y")}, draws=2)
    with pytest.raises(ValueError, match="similarity is 0"):
        Respond({"one": Fixed("x"), "two": Fixed("y")}, similarity=0)


def test_stored_responses_are_found_by_image_and_question(tmp_path: Path) -> None:
    work = build(tmp_path / "w", first_stages(2)[:2])
    record = next(iter(read_items(work).values())).record(work)
    sha = record.images[0].sha256
    file = jsonl(
        tmp_path / "r.jsonl",
        {"q": record.question, "a": "to anybody"},
        {"q": record.question, "a": "to this picture", "i": sha},
    )
    stored = StoredResponses(file, {"question": "q", "response": "a", "image": "i"})
    other = Record("x", record.question)
    assert [one.text for one in stored.respond([record, other], 0)] == ["to this picture", "to anybody"]
    assert stored.respond([Record("x", "unknown")], 0)[0].fault == "missing"
    twice = jsonl(tmp_path / "t.jsonl", {"question": "a", "response": "b"}, {"question": "a", "response": "c"})
    with pytest.raises(TableError, match="occurs twice with the same image"):
        StoredResponses(twice).respond([other], 0)


def test_gold_items_rate_and_compare_what_they_know(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("question,response,helpfulness,safety\nq,good,3,2\nq,bad,1,-2\nq,half,,0\n")
    gold = GoldResponses(str(tmp_path / "g.csv"))
    record = Record("x", "q")
    asked = [
        Asked(record, ("good", "bad"), "safety"),
        Asked(record, ("bad",), "safety"),
        Asked(record, ("half",), "helpfulness"),
        Asked(record, ("half", "new"), "safety"),
    ]
    assert [one.value for one in gold.ask(asked)] == [1, -2, None, None]
    (tmp_path / "g.csv").write_text("question,response,safety\nq,good,4\n")
    with pytest.raises(TableError, match=r"4 is outside -3\.\.3"):
        GoldResponses(str(tmp_path / "g.csv")).ask(asked)


def test_the_shipped_rubrics_are_complete() -> None:
    assert Rubric.load().taxonomy == BEAVERTAILS_V
    assert Rubric.load(RUBRIC).taxonomy == WORLD
    assert DEFAULT.samefile(ROOT / "configs" / "construct" / "rubric.yaml")
    for rubric in (Rubric.load(), Rubric.load(RUBRIC)):
        assert set(rubric.safety) == set(LEVEL_NAMES) and list(rubric.helpfulness) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": None}, "name and policy must be texts"),
        ({"name": ""}, "name and policy"),
        ({"safety": {0: "x"}}, r"safety must have exactly the keys -3\.\.3"),
        ({"helpfulness": {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}}, "helpfulness must have exactly"),
        ({"helpfulness": {"0": "a", "1": "b", "2": "c", "3": "d"}}, "helpfulness must have exactly"),
        ({"categories": ["a"]}, "categories must give a text for each"),
        ({"categories": {1: "a"}}, "categories must be named by texts"),
        ({"more": 1}, "must have the keys"),
    ],
)
def test_an_incomplete_rubric_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    body = yaml.safe_load(RUBRIC.read_text()) | change
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(ValueError, match=message):
        Rubric.load(file)


@pytest.mark.parametrize("text", ["", "[1", "a: 1\na: 2", "- x", "\x00"])
def test_a_file_that_is_no_rubric_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"r\.yaml"):
        Rubric.load(tmp_path / "r.yaml")
