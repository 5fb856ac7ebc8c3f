"""Forms that genuine writing has no use for, told by the text alone: rules over Unicode properties, made to spare writing.

They decide what is *called* a trick, never what is read or how it is judged.
"""

import unicodedata

import regex

from safe_rlhf_v.guard.unicode_tables import IGNORABLE, TAG_FLAG, ascii_twin, is_styled

MIN_STYLED = 3
"""Styled letters in a row that are a style and no abbreviation or formula (20th, m2, TM)."""
MIN_SPELLED = 4
"""Letters set apart in a row that are a hidden word and no abbreviation."""
MIN_WORD = 3
"""Letters of a word that is none by chance."""
MIN_WORDS = 3
"""Words in a text without Latin ones that do not look Latin by chance."""

# Where Unicode has a use for an ignorable character: beside letters of scripts without capitals (joiners, fillers, selectors;
# also U+200B between words of Thai), after emoji and symbols, as a byte-order mark.
_USED = regex.compile(
    rf"^\ufeff|(?<=\p{{Lo}}\p{{M}}*){IGNORABLE}{{1,2}}|{IGNORABLE}(?=\p{{Lo}})"
    r"|(?<=[\p{Emoji}\p{S}])[\ufe0e\ufe0f]|(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d"
)
_DIRECTIONS = regex.compile(r"[\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069]")
_RIGHT_TO_LEFT = regex.compile(r"[\p{bc=R}\p{bc=AL}]")
_ODD_MARKS = regex.compile(r"\p{L}\p{M}*[\p{ccc=1}\p{Me}]|[\p{Lu}\p{Ll}\p{Lt}]\p{M}{2,}|\p{L}\p{M}{5,}")
_EAST_ASIAN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}]")
_WIDE = regex.compile(r"[\uff01-\uff5e]")
_MARKS = regex.compile(r"\p{M}")
_OTHER_SCRIPT = regex.compile(r"[^\p{Latin}\p{Common}\p{Inherited}]")
_CASED = regex.compile(r"[\p{Lu}\p{Ll}\p{M}]+")
_LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")


def odd_invisible(text: str) -> bool:
    """Whether ignorable characters stand where writing has no use for them."""
    if text.isascii() and text.isprintable():
        return False
    text = TAG_FLAG.sub("", text)
    if _RIGHT_TO_LEFT.search(text):
        text = _DIRECTIONS.sub("", text)
    return regex.search(IGNORABLE, _USED.sub("", text)) is not None


def odd_marks(text: str) -> bool:
    """Whether letters are struck out or enclosed, or carry more marks than writing of theirs does (after composition)."""
    return _ODD_MARKS.search(text) is not None


def odd_style(text: str) -> bool:
    """Whether words are written in styled letters; wide ones are usual beside East Asian text."""
    if _EAST_ASIAN.search(text):
        text = _WIDE.sub("", text)
    return "s" * MIN_STYLED in "".join("s" if is_styled(character) else "." for character in text)


def look_alike_words(text: str) -> bool:
    """Whether Latin words are written with letters of other scripts that have the same prototypes (UTS #39).

    A word that mixes both and becomes ASCII; or every word of other scripts becomes ASCII, beside Latin words or ``MIN_WORDS``
    times: of genuine Cyrillic or Greek only some words do.
    """
    words = _LETTERS.findall(unicodedata.normalize("NFD", text))
    foreign = [word for word in words if _OTHER_SCRIPT.search(word)]
    latin = [_MARKS.sub("", "".join(c if c.isascii() else ascii_twin(c) or c for c in word)) for word in foreign]
    long = [new.isascii() and new.isalpha() and len(new) >= MIN_WORD for new in latin]
    if any(found and regex.search("[a-zA-Z]", word) for found, word in zip(long, foreign, strict=True)):
        return True
    beside_latin = any(word.isascii() and len(word) > 1 for word in words)
    return all(new.isascii() for new in latin) and sum(long) >= (1 if beside_latin else MIN_WORDS)


def is_spelled_out(joined: str) -> bool:
    """Whether letters that stood apart make a word of a script with capitals: four or more, not in alphabetical order.

    ``A B C D`` does not, nor do syllables, which some scripts part.
    """
    return any(
        len(word) >= MIN_SPELLED and _CASED.fullmatch(word) and list(word) != sorted(word)
        for word in _LETTERS.findall(joined)
    )
