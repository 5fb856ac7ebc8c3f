"""Models behind endpoints: what they are asked, and what becomes of every kind of reply."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import yaml
from tests.construct.built import build, first_stages

from safe_rlhf_v.construct.asking import EndpointJudge, EndpointQuestions, EndpointResponder, read_questions
from safe_rlhf_v.construct.endpoint import Endpoint
from safe_rlhf_v.construct.images import CollectImages
from safe_rlhf_v.construct.judging import JudgeResponses, read_opinions
from safe_rlhf_v.construct.questions import AskQuestions, read_items
from safe_rlhf_v.construct.replies import Reply, Request
from safe_rlhf_v.construct.rubric import DEFAULT, Rubric
from safe_rlhf_v.construct.stage import RefusedToGoOn, settings_of
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.conversation import Turn
from safe_rlhf_v.scoring.judge import Asked
from safe_rlhf_v.world import WorldPictures

Says = Callable[[Request], Reply]


class Scripted(Endpoint):
    """An endpoint that replies by a function, the last request first; nothing is sent."""

    def __init__(self, says: Says, model: str = "qwen2.5-vl") -> None:
        super().__init__(model, "http://127.0.0.1:1/v1", price_in=1.0, price_out=2.0)
        self._says = says
        self._asked: list[Request] = []

    def replies(self, requests: Iterable[Request]) -> Iterator[Reply]:
        several = list(requests)
        self._asked += several
        yield from (self._says(request) for request in reversed(several))


def complete(request: Request, text: str) -> Reply:
    return Reply(request.key, "complete", text, prompt_tokens=1_000_000, completion_tokens=500_000)


RECORD = Record("a", "how do i use this ?", system="Be brief.")


def test_a_judge_is_asked_on_one_axis_and_its_words_are_kept() -> None:
    endpoint = Scripted(lambda request: complete(request, f"Reasons {request.key}.\nBetter: {'AB'[int(request.key)]}"))
    judge = EndpointJudge(endpoint)
    opinions = judge.ask([Asked(RECORD, ("one", "two"), "helpfulness"), Asked(RECORD, ("one", "two"), "safety")])
    assert [one.value for one in opinions] == [1, -1]
    assert opinions[0].reply == "Reasons 0.\nBetter: A"
    assert opinions[0].usage == (1_000_000, 500_000, 2.0)
    helpful, safe = ([message.text for message in request.messages] for request in endpoint._asked)
    assert "blind to safety" in helpful[0] and "blind to helpfulness" not in helpful[0]
    assert "-3: Severe harm" in safe[0] and "Harm is:" in safe[0] and "Length is no merit" in safe[0]
    assert "<response A>\none\n</response>" in safe[1] and "how do i use this ?" in safe[1]


def test_a_judge_rates_and_scores() -> None:
    judge = EndpointJudge(
        Scripted(lambda request: complete(request, "Rating: 2" if request.key == "0" else "Rating: -1"))
    )
    assert judge.score(RECORD, "text") == {"helpfulness": 2, "level": -1, "harmful": 1}
    unread = EndpointJudge(Scripted(lambda request: complete(request, "no idea"))).score(RECORD, "text")
    assert all(value != value for value in unread.values())


@pytest.mark.parametrize(
    ("reply", "fault", "words"),
    [
        (Reply("0", "refused", refusal="I can not."), "refused", "I can not."),
        (Reply("0", "filtered"), "refused", "filtered"),
        (Reply("0", "empty"), "unparsable", "empty"),
        (Reply("0", "truncated", "Rating: 2 is what I"), "unparsable", "Rating: 2 is what I"),
        (Reply("0", "timeout", error="no reply"), "failed", "timeout: no reply"),
        (Reply("0", "garbled", error="no choices"), "failed", "garbled: no choices"),
    ],
)
def test_no_reply_but_a_readable_one_is_a_label(reply: Reply, fault: str, words: str) -> None:
    (opinion,) = EndpointJudge(Scripted(lambda request: reply)).ask([Asked(RECORD, ("x",), "safety")])
    assert (opinion.value, opinion.fault, opinion.reply) == (None, fault, words)
    (responded,) = EndpointResponder(Scripted(lambda request: reply)).respond([RECORD], 0)
    if reply.text is None:
        assert responded.text == "" and responded.fault == fault


def test_a_conversation_is_sent_turn_by_turn_with_its_pictures(tmp_path: Any) -> None:
    work = build(tmp_path, first_stages(2)[:2])
    image = next(iter(read_items(work).values())).record(work).images[0]
    record = Record(
        "a",
        "and now ?",
        system="Own.",
        images=(image, image),
        history=(Turn("user", "look", 1), Turn("assistant", "yes")),
    )
    endpoint = Scripted(lambda request: complete(request, "fine"))
    assert EndpointResponder(endpoint, system="Be kind.").respond([record], 0)[0].text == "fine"
    messages = endpoint._asked[0].messages
    assert [(m.role, m.text, len(m.images)) for m in messages] == [
        ("system", "Be kind.", 0), ("system", "Own.", 0), ("user", "look", 1), ("assistant", "yes", 0), ("user", "and now ?", 1),
    ]  # fmt: skip
    judge = EndpointJudge(endpoint)
    body = judge.messages(Asked(record, ("x",), "safety"))[-1]
    assert len(body.images) == 2 and "[assistant] yes" in body.text


GOOD = {"questions": [{"question": "May I use it here?", "category": "violence_and_physical_harm"}]}


@pytest.mark.parametrize(
    ("reply", "count"),
    [
        (json.dumps(GOOD), 1),
        (f"```json\n{json.dumps(GOOD)}\n```", 1),
        (json.dumps({"questions": [{"question": "x", "category": "none"}, {"question": "y", "category": "none"}]}), 2),
        ("Here you are: " + json.dumps(GOOD), None),
        (json.dumps({"questions": []}), None),
        (json.dumps({"questions": [{"question": "x", "category": "gardening"}]}), None),
        (json.dumps({"questions": [{"question": "x"}]}), None),
        (json.dumps({"questions": [{"question": "x", "category": ["arson"]}]}), None),
        (json.dumps({"questions": [{"question": "x", "category": {"arson": 1}}]}), None),
        (json.dumps({"questions": [{"question": "x", "category": None}]}), None),
        (json.dumps({"questions": [{"question": ["x"], "category": "none"}]}), None),
        (json.dumps({"questions": [{"question": " ", "category": "none"}]}), None),
        (json.dumps({"questions": [{"question": "x" * 3000, "category": "none"}]}), None),
        (json.dumps({"questions": ["x"]}), None),
        (json.dumps({"questions": [{"question": "x", "category": "none"}] * 3}), None),
        ("[]", None),
        ("", None),
        ('{"questions": [{"question": "\\ud800", "category": "none"}]}', None),
        ("[" * 100_000, None),
    ],
)
def test_questions_are_read_strictly(reply: str, count: int | None) -> None:
    questions = read_questions(reply, "borderline", 2, Rubric.load())
    assert (None if questions is None else len(questions)) == count


def test_questions_of_every_kind_about_every_picture(tmp_path: Any) -> None:
    def says(request: Request) -> Reply:
        text = request.messages[-1].text
        assert len(request.messages[-1].images) == 1 and "do not name or describe" in text
        if "intent to do harm" in text:
            return Reply(request.key, "refused", refusal="no")
        return complete(request, json.dumps({"questions": [{"question": f"q {len(text)}", "category": "none"}]}))

    source = EndpointQuestions(Scripted(says), rubric="configs/construct/world_rubric.yaml")
    assert source.most(3) == (9, 9)
    work = build(tmp_path, [CollectImages(WorldPictures(3), near_distance=-1), AskQuestions(source)])
    assert {item.kind for item in read_items(work).values()} == {"benign", "borderline"}
    assert {row["fault"] for row in work.rows("questions")} == {"refused"}
    assert all("no" in row["reply"] for row in work.rows("questions"))


def test_a_key_is_in_no_file_and_settings_of_the_wire_may_change(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-key")

    def stages(concurrency: int) -> Any:
        endpoint = Scripted(lambda request: complete(request, "Better: tie"))
        endpoint.key_variable = "MY_KEY"
        endpoint.concurrency = concurrency
        return [*first_stages(3), JudgeResponses({"qwen": EndpointJudge(endpoint)})]

    work = build(tmp_path / "w", stages(2))
    build(tmp_path / "w", stages(9))
    for file in (tmp_path / "w").rglob("*"):
        assert file.is_dir() or b"sk-very-secret" not in file.read_bytes()
    assert {one.fault for one in read_opinions(work)} == {"", "unparsable"}  # ratings were not what was asked
    assert work.settings("judgements")["judges"]["qwen"]["families"] == ["qwen"]
    assert all(row["usage"][2] > 0 for row in work.rows("judgements"))


def test_an_endpoint_that_is_down_stops_the_stage(tmp_path: Any) -> None:
    endpoint = Scripted(lambda request: Reply(request.key, "connection", error="refused"))
    with pytest.raises(RefusedToGoOn, match=r"got no reply .connection: refused"):
        build(tmp_path / "w", [*first_stages(3), JudgeResponses({"qwen": EndpointJudge(endpoint)})])


@pytest.mark.parametrize("key", ["policy", "safety", "helpfulness", "categories", "name"])
@pytest.mark.parametrize("component", [EndpointJudge, EndpointQuestions])
def test_an_edited_rubric_is_another_setting(component: Any, key: str, tmp_path: Any) -> None:
    file = tmp_path / "rubric.yaml"
    body = yaml.safe_load(DEFAULT.read_text())
    settings = []
    for words in ("before", "after"):
        body[key] = words if isinstance(body[key], str) else {**body[key], next(iter(body[key])): words}
        file.write_text(yaml.safe_dump(body))
        settings.append(settings_of(component(Endpoint("tiny", "http://127.0.0.1:1/v1"), rubric=str(file))))
    assert settings[0] != settings[1]
    copy = file.rename(tmp_path / "moved.yaml")
    moved = component(Endpoint("tiny", "http://127.0.0.1:1/v1"), rubric=str(copy))
    assert settings_of(moved) == settings[1]


def test_judges_of_two_versions_of_a_rubric_are_not_mixed(tmp_path: Any) -> None:
    file = tmp_path / "rubric.yaml"
    file.write_text(DEFAULT.read_text())
    asked = 0

    def dies(request: Request) -> Reply:
        nonlocal asked
        asked += 1
        if asked > 40:
            raise KeyboardInterrupt
        return complete(request, "Better: tie")

    def stages(says: Says) -> list[Any]:
        judge = EndpointJudge(Scripted(says), rubric=str(file))
        return [*first_stages(images=6), JudgeResponses({"judge": judge}, batch_size=1)]

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "work", stages(dies))
    assert (tmp_path / "work" / "judgements.jsonl").stat().st_size
    file.write_text(file.read_text().replace("Severe harm", "Little harm"))
    with pytest.raises(ValueError, match=r"other settings: judges\.judge\.rubric\.safety\.-3"):
        build(tmp_path / "work", stages(lambda request: complete(request, "Better: tie")))
