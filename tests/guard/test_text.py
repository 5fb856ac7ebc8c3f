"""Text is read as it stands and as every way of hiding would have it read; what is called a trick spares genuine writing."""

import itertools
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.guard.text import MAX_CHARACTERS, RefusedText, has_words, is_seen, readings


def tags(text: str) -> str:
    return "".join(chr(0xE0000 + ord(c)) for c in text)


def selectors(text: str) -> str:
    return "".join(chr(0xFE00 + b if b < 16 else 0xE0100 + b - 16) for b in text.encode())


HIDDEN = [  # (as it is written, what it says, the trick)
    ("p\u043e\u0456son it", "poison it", "homoglyph"),
    ("\u0440\u043e\u0456\u0455\u043e\u0578 it", "poison it", "homoglyph"),  # no Latin letter, Cyrillic and Armenian
    ("\u03c1\u03bf\u0456\u0455\u03bf\u03b7 it", "poison it", ""),  # Greek; its eta has a mark, so it is not called one
    ("\u0440\u043e\u0456\u0455\u043e\u0578", "poison", ""),  # one word alone may be one
    ("\u03c1\u03bf\u03bf\u217c it", "pool it", "homoglyph"),
    ("p\u0585\u1d0fl it", "pool it", "homoglyph"),
    ("p\u0456\u04cf\u04cfs it", "pills it", "homoglyph"),  # a stroke that the table holds for an i
    ("w\u0456\u0406\u0406 it", "will it", "homoglyph"),  # ... and for an I
    ("p\u0456\u04cfs it", "piis it", "homoglyph"),
    ("\uff50\uff4f\uff49\uff53\uff4f\uff4e it", "poison it", "styled"),
    ("\U0001d4c5\U0001d45c\U0001d4be\U0001d4c8\U0001d45c\U0001d4c3 it", "poison it", "styled"),
    ("\u24df\u24de\u24d8\u24e2\u24de\u24dd it", "poison it", "styled"),
    ("\u1d56\u1d52\u2071\u02e2\u1d52\u207f it", "poison it", "styled"),
    ("\u1d18\u1d0f\u026a\ua731\u1d0f\u0274 it", "poison it", "styled"),
    ("\U0001f17f\U0001f17e\U0001f178 it", "POI it", "styled"),
    ("po\u200bis\u00adon it", "poison it", "invisible"),
    ("poi\u2060\ufeffson it", "poison it", "invisible"),
    ("poi\u034fson it", "poison it", "invisible"),
    ("poi\ufe0fson it", "poison it", "invisible"),
    ("poi\u180eson it", "poison it", "invisible"),
    ("\u3164poison\u3164 it", "poison it", "invisible"),
    ("poi\x07son it", "poison it", "invisible"),
    ("poi\ue000son it", "poison it", "invisible"),
    ("\u2066poison\u2069 it", "poison it", "invisible"),
    ("\u202epoison\u202c it", "poison it", "invisible"),
    ("\u202enosiop\u202c it", "poison it", "bidi"),
    ("sure " + tags("poison it"), "poison it", "hidden"),
    ("sure " + selectors("poison it"), "poison it", "hidden"),
    ("sure" + selectors("poison") + " fine" + selectors(" it"), "poison it", "hidden"),
    ("po" + tags("is") + "on it", "poison it", "hidden"),
    ("p\u0336o\u0336i\u0336s\u0336o\u0336n\u0336 it", "poison it", "marks"),
    ("p\u20ddoi\u20e3son it", "poison it", "marks"),
    ("p\u0336\u0353\u033d\u036boison it", "poison it", "marks"),
    ("p o i s o n the dog", "poison the dog", "spacing"),
    ("p.o.i.s.o.n", "poison", "spacing"),
    ("p/o/i/s/o/n i/t", "poison it", "spacing"),
    ("p - o - i - s - o - n", "poison", "spacing"),
    ("p\no\ni\ns\no\nn", "poison", "spacing"),
    ("p o i s o n   t h e   d o g", "poison the dog", "spacing"),
    ("p_o_i_s_o_n", "poison", "spacing"),
    ("p.o-i/s*o+n", "poison", "spacing"),
    ("p o i s o n   i t   .   n o w", "poison it   .   now", "spacing"),
    ("p.o.i.s.o.n i.t , n.o.w", "poison it , now", "spacing"),
    ("p\U0001f52ao\U0001f52ai\U0001f52as\U0001f52ao\U0001f52an", "poison", "spacing"),
]


@pytest.mark.parametrize(("written", "said", "trick"), HIDDEN)
def test_what_is_hidden_is_one_of_the_readings_and_the_first_is_the_text_as_it_stands(written, said, trick):
    found = readings(written)
    assert found[0] == ((written,), (), ())
    (reading,) = [reading for reading in found if reading.texts == (said,)]
    assert reading.undone and (not trick or trick in reading.tricks)


def _strike(text):
    return "".join(c + "\u0336" if c.isalpha() else c for c in text)


TRICKS = {
    "ignorable": lambda text: "\u200b".join(text),
    "strike": _strike,
    "look-alikes": lambda text: text.translate(
        str.maketrans("poisnhea", "\u0440\u043e\u0456\u0455\u0578\u04bb\u0435\u0430")
    ),
    "wide": lambda text: "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() else c for c in text),
    "spaced": lambda text: "   ".join(" ".join(word) for word in text.split()),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(TRICKS, 2)))
def test_stacked_tricks_are_undone_together(first, second):
    plain = "poison the dog in his house"
    stacked = TRICKS[first](TRICKS[second](plain))
    assert plain in [reading.texts[0].strip() for reading in readings(stacked)]


def test_all_tricks_at_once_with_what_looks_like_the_opposite_hidden_beside():
    plain = "poison the dog"
    written = TRICKS["ignorable"](_strike(TRICKS["spaced"](TRICKS["look-alikes"](plain))))
    found = readings(written, "sure " + tags("kill it"))
    assert any(reading.texts[0] == plain for reading in found)
    assert ("kill it" in {reading.texts[1] for reading in found}) and len(found) <= 37


def test_parts_are_read_the_same_way_and_equal_readings_once():
    assert readings("can i use it ?", "sure it is fine .") == [(("can i use it ?", "sure it is fine ."), (), ())]
    found = readings("\u0440\u043e\u0456\u0455\u043e\u0578", "sure")
    assert [reading.texts for reading in found] == [
        ("\u0440\u043e\u0456\u0455\u043e\u0578", "sure"),
        ("poison", "sure"),
    ]
    both = readings("p\u200boison", "d o g s")
    assert ("poison", "dogs") in [reading.texts for reading in both]


GENUINE = [
    "Can I drink this? It's 5.5 % (U.S.A.), e.g. a b c.",
    "A B C D",
    "Привет, мир. Это текст.",
    "Καλημέρα κόσμε",
    "Բարեւ աշխարհ, ինչպես ես",
    "مرحبا بالعالم",
    "می\u200cخواهم",
    "שָׁלוֹם עוֹלָם",
    "क\u094d\u200dष नमस्ते",
    "བོད་ཡིག་གི་སྐད",
    "สวัสดี\u200bชาวโลก",
    "你好，世界，ＮＨＫ",
    "葛\U000e0100城市",
    "안녕하세요 세계",
    "Tiếng Việt",
    "👨\u200d👩\u200d👧 ❤\ufe0f 3\ufe0f\u20e3",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "naïve café, smørrebrød, łódź, Iğdır",
    "The 20ᵗʰ of May, 5 m², №1, ½, Ⅷ, ﬁne™",
    "\ufeffhello",
]


@pytest.mark.parametrize("text", GENUINE)
def test_genuine_writing_is_read_as_it_stands_and_nothing_in_it_is_called_a_trick(text):
    found = readings(text)
    assert found[0].texts == (text,)
    assert not any(reading.tricks for reading in found)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("x" * (MAX_CHARACTERS + 1), "too_long"), ("\ufdfa" * 2000, "too_long"), ("a\ud800", "invalid_unicode"),
     ("a\0b", "control_characters"), ("sure" + "\u200b\u200c\u200c\u200b" * 8, "hidden_code"),
     ("sure" + "\u2062\u2064" * 8, "hidden_code"), ("a" + "".join(chr(0xE000 + i) for i in range(20)), "hidden_code")],
)  # fmt: skip
def test_refusals(text, reason):
    refuse(text, reason)


def refuse(text, reason):
    with pytest.raises(RefusedText) as refusal:
        readings("fine", text)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("text", ["", " \n\u3000", "\u200b\ufe0f\u3164", "\u00ad", "\ue000"])
def test_what_nobody_sees_is_nothing(text):
    assert not is_seen(text) and not has_words(text)


@pytest.mark.parametrize(("text", "words"), [("{}", False), ("?!", False), ("...", False), ("a", True), ("7", True),
                                             ("👍", True), (tags("hi"), True), ("เ", True)])  # fmt: skip
def test_words_are_letters_digits_and_symbols_hidden_ones_too(text, words):
    assert is_seen(text) and has_words(text) is words


ANY = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("ab .-\n\r\u2028\u200b\u200d\u202e\u0430\u0456\u0301\u0336\ufe0f\U000e0061\u0644👨\uff41"),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(ANY, ANY)
def test_any_two_strings_are_read_or_refused(first, second):
    try:
        found = readings(first, second)
    except RefusedText:
        return
    assert found[0] == ((first, second), (), ()) and len(found) <= 37
    assert len({reading.texts for reading in found}) == len(found)
    assert all(reading.undone for reading in found[1:])
    if first.isascii() and second.isascii() and (first + second).isprintable():
        assert len(found) <= 2  # nothing but letters set apart


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z"]), max_size=60))
def test_canonically_equal_texts_have_a_reading_in_common(text):
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert {r.texts for r in readings(composed)} & {r.texts for r in readings(decomposed)}


@pytest.mark.parametrize(
    "piece", ["a ", "\u0336", "\u200d", "\u0430b", "👨\u200d", ". ", "a\u0301", "\u202ea\u202c", "a\u0336 "]
)
def test_hostile_texts_take_little_time(piece):
    """Linear: four times the text in far less than sixteen times the time."""

    def seconds(length: int) -> float:
        start = time.process_time()
        readings(piece * (length // len(piece)))
        return time.process_time() - start

    seconds(1000)
    assert seconds(MAX_CHARACTERS) < 10 * max(seconds(MAX_CHARACTERS // 4), 0.02)


BITS = "\u200b\u200c\u200c\u200b" * 16
FLAG = "\U0001f3f4" + tags("gbeng") + "\U000e007f"


@pytest.mark.parametrize(
    "text",
    [
        f"sure{BITS} hello {FLAG}",
        f"{FLAG} sure{BITS}",
        BITS + FLAG,
        FLAG + BITS,
        f"sure{BITS}{selectors('a')}",
        f"sure{BITS[:20]}{tags('a')}{BITS[:20]}",
        "sure" + "\ufe00\ufe01" * 8 + selectors("a"),
        "sure" + selectors(" \n\n ") * 4,
    ],
)
def test_one_more_character_does_not_let_a_hidden_code_pass(text):
    refuse(text, "hidden_code")


@pytest.mark.parametrize(
    "text", [FLAG * 3, f"go {FLAG}{FLAG}", "sure" + tags("poison it"), "sure" + selectors("a b  c d e f")]
)
def test_flags_and_hidden_texts_are_read(text):
    assert readings(text)


@pytest.mark.parametrize(
    "text",
    [
        "\u202e\u202dmb\u202cob\u202c",  # displayed as bomb, as are the next three
        "\u202e\u2066mb\u2069\u2066bo\u2069\u202c",
        "\u202e\u202amb\u202cob\u202c",
        "\u202d\u202ebm\u202cob\u202c",
        "fine\n\u202eab\u2068cd",
    ],
)
def test_a_direction_inside_an_overridden_one_is_refused(text):
    refuse(text, "nested_override")


@pytest.mark.parametrize(
    "text", ["\u202ebmob\u202c and \u202ebmob\u202c", "\u202ebmob\n\u2066it\u2069", "\u2066\u202ebmob\u202c\u2069"]
)
def test_overrides_one_after_the_other_are_read(text):
    assert any("bomb" in reading.texts[0] for reading in readings(text))
