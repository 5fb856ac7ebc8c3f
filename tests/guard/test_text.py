"""Tricks are undone and flagged, genuine writing is left alone, and no string does harm."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.guard.text import MAX_CHARACTERS, RefusedText, normalise


@pytest.mark.parametrize(
    ("tricked", "plain", "flag"),
    [
        ("p\u043e\u0456son it", "poison it", "homoglyph"),
        ("\u0397ello", "Hello", "homoglyph"),
        ("po\u200bis\u00adon", "poison", "invisible"),
        ("poi\u2060\ufeffson", "poison", "invisible"),
        ("poison\U000e0070\U000e006f", "poison", "invisible"),
        ("poi\ufe0fson", "poison", "invisible"),
        ("\u3164poison\u3164", "poison", "invisible"),
        ("\u202epoison\u202c", "poison", "bidi"),
        ("\u2066poison\u2069", "poison", "bidi"),
        ("p o i s o n the dog", "poison the dog", "spacing"),
        ("p.o.i.s.o.n", "poison", "spacing"),
        ("p\u200b \u200bo i s o n", "poison", "spacing"),
        ("poi\x07son", "poison", "control"),
        ("p\no\ni\ns\no\nn", "poison", "spacing"),
    ],
)
def test_tricks(tricked, plain, flag):
    clean = normalise(tricked)
    assert clean.text == plain
    assert flag in clean.flags


def test_paragraphs_stay_and_other_white_space_is_one_space():
    text = " First.\t Second. \r\n\r\n\r\n  1. one\u2028 2. two \x0b\x85 "
    assert normalise(text) == ("First. Second.\n\n1. one\n2. two", ())


def test_compatibility_forms_and_stacked_marks():
    assert normalise("\uff50\uff4f\uff49\U0001d4c8\u24de\u207f").text == "poison"
    stacked = normalise("p" + "\u0336\u0353\u033d\u036b" * 3 + "oison")
    assert stacked.flags == ("combining",) and sum(unicodedata.combining(c) > 0 for c in stacked.text) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Can I drink this? It's 5.5 % (U.S.A.), e.g. a b c.",
        "Привет, мир. Это текст.",
        "Καλημέρα κόσμε",
        "مرحبا بالعالم",
        "می\u200cخواهم",
        "क\u094d\u200dष नमस्ते",
        "你好，世界".replace("，", ", "),
        "Tiếng Việt",
        "👨\u200d👩\u200d👧 ❤\ufe0f",
        "naïve café",
    ],
)
def test_genuine_writing_stays(text):
    assert normalise(text) == (unicodedata.normalize("NFC", text), ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [("x" * (MAX_CHARACTERS + 1), "too_long"), ("\ufdfa" * 2000, "too_long"), ("a\ud800", "invalid_unicode"),
     ("a\0b", "control_characters")],
)  # fmt: skip
def test_refusals(text, reason):
    with pytest.raises(RefusedText) as refusal:
        normalise(text)
    assert refusal.value.reason == reason


ANY = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("ab .-\n\r\u2028\u200b\u200d\u202e\u0430\u0456\u0301\u0336\ufe0f\U000e0061\u0644👨"),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_any_string_is_cleaned_once_and_for_all_or_refused(text):
    try:
        clean = normalise(text)
    except RefusedText:
        return
    again = normalise(clean.text)
    assert again.text == clean.text
    for character in clean.text:
        assert unicodedata.category(character) not in ("Cc", "Cs") or character == "\n"
        assert unicodedata.category(character) != "Cf" or character in "\u200c\u200d"


@pytest.mark.parametrize("piece", ["a ", "\u0336", "\u200d", "\u0430b", "👨\u200d", ". ", "a\u0301"])
def test_hostile_texts_take_little_time(piece):
    start = time.process_time()
    normalise(piece * (MAX_CHARACTERS // len(piece)))
    assert time.process_time() - start < 2
