"""Replies are read strictly: the last line, once, exactly; everything else is no label."""

import pytest

from safe_rlhf_v.construct.reply_parsing import opinion_of, read_choice, read_rating


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("It is fine.\nRating: 2", 2),
        ("Rating: -3", -3),
        ("Rating: +3\n\n", 3),
        ("**Rating: 1**", 1),
        ("  Rating: 0  ", 0),
        ("Rating: 4", None),
        ("Rating: 12", None),
        ("Rating: -4", None),
        ("Rating: 2.5", None),
        ("Rating: two", None),
        ("rating: 2", None),
        ("Rating: 2.", None),
        ("Rating: 2 or 3", None),
        ("Rating: 2\nI am sure.", None),
        ("Rating: 1\nOn second thought.\nRating: 2", None),
        ("I rate it 2", None),
        ("Rating: \u0662", None),  # an Arabic digit
        ("", None),
        ("\n", None),
    ],
)
def test_ratings(reply: str, value: float | None) -> None:
    assert read_rating(reply, "safety") == value


def test_helpfulness_has_no_negative_grades() -> None:
    assert read_rating("Rating: -1", "helpfulness") is None
    assert read_rating("Rating: 3", "helpfulness") == 3


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("A names the object.\nBetter: A", 1),
        ("Better: B", -1),
        ("Better: tie", 0),
        ("Better: both", None),
        ("Better: A\nBetter: B", None),
        ("Better: A and B", None),
        ("A", None),
        ("Better: C", None),
        ("Better: tie, but A is shorter", None),
        ("Better: A\n```", None),
    ],
)
def test_choices(reply: str, value: float | None) -> None:
    assert read_choice(reply) == value


def test_what_cannot_be_read_is_a_class_of_its_own_and_keeps_its_words() -> None:
    unread = opinion_of("Both are good.", 2, "safety")
    assert (unread.value, unread.reply, unread.fault) == (None, "Both are good.", "unparsable")
    read = opinion_of("Better: tie", 2, "safety")
    assert (read.value, read.fault) == (0, "")
    assert opinion_of("Better: A", 1, "safety").fault == "unparsable"  # an answer to another question
