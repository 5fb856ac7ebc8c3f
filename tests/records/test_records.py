"""Records say exactly which key and field is wrong."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shards.conftest import written_by

from safe_rlhf_v.records import Context, Image, PairVotes, Record, RecordError, Response, Truth, Turn, Votes
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V, BEAVERTAILS_V_CATEGORIES, is_harmful

PICTURE = Image(b"bytes", "png", "a" * 64, "b" * 64, 3, 2)
PAIR = Record(
    "train-1", "what is this ?", (PICTURE,), (Response("one", -2, False, 1.5, "m"), Response("two", 3, True)),
    category=("animal_abuse",), image_severity=2, more_helpful=0, safer=1, origin={"row": "17"},
    truth=Truth((1.0, 0.5), (-2, 3), {"object": 3}, "train-2", ("direct", "refusal")),
)  # fmt: skip


def body(**changes):
    return json.dumps({**json.loads(PAIR.to_json()), **changes}).encode()


def test_round_trip_and_stable_bytes():
    assert Record.from_json(PAIR.to_json(), (b"bytes",), "train-1") == PAIR
    assert PAIR.to_json() == Record.from_json(PAIR.to_json(), (b"bytes",)).to_json()
    keys = set(json.loads(Record("a", "q").to_json()))
    assert keys == set(json.loads(PAIR.to_json()))  # all keys always present


TALK = replace(
    PAIR,
    images=(PICTURE, replace(PICTURE, id="c" * 64), replace(PICTURE, id="d" * 64)),
    system="Be careful.",
    history=(Turn("user", "and here ?", 2), Turn("assistant", "a dog")),
    prompt_safety=-1,
    helpfulness_tie=True,
    votes=PairVotes((0, -1, 1), (1,)),
    responses=(replace(PAIR.responses[0], votes=Votes((-2, -3), (False, True), (1, 2.5))), PAIR.responses[1]),
)


@pytest.mark.parametrize(("field", "side"), [("width", 0), ("width", -8), ("height", -1), ("height", 0)])
def test_a_picture_without_pixels_is_refused(field, side):
    broken = replace(PAIR, images=(replace(PICTURE, **{field: side}),))
    with pytest.raises(RecordError, match=rf"images\[0\]\.{field}.*at least 1 pixel, not {side}"):
        broken.validate()
    images = [{**json.loads(PAIR.to_json())["images"][0], field: side}]
    with pytest.raises(RecordError, match=rf"images\[0\]\.{field}"):
        Record.from_json(body(images=images), (b"bytes",), "train-1")


def test_a_conversation_round_trips_with_its_votes():
    data = (b"bytes",) * 3
    assert Record.from_json(TALK.validate().to_json(), data, "train-1") == TALK
    assert json.loads(TALK.to_json())["history"][0] == {"images": 2, "role": "user", "text": "and here ?"}
    assert TALK.turns == (*TALK.history, Turn("user", "what is this ?", 1))
    assert TALK.context.with_images(1) == Context("Be careful.", (Turn("user", "and here ?", 1), TALK.history[1]))
    assert PAIR.turns == (Turn("user", "what is this ?", 1),)


def test_other_images_take_the_same_places():
    fewer = TALK.with_images(TALK.images[1:2]).validate()
    assert [turn.images for turn in fewer.turns] == [1, 0, 0] and fewer.question == TALK.question
    assert [turn.images for turn in TALK.with_images(()).validate().turns] == [0, 0, 0]
    assert TALK.with_images(TALK.images) == TALK


@pytest.mark.parametrize("schema", [1, 2])
def test_older_files_have_one_turn_and_no_votes(schema):
    old = written_by(schema, PAIR)
    assert Record.from_json(json.dumps(old).encode(), (b"bytes",), "train-1") == PAIR
    for body, name in ((old | {"system": "s"}, "system"), (old | {"votes": None}, "votes")):
        with pytest.raises(RecordError, match=f"'{name}': is not part of the schema"):
            Record.from_json(json.dumps(body).encode(), (b"bytes",))


def test_the_shorthand_of_one_turn_is_a_file_too():
    short = {
        name: value for name, value in json.loads(PAIR.to_json()).items() if name not in ("system", "history", "votes")
    }
    assert Record.from_json(json.dumps(short).encode(), (b"bytes",)) == PAIR


def test_a_text_only_record_is_grouped_by_its_whole_prompt():
    talk = (Turn("user", "a"), Turn("assistant", "b"))
    prompts = [Record("k", "q"), Record("k", "q", system="s"), Record("k", "q", history=talk), Record("k", "q", system="s", history=talk),
               Record("k", "b", history=(Turn("user", "q"), Turn("assistant", "a")))]  # fmt: skip
    assert len({prompt.group for prompt in prompts}) == len(prompts)
    assert prompts[0].group == "text:q"
    assert replace(PAIR, system="s").group == PAIR.group == PICTURE.id


USER = {"role": "user", "text": "a", "images": 0}
ASSISTANT = {"role": "assistant", "text": "b", "images": 0}


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"system": None}, "system", "must be str"),
        ({"history": "hello"}, "history", "must be list"),
        ({"history": [USER]}, "history", "must end with a turn of the assistant"),
        ({"history": [ASSISTANT, USER]}, "history[0].role", "roles alternate"),
        ({"history": [USER, USER]}, "history[1].role", "is 'user', not 'assistant'"),
        ({"history": [USER | {"role": "system"}, ASSISTANT]}, "history[0].role", "is 'system'"),
        ({"history": [{"role": "user"}, ASSISTANT]}, "history[0].text", "is missing"),
        ({"history": [USER | {"mood": "bad"}, ASSISTANT]}, "history[0].mood", "not part of the schema"),
        ({"history": [USER | {"images": 2}, ASSISTANT]}, "history", "hold 2 images, the record has 1"),
        ({"history": [USER | {"images": -1}, ASSISTANT]}, "history[0].images", "must be a count"),
        ({"history": [USER | {"images": True}, ASSISTANT]}, "history[0].images", "must be int"),
        ({"history": [USER, ASSISTANT | {"images": 1}]}, "history[1].images", "only turns of the user"),
        ({"history": [USER | {"text": "\ud800"}, ASSISTANT]}, "history[0].text", "lone surrogate"),
        ({"prompt_safety": 4}, "prompt_safety", "outside -3..3"),
        ({"prompt_safety": True}, "prompt_safety", "must be int"),
        ({"helpfulness_tie": None}, "helpfulness_tie", "must be bool"),
        ({"votes": {"safer": [2]}}, "votes.safer[0]", "neither -1 (a tie) nor"),
        ({"votes": {"safer": [0, -2]}}, "votes.safer[1]", "neither -1 (a tie) nor"),
        ({"votes": {"more_helpful": [True]}}, "votes.more_helpful[0]", "must be int"),
        ({"votes": {"more_helpful": 1}}, "votes.more_helpful", "must be list"),
        ({"votes": {"funnier": [1]}}, "votes.funnier", "not part of the schema"),
        ({"votes": [0]}, "votes", "must be dict"),
    ],
)  # fmt: skip
def test_the_message_names_the_field_of_a_conversation(changes, field, problem):
    with pytest.raises(RecordError) as caught:
        Record.from_json(body(**changes), (b"bytes",))
    assert caught.value.field == field
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("votes", "field"),
    [({"safety": [0, 4]}, "safety[1]"), ({"safety": [1.5]}, "safety[0]"), ({"is_safe": [1]}, "is_safe[0]"),
     ({"helpfulness": ["a"]}, "helpfulness[0]"), ({"helpfulness": [10**400]}, "helpfulness[0]"), ({"mood": []}, "mood")],
)  # fmt: skip
def test_the_message_names_the_vote(votes, field):
    responses = json.loads(PAIR.to_json())["responses"]
    responses[1]["votes"] = votes
    with pytest.raises(RecordError) as caught:
        Record.from_json(body(responses=responses), (b"bytes",))
    assert caught.value.field == f"responses[1].votes.{field}"


@pytest.mark.parametrize(
    "changes",
    [{"history": [Turn("user", "a"), Turn("assistant", "b")]}, {"history": (("user", "a", 0), Turn("assistant", "b"))},
     {"history": (Turn("user", None), Turn("assistant", "b"))}, {"history": (Turn("user", "a", 0.5), Turn("assistant", "b"))},
     {"votes": (0, 1)}, {"votes": PairVotes([0])}, {"votes": Votes()}, {"responses": (Response("x", votes=PairVotes()),)}],
)  # fmt: skip
def test_parts_of_the_wrong_type_are_named(changes):
    with pytest.raises(RecordError):
        replace(Record("k", "q"), **changes).validate()


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
responses = st.lists(
    st.builds(Response, text, st.none() | st.integers(-3, 3), st.none() | st.booleans(),
              st.none() | st.floats(allow_nan=False, allow_infinity=False), text), max_size=3,
)  # fmt: skip


names = st.lists(st.sampled_from(BEAVERTAILS_V_CATEGORIES), unique=True, max_size=3).map(tuple)


talks = st.lists(st.tuples(text, text), max_size=2).map(
    lambda pairs: tuple(turn for asked, said in pairs for turn in (Turn("user", asked), Turn("assistant", said)))
)


@given(text, responses, st.none() | names, st.dictionaries(text, text, max_size=3), text, talks)
@settings(max_examples=150, deadline=None)
def test_any_valid_record_round_trips(question, answers, category, origin, system, history):
    record = Record(
        "k", question, responses=tuple(answers), category=category, origin=origin, system=system, history=history
    )
    assert Record.from_json(record.validate(BEAVERTAILS_V).to_json(), (), "k") == record


@pytest.mark.parametrize(
    ("written", "read"),
    [([], ()), (None, None), ("absent", None), ("animal_abuse", ("animal_abuse",)), (["a", "b"], ("a", "b"))],
)
@pytest.mark.parametrize("schema", [1, 2, 3])
def test_a_category_is_names_none_or_unknown(written, read, schema):
    body = {**written_by(schema, Record("k", "q")), "category": written}
    if written == "absent":
        del body["category"]
    assert Record.from_json(json.dumps(body).encode(), (), "k").category == read


@pytest.mark.parametrize("written", [[1], [["a"]], ["a", "a"], {}, 3, True])
def test_other_categories_are_refused(written):
    body = json.loads(Record("k", "q").to_json()) | {"category": written}
    with pytest.raises(RecordError, match="'category'"):
        Record.from_json(json.dumps(body).encode(), (), "k")


def test_plain_text_is_no_list_of_letters():
    with pytest.raises(RecordError, match="must be a list of names"):
        Record("k", "q", category="ab").validate()


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_raise_only_record_errors(data):
    with pytest.raises(RecordError):
        Record.from_json(data, (), "k")


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"schema": 4}, "schema", "reads 1, 2 and 3"),
        ({"key": "a.b"}, "key", "dot"),
        ({"question": None}, "question", "must be str"),
        ({"more_helpful": 2}, "more_helpful", "0-based"),
        ({"more_helpful": True}, "more_helpful", "must be int"),
        ({"safer": -1}, "safer", "0-based"),
        ({"safety_tie": 1}, "safety_tie", "must be bool"),
        ({"surprise": 1}, "surprise", "not part of the schema"),
        ({"images": []}, "images", "describes 0 images"),
        ({"responses": [{"text": "x", "safety": 4, "is_safe": None, "helpfulness": None, "source": ""}] * 2},
         "responses[0].safety", "outside -3..3"),
        ({"responses": [{"text": "x"}]}, "responses[0].safety", "is missing"),
        ({"origin": {"a": 1}}, "origin", "strings"),
        ({"truth": {"helpfulness": [1.0], "safety": [0, 0], "attributes": {}, "twin": "", "rule": []}},
         "truth.helpfulness", "1 entries for 2"),
        ({"truth": {"helpfulness": [1.0, 2.0], "safety": [0, 9], "attributes": {}, "twin": "", "rule": []}},
         "truth.safety", "outside"),
        ({"truth": {"helpfulness": [1.0, 2.0], "safety": [0, 0], "attributes": {"o": "x"}, "twin": "", "rule": []}},
         "truth.attributes.o", "class index"),
    ],
)  # fmt: skip
def test_the_message_names_the_field(changes, field, problem):
    with pytest.raises(RecordError) as caught:
        Record.from_json(body(**changes), (b"bytes",))
    assert caught.value.field == field
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"[1]", "must be an object"),
        (b'{"a": NaN}', "NaN is not allowed"),
        (b'{"a": -Infinity}', "not allowed"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 100_000, "not readable"),
        (b'{"a": "' + b"x" * 1_000_001 + b'"}', "limit is 1000000"),
        (b"\xff\xfe", "not readable"),
    ],
)
def test_hostile_json_is_refused(raw, problem):
    with pytest.raises(RecordError, match=problem):
        Record.from_json(raw, (), "k")


def test_categories_are_checked_against_the_taxonomy():
    PAIR.validate(BEAVERTAILS_V)
    with pytest.raises(RecordError, match="'category': 'weather'"):
        Record("k", "q", category=("weather",)).validate(BEAVERTAILS_V)


def test_the_scale():
    assert [is_harmful(level) for level in range(-3, 4)] == [True] * 3 + [False] * 4
    assert len(set(BEAVERTAILS_V_CATEGORIES)) == 20
