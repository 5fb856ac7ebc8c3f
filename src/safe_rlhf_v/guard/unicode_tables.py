"""What Unicode says of characters: which are not seen, and which look like ASCII."""

import functools
import json
import unicodedata
from importlib import resources

import regex

IGNORABLE = r"(?V1:[[\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cn}\p{Co}\ufff9-\ufffb]--\s])"
"""One character that is not seen or means nothing: ignorable by its property, control, unassigned or private."""

TAG_FLAG = regex.compile(
    "\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074|\U000e0077\U000e006c\U000e0073)\U000e007f"
)
"""The flags of England, Scotland and Wales, the only tag sequences Unicode recommends (UTS #51, RGI)."""

OVERRIDDEN = regex.compile("[\u202d\u202e]([^\u202c\n\u2029]*)\u202c?")
"""Text whose order of display is overridden, up to the end of the override or of the line."""

NESTED = regex.compile("[\u202d\u202e][^\u202c\n\u2029]*[\u202a\u202b\u202d\u202e\u2066-\u2068]")
"""Another direction inside such text: pieces keep their order while the order of the pieces is reversed. No writing needs it."""

PALOCHKA = "\u04cf"
"""Its prototype is "i" in the table, that of its capital is "l"; it looks like "l"."""

_NAMED = regex.compile(
    r"(?:LATIN|MODIFIER|NEGATIVE|REGIONAL|CIRCLED|SQUARED|TAG|DINGBAT)\b.*?\bLETTER (SMALL CAPITAL )?([A-Z])(?: WITH .*)?"
)
_STYLES = ("<font>", "<circle>", "<square>", "<super>", "<sub>", "<wide>")


@functools.cache
def look_alike(character: str, stroke: bool = False) -> str:
    """The ASCII that a character looks like, or itself.

    An ASCII string with the same prototype in the confusables of UTS #39; a prototype that is ASCII but for its marks; the
    ASCII look-alike of its capital letter; the letter in its name (small capitals, negative squares, strokes).

    Args:
        character: One character; ASCII stays.
        stroke: Read what may be I, l, i or 1, a bare stroke, as ``l``.
    """
    if character.isascii():
        return character
    if stroke and (character == PALOCHKA or "l" in _twins(character)):
        return "l"
    if twin := ascii_twin(character):
        return twin
    for twin in _twins(character):
        bare = regex.sub(r"\p{M}", "", unicodedata.normalize("NFD", twin))
        if bare and bare.isascii():
            return twin
    capital = character.upper()
    if len(capital) == 1 and capital != character and (twin := ascii_twin(capital)):
        return twin.lower()
    return _by_name(character) or character


@functools.cache
def is_styled(character: str) -> bool:
    """Whether a character is an ASCII letter in another style: mathematical, circled, raised, small capital, ..."""
    if character.isascii():
        return False
    if unicodedata.decomposition(character).startswith(_STYLES):
        plain = unicodedata.normalize("NFKD", character)
        return plain.isascii() and plain.isalpha()
    name = unicodedata.name(character, "")
    return "SMALL CAPITAL" in name or name.startswith("NEGATIVE")


def _by_name(character: str) -> str:
    """The ASCII letter that a Latin character's name holds, or ""."""
    name = unicodedata.name(character, "")
    match = _NAMED.fullmatch(name)
    if not match:
        return ""
    small = match.group(1) or "SMALL" in name
    letter = str(match.group(2))
    return letter.lower() if small else letter


@functools.cache
def ascii_twin(character: str) -> str:
    """The ASCII string with the same prototype: a letter of the same case, or the shortest, letters first; "" for none.

    Args:
        character: One character.
    """
    known = [twin for twin in _twins(character) if twin.isascii()]
    return min(
        known,
        key=lambda s: (not (s.isalpha() and s.isupper() == character.isupper()), len(s), not s.isalpha(), s),
        default="",
    )


def _twins(character: str) -> list[str]:
    """Every other string with the same prototype, sorted.

    The package names each pair of character and prototype at both ends, so these are a character's neighbours and theirs.
    """
    table = _confusables()
    near = table.get(character, ())
    return sorted({*near, *(far for one in near for far in table[one])} - {character})


@functools.cache
def _confusables() -> dict[str, tuple[str, ...]]:
    """The MA table of UTS #39 (Unicode 15.1), from ``confusable_homoglyphs``.

    It puts a mark around characters that are written from right to left; that goes.
    """
    body = json.loads(resources.files("confusable_homoglyphs").joinpath("confusables.json").read_text("utf-8"))
    mark = "\u200e"
    return {one.strip(mark): tuple(other["c"].strip(mark) for other in others) for one, others in body.items()}
