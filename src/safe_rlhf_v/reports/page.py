"""A report as one HTML file that needs nothing else: no script, no request, every text from data escaped and made visible.

Three things keep a hostile text harmless. Jinja escapes every expression in text and attributes alike, and no template marks
an expression as safe. :func:`visible` shows control characters (NUL, bidirectional overrides) as their code points instead of
obeying them, and cuts what is too long. And the page forbids scripts and requests to itself (Content-Security-Policy).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import regex
from markupsafe import Markup

from safe_rlhf_v.records.user_files import write_whole
from safe_rlhf_v.reports import charts
from safe_rlhf_v.reports.blocks import Section
from safe_rlhf_v.reports.pictures import Thumbnails

MAX_TEXT = 3000
SHORT = 1200
"""Characters of a quoted text that are seen at once."""
WHOLE = 20_000
"""Characters of a quoted text that the reader can open."""
# Control, format and surrogate characters and separators of lines; the two joiners are needed to write Persian and emoji.
_INVISIBLE = regex.compile(r"[[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]--[\t\n\u200c\u200d]]", regex.V1)


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: What it reports on.
        subtitle: One sentence about it.
        sections: The parts, in reading order.
        facts: (name, value) of what it is based on.
        sensitive: Pictures are blurred until the reader chooses to see them.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    sensitive: bool = False


def render(page: Page, thumbnails: Thumbnails | None = None) -> str:
    """The page as HTML; equal pages give equal text.

    Args:
        page: The report.
        thumbnails: Makes its pictures; ``None`` for the default size and budget.
    """
    template = _environment().get_template("page.html")
    return template.render(page=page, thumbnail=thumbnails or Thumbnails())


def write(page: Page, path: Path) -> None:
    """Write the page completely or not at all.

    Args:
        page: The report.
        path: The HTML file.
    """
    write_whole(path, render(page).encode())


def visible(value: Any) -> Any:
    """A value as it is shown: without characters that act instead of being seen, and not longer than ``MAX_TEXT``.

    Args:
        value: Any value of a template; what the templates themselves produced is passed on unchanged.
    """
    if isinstance(value, Markup):
        return value
    text = str(value).replace("\r\n", "\n")
    more = len(text) - MAX_TEXT
    if more > 0:
        text = text[:MAX_TEXT]
    text = _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)
    return f"{text} … ({more:,} more characters)" if more > 0 else text


def parts(text: str) -> list[str]:
    """A text in pieces that :func:`visible` shows whole; what is beyond ``WHOLE`` is counted only."""
    text = text.replace("\r\n", "\n")
    pieces = [text[start : min(start + MAX_TEXT, WHOLE)] for start in range(0, min(len(text), WHOLE), MAX_TEXT)]
    return [*pieces, f" … ({len(text) - WHOLE:,} more characters)"] if len(text) > WHOLE else pieces


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["charts"] = charts
    environment.globals["SHORT"] = SHORT
    environment.filters["parts"] = parts
    environment.filters["number"] = charts.number
    return environment
