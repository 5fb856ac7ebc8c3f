"""Parts of a record: its images, its responses, and the truth behind the labels of synthetic data."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from safe_rlhf_v.records.parsing import Fields, check_finite, check_int, check_level, check_text
from safe_rlhf_v.records.votes import Votes, parse_votes, vote_problems

IMAGE_FORMATS = ("jpg", "png", "webp")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image and what identifies it.

    Attributes:
        data: The encoded bytes as imported, never re-encoded.
        format: ``"jpg"``, ``"png"`` or ``"webp"``.
        id: SHA-256 (hex) of size and RGB pixels after EXIF transpose: equal pixels have equal ids. It is the split
            group and the key of image-feature caches.
        sha256: SHA-256 (hex) of ``data``.
        width: Pixels, after EXIF transpose.
        height: Pixels, after EXIF transpose.
    """

    data: bytes
    format: str
    id: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Response:
    """One response to the prompt, with the labels annotators gave it (``None`` = not labelled).

    Attributes:
        text: The response.
        safety: Safety level -3..3.
        is_safe: Binary safety label.
        helpfulness: Graded helpfulness (0..3 in BeaverTails-V; any finite scale is accepted).
        source: Origin of the text (a model name, ``"demonstrator"``, ...).
        votes: What each annotator said.
    """

    text: str
    safety: int | None = None
    is_safe: bool | None = None
    helpfulness: float | None = None
    source: str = ""
    votes: Votes | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """Noise-free values behind the labels; only synthetic data have them.

    Attributes:
        helpfulness: True helpfulness of each response.
        safety: True safety level -3..3 of each response.
        attributes: What the picture shows, as class indices (``{"object": 3, "context": 1, ...}``).
        twin: Key of the counterfactual partner (same question and responses, another picture or history), or ``""``.
        rule: Name of the rule that decides the safety level of each response.
    """

    helpfulness: tuple[float, ...]
    safety: tuple[int, ...]
    attributes: dict[str, int]
    twin: str = ""
    rule: tuple[str, ...] = ()


def parse_image(fields: Fields, data: bytes) -> Image:
    """An image from its JSON and its bytes."""
    image = Image(
        data=data,
        format=fields.take("format", str),
        id=fields.take("id", str),
        sha256=fields.take("sha256", str),
        width=fields.take("width", int),
        height=fields.take("height", int),
    )
    fields.done()
    return image


def parse_response(fields: Fields, schema: int) -> Response:
    """A response from its JSON; before schema 3 it had no votes."""
    response = Response(
        text=fields.take("text", str),
        safety=fields.take("safety", int, optional=True),
        is_safe=fields.take("is_safe", bool, optional=True),
        helpfulness=fields.take("helpfulness", float, int, optional=True),
        source=fields.take("source", str),
        votes=parse_votes(fields) if schema >= 3 else None,
    )
    fields.done()
    return response


def parse_truth(fields: Fields) -> Truth | None:
    """The noise-free values of a record, ``None`` without any."""
    body = fields.take("truth", dict, optional=True)
    if body is None:
        return None
    inner = Fields(body, fields.key, "truth")
    truth = Truth(
        helpfulness=tuple(inner.take("helpfulness", list)),
        safety=tuple(inner.take("safety", list)),
        attributes=dict(inner.take("attributes", dict)),
        twin=inner.take("twin", str),
        rule=tuple(inner.take("rule", list)),
    )
    inner.done()
    return truth


def image_problems(image: Image) -> Iterator[tuple[str, str]]:
    """Every (field, problem) of one image; its bytes are not read."""
    if image.format not in IMAGE_FORMATS:
        yield "format", f"{image.format!r} is not one of {', '.join(IMAGE_FORMATS)}"
    for name, value in (("id", image.id), ("sha256", image.sha256)):
        if not _HASH.fullmatch(value):
            yield name, "must be 64 hexadecimal digits"
    for name, side in (("width", image.width), ("height", image.height)):
        if side < 1:
            yield name, f"must be at least 1 pixel, not {side}"


def response_problems(response: Response) -> Iterator[tuple[str, str]]:
    """Every (field, problem) of one response."""
    if problem := check_level(response.safety):
        yield "safety", problem
    if problem := check_finite(response.helpfulness):
        yield "helpfulness", problem
    yield from vote_problems(response.votes)


def truth_problems(truth: Truth, count: int) -> Iterator[tuple[str, str]]:
    """Problems of the noise-free values, one entry per response."""
    checks: tuple[tuple[str, tuple[Any, ...], tuple[type, ...]], ...] = (
        ("helpfulness", truth.helpfulness, (int, float)),
        ("safety", truth.safety, (int,)),
        ("rule", truth.rule, (str,)),
    )
    for name, values, kinds in checks:
        if (name != "rule" or values) and len(values) != count:
            yield f"truth.{name}", f"has {len(values)} entries for {count} responses"
        if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            yield f"truth.{name}", f"must hold {kinds[-1].__name__}, not {values!r:.80}"
        elif problem := next((p for v in values if (p := _check_truth(name, v))), None):
            yield f"truth.{name}", problem
    for name, value in truth.attributes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            yield f"truth.attributes.{name}", f"must be an integer class index, not {value!r:.80}"
        elif problem := check_int(value):
            yield f"truth.attributes.{name}", problem


def _check_truth(name: str, value: Any) -> str | None:
    """What is wrong with one entry of helpfulness, safety or rule that has the right type, or ``None``."""
    checks: dict[str, Callable[[Any], str | None]] = {"safety": check_level, "helpfulness": check_finite}
    return checks.get(name, check_text)(value)
