"""Genuine writing in twelve scripts, from texts that packages ship: Django's translated messages and the CLDR names in Babel.

Needs ``pip install django babel``.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import regex

SCRIPTS = {  # script: (locales of both packages, the letters that make a text one of that script)
    "Latin": (("de", "fr", "pl", "tr", "vi", "cs"), "Latin"),
    "Cyrillic": (("ru", "uk", "bg"), "Cyrillic"),
    "Greek": (("el",), "Greek"),
    "Armenian": (("hy",), "Armenian"),
    "Hebrew": (("he",), "Hebrew"),
    "Arabic": (("ar", "fa"), "Arabic"),
    "Devanagari": (("hi", "ne", "mr"), "Devanagari"),
    "Bengali": (("bn",), "Bengali"),
    "Thai": (("th",), "Thai"),
    "Tibetan": (("dz", "bo"), "Tibetan"),
    "Korean": (("ko",), "Hangul"),
    "Japanese and Chinese": (("ja", "zh_Hans"), "Han"),
}


def genuine_writing(count: int, seed: int = 0) -> dict[str, list[str]]:
    """``count`` different texts of every script, drawn from all that the packages have."""
    found: dict[str, list[str]] = {}
    for script, (locales, letters) in SCRIPTS.items():
        has_letter = regex.compile(rf"\p{{{letters}}}")
        texts = sorted({text for locale in locales for text in _texts(locale) if has_letter.search(text)})
        if len(texts) < count:
            raise ValueError(f"{script}: the packages have {len(texts)} texts, {count} are wanted")
        found[script] = random.Random(seed).sample(texts, count)
    return found


def _texts(locale: str) -> Iterator[str]:
    yield from _django(locale)
    yield from _cldr(locale)


def _django(locale: str) -> Iterator[str]:
    """Translations of Django's own messages, sentence by sentence as they stand."""
    import gettext

    import django

    for path in Path(django.__file__).parent.rglob(f"locale/{locale}/LC_MESSAGES/*.mo"):
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        yield from (text for key, text in catalog.items() if key and text.strip())


def _cldr(locale: str) -> Iterator[str]:
    """Names of languages, regions, scripts, months and days."""
    from babel import Locale, UnknownLocaleError

    try:
        known = Locale.parse(locale)
    except (UnknownLocaleError, ValueError):
        return
    for names in (known.languages, known.territories, known.scripts):
        yield from names.values()
    for calendar in (known.months, known.days):
        for widths in calendar.values():
            yield ", ".join(widths["wide"].values())
