"""The ways a text is read. It is never altered: it is judged as it stands, and again as each way of hiding would have it read.

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

from safe_rlhf_v.guard.tricks import is_spelled_out, look_alike_words, odd_invisible, odd_marks, odd_style
from safe_rlhf_v.guard.unicode_tables import IGNORABLE, OVERRIDDEN, TAG_FLAG, look_alike

MAX_CHARACTERS = 20_000
MAX_HIDDEN = 8
"""Invisible characters in a row, of two kinds or more, that are a code and no writing."""


class Reading(NamedTuple):
    """Some texts, all read in one way.

    Attributes:
        texts: As they are read.
        undone: What was undone: () as they stand; else names of ``bidi``, ``composed`` (canonically: the same text),
            ``hidden``, ``homoglyph``, ``invisible``, ``marks``, ``spacing``, sorted.
        tricks: Those of them that genuine writing has no use for; ``styled`` among them where letters were.
    """

    texts: tuple[str, ...]
    undone: tuple[str, ...] = ()
    tricks: tuple[str, ...] = ()


class RefusedText(ValueError):
    """A text that is not judged at all.

    Attributes:
        reason: ``too_long``, ``invalid_unicode``, ``control_characters`` or ``hidden_code``.
    """

    def __init__(self, reason: str, message: str) -> None:
        """
        Args:
            reason: Short name of the reason.
            message: For people.
        """
        super().__init__(message)
        self.reason = reason


def readings(*texts: str) -> list[Reading]:
    """Every way to read some texts, each way once, as they stand first.

    First what is invisible is taken away (or the hidden text read alone, or overridden order reversed); then each subset of
    marks, look-alikes and spacing is undone. Ordinary text has one reading.

    Args:
        texts: The parts of one input; all parts are read the same way.

    Raises:
        RefusedText: For a text of more than ``MAX_CHARACTERS``, also after decomposition; for lone surrogates, NUL, and
            invisible characters that hold no text.
    """
    for text in texts:
        _check(text)
    found = {texts: Reading(texts)}
    for name, base in _bases(texts):
        for marks, homoglyph, spacing in itertools.product(_MARKS, _HOMOGLYPHS, _SPACING):
            steps = [step for step in (marks, homoglyph, spacing) if step is not None]
            reading = _undone(texts, name, base, steps)
            found.setdefault(reading.texts, reading)
    return list(found.values())


def is_seen(text: str) -> bool:
    """Whether there is more in a text than white space and ignorable characters; hidden text counts."""
    return bool(_visible(text).strip())


def has_words(text: str) -> bool:
    """Whether there is anything to read: a letter, a digit or a symbol, also a hidden one."""
    return regex.search(r"[\p{L}\p{N}\p{S}]", _visible(text) + _payload(text)) is not None


def _check(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise RefusedText("too_long", f"{len(text)} characters, the limit is {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RefusedText("invalid_unicode", "lone surrogates: not valid Unicode")
    if "\0" in text:
        raise RefusedText("control_characters", "NUL characters")
    for run in regex.finditer(rf"(?:{IGNORABLE}){{{MAX_HIDDEN},}}", text):
        if len(set(run.group())) > 1 and not _payload(run.group()) and not TAG_FLAG.search(text, run.start() - 1):
            raise RefusedText("hidden_code", f"{len(run.group())} invisible characters in a row that hold no text")


def _bases(texts: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The texts without what is invisible, by what that undoes."""
    yield "invisible", tuple(_visible(text) for text in texts)
    payloads = tuple(_payload(text) for text in texts)
    if any(payloads):
        yield "hidden", tuple(hidden or _visible(text) for text, hidden in zip(texts, payloads, strict=True))
    if any(OVERRIDDEN.search(text) for text in texts):
        yield "bidi", tuple(_visible(OVERRIDDEN.sub(_reversed, text)) for text in texts)


def _undone(texts: tuple[str, ...], name: str, base: tuple[str, ...], steps: Sequence["_Step"]) -> Reading:
    """The base with some steps undone, twice: what one undoes may uncover another."""
    undone, tricks = set[str](), set[str]()
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
            if i < len(steps):  # forms that another step made are none of the text's
                tricks.update(trick for trick, odd in step.odd.items() if any(map(odd, now)))
        now = new
    return Reading(now, tuple(sorted(undone)), tuple(sorted(tricks)))


# --- what is undone ---------------------------------------------------------------------------------------------------


def _visible(text: str) -> str:
    """Without ignorable and control characters; bytes written with tags and variation selectors as the text they are."""
    if text.isascii() and text.isprintable():
        return text
    text = TAG_FLAG.sub("\U0001f3f4", text)
    text = regex.sub(r"[\U000e0020-\U000e007e\ufe00-\ufe0f\U000e0100-\U000e01ef]+", lambda m: _decoded(m.group()), text)
    return unicodedata.normalize("NFC", regex.sub(IGNORABLE, "", text))


def _payload(text: str) -> str:
    """All that tags and variation selectors spell, in one piece."""
    if text.isascii():
        return ""
    return _decoded(TAG_FLAG.sub("", text)).strip()


def _decoded(text: str) -> str:
    """What tags (their ASCII) and variation selectors (1 to 256 for the bytes 0 to 255, UTF-8) spell, as far as it is text."""
    found = bytearray()
    for code in map(ord, text):
        if 0xE0020 <= code <= 0xE007E:
            found.append(code - 0xE0000)
        elif 0xFE00 <= code <= 0xFE0F:
            found.append(code - 0xFE00)
        elif 0xE0100 <= code <= 0xE01EF:
            found.append(code - 0xE0100 + 16)
    return "".join(c for c in found.decode("utf-8", "ignore") if c.isprintable() or c == "\n")


def _reversed(found: "regex.Match[str]") -> str:
    return "".join(reversed(regex.findall(r"\X", found.group(1))))


def _unmarked(text: str) -> str:
    """Compatibility forms decomposed (NFKD), without combining and enclosing marks."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", regex.sub(r"\p{M}+", "", unicodedata.normalize("NFKD", text)))


def _folded(text: str, stroke: bool = False) -> str:
    """Every character that looks like ASCII, as that; bare strokes, which may be I, l, i or 1, the likeliest or ``l``."""
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
    return str(_SPACED.sub(lambda found: _one_word(found.group()), text))


def _one_word(spaced: str) -> str:
    if len(regex.findall(r"\p{L}", spaced)) < 3:
        return spaced
    parts = regex.split(r"([^\p{L}\p{N}\p{M}]+)", spaced)
    separators = parts[1::2]
    by_space = 2 * sum(s.isspace() for s in separators) >= len(separators)  # what parts most letters parts letters
    shortest = min(len(s) for s in separators if s.isspace() == by_space)
    gaps = [len(s) > shortest or (s.isspace() and not by_space) for s in separators]
    # A separator with space on both sides is punctuation between two words; it stays.
    between = [
        (s if s.strip() and s[0].isspace() and s[-1].isspace() else " ") if gap else ""
        for s, gap in zip(separators, gaps, strict=True)
    ]
    return "".join(letter + gap for letter, gap in zip(parts[::2], [*between, ""], strict=True))


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
