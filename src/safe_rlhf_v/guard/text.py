"""Text as the guard reads it: tricks that hide words from a model are undone and flagged, or the text is refused.

Genuine writing in any script, emoji and joiners where a script needs them stay as they are. Linear in the text's length.
"""

import re
import unicodedata
from typing import NamedTuple

MAX_CHARACTERS = 20_000
MAX_MARKS = 2
"""Combining marks kept per letter; Vietnamese and pointed Hebrew need no more after composition."""

# The confusables of Unicode UTS #39 that look like ASCII letters in common fonts.
_LOOK_ALIKES = "авеѕіјкмнорстухһԁԛԝАВЕЅІЈКМНОРСТУХαβεικνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɡցհոսօℓɑʏ"
_CONFUSABLES = dict(
    zip(_LOOK_ALIKES, "abesijkmhopctyxhdqwABESIJKMHOPCTYXabeikvoptuxABEZHIKMNOPTYXigghnuolay", strict=True)
)
_JOINERS = "\u200c\u200d"
_SPACED = re.compile(r"(?<![^\W_])(?:[^\W\d_][ \n.\-_*]){3,}[^\W\d_](?![^\W_])")
_WORD = re.compile(r"[^\W\d_]+")
_BREAK = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class CleanText(NamedTuple):
    """A text as the guard reads it.

    Attributes:
        text: The text.
        flags: Sorted names of the tricks undone: ``bidi``, ``combining``, ``control``, ``homoglyph``, ``invisible``,
            ``spacing``.
    """

    text: str
    flags: tuple[str, ...]


class RefusedText(ValueError):
    """A text that is not judged at all.

    Attributes:
        reason: ``too_long``, ``invalid_unicode`` or ``control_characters``.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Args:
        reason: Short name of the reason.
        message: For people.
        """
        super().__init__(message)
        self.reason = reason


def normalise(text: str, max_characters: int = MAX_CHARACTERS) -> CleanText:
    """Undo what hides words: compatibility forms (NFKC), invisible and look-alike characters, stacked marks, spaced letters.

    Applying it twice changes nothing more.

    Args:
        text: Any string.
        max_characters: Refuse longer texts, before and after NFKC (which may expand one character to 18).

    Raises:
        RefusedText: For a text that is too long, holds lone surrogates or NUL.
    """
    _check(text, max_characters)
    flags: set[str] = set()
    for _ in range(4):  # undoing one trick may uncover another
        before = text
        text = unicodedata.normalize("NFKC", text)
        if len(text) > max_characters:
            raise RefusedText("too_long", f"more than {max_characters} characters after normalisation")
        text = _visible(text, flags)
        text = unicodedata.normalize("NFKC", text)
        text = _WORD.sub(lambda found: _latin(found.group(), flags), text)
        text = _SPACED.sub(lambda found: _joined(found.group(), flags), text)
        text = _spaces(text)
        if text == before:
            break
    return CleanText(text, tuple(sorted(flags)))


def _spaces(text: str) -> str:
    """One space between words; paragraphs stay, with at most one empty line between them."""
    text = re.sub(r"[^\S\n]+", " ", _BREAK.sub("\n", text))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def _check(text: str, limit: int) -> None:
    if len(text) > limit:
        raise RefusedText("too_long", f"{len(text)} characters, the limit is {limit}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RefusedText("invalid_unicode", "lone surrogates: not valid Unicode")
    if "\0" in text:
        raise RefusedText("control_characters", "NUL characters")


def _visible(text: str, flags: set[str]) -> str:
    """Without invisible, directional and control characters, and without stacks of marks."""
    kept: list[str] = []
    marks = 0
    for i, character in enumerate(text):
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if _is_selector(character):
            if character == "\ufe0f" and kept and unicodedata.category(kept[-1]) == "So":
                kept.append(character)
            else:
                flags.add("invisible")
        elif character in _JOINERS:
            if _joins(kept[-1] if kept else "", text[i + 1] if i + 1 < len(text) else ""):
                kept.append(character)
            else:
                flags.add("invisible")
        elif category == "Cf":
            flags.add("bidi" if unicodedata.bidirectional(character) in _BIDI else "invisible")
        elif category == "Cc" and not character.isspace():
            flags.add("control")
        elif category == "Lo" and unicodedata.name(character, "").endswith("FILLER"):
            flags.add("invisible")
        elif marks > MAX_MARKS:
            flags.add("combining")
        else:
            kept.append(character)
    return "".join(kept)


_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _joins(before: str, after: str) -> bool:
    """Whether a joiner between these two is writing: inside emoji, and between letters of scripts that need it."""
    if not before or not after:
        return False
    if before == "\ufe0f" or unicodedata.category(before) in ("So", "Sk"):
        return unicodedata.category(after) == "So"
    letters = all(unicodedata.category(c)[0] in "LM" for c in (before, after))
    return letters and all("\u0600" <= c <= "\u0dff" or "\u1000" <= c <= "\u18ff" for c in (before, after))


def _latin(word: str, flags: set[str]) -> str:
    """Look-alikes in a word that mixes them with Latin letters, as Latin letters; a word of one script stays."""
    if word.isascii() or not any(character.isascii() for character in word):
        return word
    folded = "".join(_CONFUSABLES.get(character, character) for character in word)
    if folded != word:
        flags.add("homoglyph")
    return folded


def _joined(spaced: str, flags: set[str]) -> str:
    flags.add("spacing")
    return spaced[::2]
