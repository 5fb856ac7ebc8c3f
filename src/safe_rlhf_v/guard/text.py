"""The ways a text is read. It is never altered: it is moderated as it stands, and again as each way of hiding would have it read.

What may hide words is undone, alone and together: characters that nobody sees, bytes written as such characters, reversed
order, marks and styles, look-alikes, letters set apart. Each is a property of Unicode or a table of it, not a list. Genuine
writing may have a second reading, too (Persian without its joiners, French without its accents); it is called a *trick* only
where writing has no use for the form. Linear in the text's length.
"""

import itertools
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import regex

from safe_rlhf_v.guard.unicode_tables import IGNORABLE, NESTED, OVERRIDDEN, TAG_FLAG, ascii_twin, is_styled, look_alike

MAX_CHARACTERS = 20_000
MAX_HIDDEN = 8
"""Number of invisible characters in a row, of two kinds or more, that spell no text: a hidden code and not writing."""


class Reading(NamedTuple):
    """Some texts in one reading.

    Attributes:
        texts: The texts in this reading.
        undone: What was undone, () for the unaltered texts: sorted names of ``bidi``, ``composed`` (canonically: the same
            text), ``hidden``, ``homoglyph``, ``invisible``, ``marks``, ``spacing``.
        tricks: Those of them that genuine writing does not use, and ``styled`` for styled letters.
    """

    texts: tuple[str, ...]
    undone: tuple[str, ...] = ()
    tricks: tuple[str, ...] = ()


class RefusedText(ValueError):
    """A text that is refused.

    Attributes:
        reason: ``too_long``, ``invalid_unicode``, ``control_characters``, ``hidden_code`` or ``nested_override``.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Store the reason.

        Args:
            reason: Short name of the reason.
            message: Explanation for people.
        """
        super().__init__(message)
        self.reason = reason


def readings(*texts: str) -> list[Reading]:
    """Every different reading of some texts, the unaltered one first.

    First invisible characters are removed (or the hidden text is read alone, or overridden order is reversed); then each subset
    of marks, look-alikes and spacing is undone. Ordinary text has one reading.

    Args:
        texts: The parts of one input; each reading applies to all parts.

    Raises:
        RefusedText: For a text of more than ``MAX_CHARACTERS``, also after decomposition; for lone surrogates, NUL,
            invisible characters that hold no text, and another direction inside text whose order is overridden.
    """
    for text in texts:
        _check(text)
    by_texts = {texts: Reading(texts)}
    for name, base in _bases(texts):
        for marks, homoglyph, spacing in itertools.product(_MARKS, _HOMOGLYPHS, _SPACING):
            steps = [step for step in (marks, homoglyph, spacing) if step is not None]
            reading = _undone(texts, name, base, steps)
            by_texts.setdefault(reading.texts, reading)
    return list(by_texts.values())


def check_length(texts: Sequence[str]) -> None:
    """Check the length of all earlier turns together, before anything is read: there may be any number of them.

    Raises:
        RefusedText: If they have more than ``MAX_CHARACTERS``, or are more than that many.
    """
    if (length := len(texts) + sum(map(len, texts))) > MAX_CHARACTERS:
        raise RefusedText("too_long", f"{length} characters before the question, the limit is {MAX_CHARACTERS}")


def is_seen(text: str) -> bool:
    """Whether a text holds more than white space and ignorable characters; hidden text counts."""
    return bool(_visible(text).strip())


def has_words(text: str) -> bool:
    """Whether a text holds a letter, a digit or a symbol, including hidden ones."""
    return regex.search(r"[\p{L}\p{N}\p{S}]", _visible(text) + _payload(text)) is not None


def _check(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise RefusedText("too_long", f"{len(text)} characters, the limit is {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RefusedText("invalid_unicode", "lone surrogates: not valid Unicode")
    if "\0" in text:
        raise RefusedText("control_characters", "NUL characters")
    if NESTED.search(text):
        raise RefusedText("nested_override", "a second direction inside text whose order of display is overridden")
    for run in regex.findall(rf"(?:{IGNORABLE}){{{MAX_HIDDEN},}}", TAG_FLAG.sub("\U0001f3f4", text)):
        spelled = _decoded(run)
        # One invisible character spells one byte; what spells none may be a code, whatever text stands beside it.
        silent = len(run) - (len(spelled.encode()) if spelled.strip() else 0)
        if silent >= MAX_HIDDEN and len(set(run)) > 1:
            raise RefusedText("hidden_code", f"{silent} invisible characters in a row that hold no text")


def _bases(texts: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(what is undone, texts) without invisible characters, in up to three variants."""
    yield "invisible", tuple(_visible(text) for text in texts)
    payloads = tuple(_payload(text) for text in texts)
    if any(payloads):
        yield "hidden", tuple(hidden or _visible(text) for text, hidden in zip(texts, payloads, strict=True))
    if any(OVERRIDDEN.search(text) for text in texts):
        yield "bidi", tuple(_visible(OVERRIDDEN.sub(_reversed, text)) for text in texts)


def _undone(texts: tuple[str, ...], name: str, base: tuple[str, ...], steps: Sequence["_Step"]) -> Reading:
    """The base with some steps applied twice, because one step may uncover work for another."""
    undone = set[str]()
    tricks = set[str]()
    if any(regex.search(IGNORABLE, text) for text in texts):
        undone.add(name)
        tricks.update(trick for trick, odd in _ODD.items() if any(map(odd, texts)))
    elif base != texts:
        undone.add("composed")
    now = base
    for i, step in enumerate([*steps, *steps]):
        new = tuple(step.undo(text) for text in now)
        if (longest := max(map(len, new))) > MAX_CHARACTERS:
            raise RefusedText("too_long", f"{longest} characters after decomposition, the limit is {MAX_CHARACTERS}")
        if new != now:
            undone.add(step.name)
            if i < len(steps):  # forms that another step created do not occur in the text
                tricks.update(trick for trick, odd in step.odd.items() if any(map(odd, now)))
        now = new
    return Reading(now, tuple(sorted(undone)), tuple(sorted(tricks)))


# --- what is undone ---------------------------------------------------------------------------------------------------


def _visible(text: str) -> str:
    """The text without ignorable and control characters, and with bytes in tags and variation selectors decoded."""
    if text.isascii() and text.isprintable():
        return text
    text = TAG_FLAG.sub("\U0001f3f4", text)
    text = regex.sub(r"[\U000e0020-\U000e007e\ufe00-\ufe0f\U000e0100-\U000e01ef]+", lambda m: _decoded(m.group()), text)
    return unicodedata.normalize("NFC", regex.sub(IGNORABLE, "", text))


def _payload(text: str) -> str:
    """The text encoded in all tags and variation selectors."""
    if text.isascii():
        return ""
    return _decoded(TAG_FLAG.sub("", text)).strip()


def _decoded(text: str) -> str:
    """What tags (their ASCII) and variation selectors (1 to 256 for the bytes 0 to 255, UTF-8) spell, as far as it is text."""
    code_units = bytearray()
    for code in map(ord, text):
        if 0xE0020 <= code <= 0xE007E:
            code_units.append(code - 0xE0000)
        elif 0xFE00 <= code <= 0xFE0F:
            code_units.append(code - 0xFE00)
        elif 0xE0100 <= code <= 0xE01EF:
            code_units.append(code - 0xE0100 + 16)
    return "".join(c for c in code_units.decode("utf-8", "ignore") if c.isprintable() or c == "\n")


def _reversed(match: "regex.Match[str]") -> str:
    return "".join(reversed(regex.findall(r"\X", match.group(1))))


def _unmarked(text: str) -> str:
    """Compatibility forms decomposed (NFKD), without combining and enclosing marks."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", regex.sub(r"\p{M}+", "", unicodedata.normalize("NFKD", text)))


def _folded(text: str, stroke: bool = False) -> str:
    """The text with characters that look like ASCII replaced by it; ``stroke`` reads bare strokes (I, l, i or 1) as ``l``."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", "".join(look_alike(c, stroke) for c in unicodedata.normalize("NFD", text)))


_SPACED = regex.compile(
    r"(?<![\p{L}\p{N}\p{M}])(?:[\p{L}\p{N}]\p{M}*+[^\p{L}\p{N}\p{M}]{1,8}+){2,}[\p{L}\p{N}]\p{M}*+(?![\p{L}\p{N}])"
)


def _joined(text: str) -> str:
    """Three and more letters set apart, as words: what parts letters goes, what parts words is one space.

    Words are parted by the longer separator, or by white space where letters are parted by something else.
    """
    return str(_SPACED.sub(lambda match: _one_word(match.group()), text))


def _one_word(spaced: str) -> str:
    if len(regex.findall(r"\p{L}", spaced)) < 3:
        return spaced
    parts = regex.split(r"([^\p{L}\p{N}\p{M}]+)", spaced)
    separators = parts[1::2]
    by_space = 2 * sum(s.isspace() for s in separators) >= len(separators)  # the more frequent kind separates letters
    shortest = min(len(s) for s in separators if s.isspace() == by_space)
    gaps = [len(s) > shortest or (s.isspace() and not by_space) for s in separators]
    # A separator with space on both sides is punctuation between two words and is not removed.
    between = [
        (s if s.strip() and s[0].isspace() and s[-1].isspace() else " ") if gap else ""
        for s, gap in zip(separators, gaps, strict=True)
    ]
    return "".join(letter + gap for letter, gap in zip(parts[::2], [*between, ""], strict=True))


# --- which of it is a trick: rules over Unicode properties, made to spare genuine writing. They decide what is called a trick,
# never what is read or decided.

MIN_STYLED = 3
"""Styled letters in a row that are a style and no abbreviation or formula (20th, m2, TM)."""
MIN_SPELLED = 4
"""Letters set apart in a row that are a hidden word and no abbreviation."""
MIN_WORD = 3
"""Letters of a word that looks Latin on purpose, not by chance."""
MIN_WORDS = 3
"""Words in a text without Latin ones that do not look Latin by chance."""

# Proper uses of ignorable characters: beside letters of scripts without capitals (joiners, fillers, selectors; also U+200B
# between words of Thai), after emoji and symbols, as a byte-order mark.
_USED = regex.compile(
    rf"^\ufeff|(?<=\p{{Lo}}\p{{M}}*){IGNORABLE}{{1,2}}|{IGNORABLE}(?=\p{{Lo}})"
    r"|(?<=[\p{Emoji}\p{S}])[\ufe0e\ufe0f]|(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d"
)
_DIRECTIONS = regex.compile(r"[\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069]")
_RIGHT_TO_LEFT = regex.compile(r"[\p{bc=R}\p{bc=AL}]")
_ODD_MARKS = regex.compile(r"\p{L}\p{M}*[\p{ccc=1}\p{Me}]|[\p{Lu}\p{Ll}\p{Lt}]\p{M}{2,}|\p{L}\p{M}{5,}")
_EAST_ASIAN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}]")
_WIDE = regex.compile(r"[\uff01-\uff5e]")
_MARK = regex.compile(r"\p{M}")
_OTHER_SCRIPT = regex.compile(r"[^\p{Latin}\p{Common}\p{Inherited}]")
_CASED = regex.compile(r"[\p{Lu}\p{Ll}\p{M}]+")
_LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")


def odd_invisible(text: str) -> bool:
    """Whether ignorable characters occur where genuine writing does not use them."""
    if text.isascii() and text.isprintable():
        return False
    text = TAG_FLAG.sub("", text)
    if _RIGHT_TO_LEFT.search(text):
        text = _DIRECTIONS.sub("", text)
    return regex.search(IGNORABLE, _USED.sub("", text)) is not None


def odd_marks(text: str) -> bool:
    """Whether letters are struck out or enclosed, or have more marks than in genuine writing (after composition)."""
    return _ODD_MARKS.search(text) is not None


def odd_style(text: str) -> bool:
    """Whether words are written in styled letters; wide letters are usual beside East Asian text."""
    if _EAST_ASIAN.search(text):
        text = _WIDE.sub("", text)
    return "s" * MIN_STYLED in "".join("s" if is_styled(character) else "." for character in text)


def look_alike_words(text: str) -> bool:
    """Whether Latin words are written with letters of other scripts that have the same prototypes (UTS #39).

    This is so if a word mixes both and becomes ASCII, or if every word of other scripts becomes ASCII, beside Latin words or
    ``MIN_WORDS`` times; in genuine Cyrillic or Greek only some words do.
    """
    words = _LETTERS.findall(unicodedata.normalize("NFD", text))
    foreign = [word for word in words if _OTHER_SCRIPT.search(word)]
    latin = [_MARK.sub("", "".join(c if c.isascii() else ascii_twin(c) or c for c in word)) for word in foreign]
    long = [new.isascii() and new.isalpha() and len(new) >= MIN_WORD for new in latin]
    if any(is_latin and regex.search("[a-zA-Z]", word) for is_latin, word in zip(long, foreign, strict=True)):
        return True
    beside_latin = any(word.isascii() and len(word) > 1 for word in words)
    return all(new.isascii() for new in latin) and sum(long) >= (1 if beside_latin else MIN_WORDS)


def is_spelled_out(joined: str) -> bool:
    """Whether spaced letters make a word of a script with capitals: four or more letters, not in alphabetical order.

    ``A B C D`` is not a word, nor are syllables, which some scripts separate.
    """
    return any(
        len(word) >= MIN_SPELLED and _CASED.fullmatch(word) and list(word) != sorted(word)
        for word in _LETTERS.findall(joined)
    )


class _Step(NamedTuple):
    name: str
    undo: Callable[[str], str]
    odd: dict[str, Callable[[str], bool]]


_MARKS = (None, _Step("marks", _unmarked, {"marks": odd_marks, "styled": odd_style}))
_FORMS: dict[str, Callable[[str], bool]] = {"homoglyph": look_alike_words, "styled": odd_style}
_HOMOGLYPHS = (
    None,
    _Step("homoglyph", _folded, _FORMS),
    _Step("homoglyph", lambda text: _folded(text, stroke=True), _FORMS),
)
_SPACING = (
    None,
    _Step("spacing", _joined, {"spacing": lambda t: any(is_spelled_out(_one_word(run)) for run in _SPACED.findall(t))}),
)
_ODD: dict[str, Callable[[str], bool]] = {
    "invisible": odd_invisible,
    "hidden": lambda text: bool(_payload(text)),
    "bidi": lambda text: OVERRIDDEN.search(text) is not None,
}
