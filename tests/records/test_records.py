"""Records say exactly which key and field is wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.records import Image, Record, RecordError, Response, Truth
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


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
responses = st.lists(
    st.builds(Response, text, st.none() | st.integers(-3, 3), st.none() | st.booleans(),
              st.none() | st.floats(allow_nan=False, allow_infinity=False), text), max_size=3,
)  # fmt: skip


names = st.lists(st.sampled_from(BEAVERTAILS_V_CATEGORIES), unique=True, max_size=3).map(tuple)


@given(text, responses, st.none() | names, st.dictionaries(text, text, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_valid_record_round_trips(question, answers, category, origin):
    record = Record("k", question, responses=tuple(answers), category=category, origin=origin).validate(BEAVERTAILS_V)
    assert Record.from_json(record.to_json(), (), "k") == record


@pytest.mark.parametrize(
    ("written", "read"),
    [([], ()), (None, None), ("absent", None), ("animal_abuse", ("animal_abuse",)), (["a", "b"], ("a", "b"))],
)
@pytest.mark.parametrize("schema", [1, 2])
def test_a_category_is_names_none_or_unknown(written, read, schema):
    body = json.loads(Record("k", "q").to_json()) | {"schema": schema, "category": written}
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
        ({"schema": 3}, "schema", "reads 1 and 2"),
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
