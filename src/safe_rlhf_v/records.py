"""One record: the image(s), a question, its responses and every label known about them.

A record is what a shard stores (``KEY.jpg`` + ``KEY.json``) and what every stage reads: supervised, reward, cost, guard
and prompt-only training differ only in the fields they look at. Records validate themselves; a message names the key
and the field.
"""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from safe_rlhf_v.taxonomy import MAX_LEVEL, MIN_LEVEL, Taxonomy

SCHEMA_VERSION = 1
MAX_JSON_BYTES = 1_000_000
IMAGE_FORMATS = ("jpg", "png", "webp")
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,128}")


class RecordError(ValueError):
    """A record breaks the schema; the message names key and field."""

    def __init__(self, key: str, where: str, problem: str) -> None:
        super().__init__(f"record {key!r}, field {where!r}: {problem}")
        self.key, self.field, self.problem = key, where, problem


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image and what identifies it.

    Attributes:
        data: The encoded bytes, never re-encoded on the way.
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
    """One answer to the prompt, with the labels annotators gave it (``None`` = not labelled).

    Attributes:
        text: The answer.
        safety: Safety level -3..3.
        is_safe: Binary safety label.
        helpfulness: Graded helpfulness (0..3 in BeaverTails-V; any finite scale is accepted).
        source: What produced the text (a model name, ``"demonstrator"``, ...).
    """

    text: str
    safety: int | None = None
    is_safe: bool | None = None
    helpfulness: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Truth:
    """Noise-free values behind the labels; only synthetic data have them.

    Attributes:
        helpfulness: True helpfulness of each response.
        safety: True safety level -3..3 of each response.
        attributes: What the picture shows, as class indices (``{"object": 3, "context": 1, ...}``).
        twin: Key of the counterfactual partner (same question and responses, another picture), or ``""``.
        rule: Name of the rule that decides the safety level of each response.
    """

    helpfulness: tuple[float, ...]
    safety: tuple[int, ...]
    attributes: dict[str, int]
    twin: str = ""
    rule: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt (images + question) with its responses and labels.

    Attributes:
        key: Unique over the data set; letters, digits, ``_`` and ``-`` only (a dot would split a shard member's name).
        question: The text part of the prompt.
        images: Zero or more images, in prompt order.
        responses: Zero or more responses; two for a preference pair.
        category: Harm category of the prompt, ``None`` if harmless or unknown.
        image_severity: Risk level of the image, as the source states it.
        more_helpful: Index of the response annotators found more helpful.
        safer: Index of the response annotators found safer.
        safety_tie: Both responses have the same safety rating, so ``safer`` was a forced choice.
        origin: Where the record came from (data set, revision, split, row), as flat strings.
        truth: Noise-free values, synthetic data only.
    """

    key: str
    question: str
    images: tuple[Image, ...] = ()
    responses: tuple[Response, ...] = ()
    category: str | None = None
    image_severity: int | None = None
    more_helpful: int | None = None
    safer: int | None = None
    safety_tie: bool = False
    origin: dict[str, str] = field(default_factory=dict)
    truth: Truth | None = None

    @property
    def group(self) -> str:
        """Split group: the ids of the images, or the question for a text-only record."""
        return "+".join(image.id for image in self.images) or f"text:{self.question}"

    def validate(self, taxonomy: Taxonomy | None = None) -> "Record":
        """Check every field; returns the record itself.

        Args:
            taxonomy: If given, ``category`` must be one of its categories.

        Raises:
            RecordError: Naming the key and the first field that is wrong.
        """
        for where, problem in _problems(self, taxonomy):
            raise RecordError(self.key, where, problem)
        return self

    def to_json(self) -> bytes:
        """Canonical JSON of everything but the image bytes; equal records give equal bytes. All keys always present."""
        body = dataclasses.asdict(self)
        for image in body["images"]:
            del image["data"]
        return json.dumps(
            {"schema": SCHEMA_VERSION, **body}, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
        ).encode()

    @classmethod
    def from_json(cls, text: bytes, images: tuple[bytes, ...], key: str = "?") -> "Record":
        """Parse and validate what :meth:`to_json` wrote, with the images' bytes.

        Args:
            text: The JSON member, at most 1 MB.
            images: Encoded bytes, one per entry of the JSON's ``images``.
            key: The shard member's key, for messages; the JSON's own ``key`` must equal it when given.

        Raises:
            RecordError: For anything the schema does not allow.
        """
        body = _parse(text, key)
        if key != "?" and body.get("key") != key:
            raise RecordError(key, "key", f"the JSON says {body.get('key')!r}")
        return _build(cls, body, images, key).validate()
