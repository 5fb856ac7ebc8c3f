"""One record: images, a question, its responses and their labels.

Shards store records (``KEY.jpg`` + ``KEY.json``) and every stage reads them: supervised, reward, cost, guard and prompt-only
training differ only in the fields they use. Records validate themselves; messages name the key and the field.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from safe_rlhf_v.records.parsing import (
    Fields,
    RecordError,
    check_finite,
    check_int,
    check_level,
    check_text,
    parse_json,
)
from safe_rlhf_v.records.taxonomy import Taxonomy

__all__ = ["IMAGE_FORMATS", "SCHEMA_VERSION", "Image", "Record", "RecordError", "Response", "Truth"]

SCHEMA_VERSION = 2
READS = (1, 2)
"""Schema versions that are read; in version 1 ``category`` was a single name."""
IMAGE_FORMATS = ("jpg", "png", "webp")
# KEY.json must fit into the 100 bytes of a tar header's name field.
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,95}")
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
        key: Unique in the data set; letters, digits, ``_`` and ``-`` only (a dot would split the file name in the shard).
        question: The text part of the prompt.
        images: Zero or more images, in prompt order.
        responses: Zero or more responses; two for a preference pair.
        category: Harm categories of the prompt: names, ``()`` if it is of none (a harmless prompt), ``None`` if unknown.
            In a file the same: a list of names, ``[]``, and ``null`` or no such field.
        image_severity: Risk level of the image, on the scale of its source.
        more_helpful: Index of the response that annotators rated more helpful.
        safer: Index of the response that annotators rated safer.
        safety_tie: Both responses have the same safety rating, so ``safer`` was a forced choice.
        origin: Where the record came from (data set, revision, split, row), as flat strings.
        truth: Noise-free values, synthetic data only.
    """

    key: str
    question: str
    images: tuple[Image, ...] = ()
    responses: tuple[Response, ...] = ()
    category: tuple[str, ...] | None = None
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
            taxonomy: If given, ``category`` may name its categories only.

        Raises:
            RecordError: Naming the key and the first field that is wrong.
        """
        for where, problem in self.problems(taxonomy):
            raise RecordError(self.key, where, problem)
        return self

    def problems(self, taxonomy: Taxonomy | None = None) -> Iterator[tuple[str, str]]:
        """Every (field, problem) of the record, in the order of the cost of the check.

        Args:
            taxonomy: See :meth:`validate`.
        """
        return _problems(self, taxonomy)

    def to_json(self) -> bytes:
        """Canonical JSON without the image bytes: equal records give equal bytes, and every key is present."""
        body = dataclasses.asdict(self)
        for image in body["images"]:
            del image["data"]
        return json.dumps(
            {"schema": SCHEMA_VERSION, **body},
            ensure_ascii=False,
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        ).encode()

    @classmethod
    def from_json(
        cls, text: bytes, images: tuple[bytes, ...], key: str = "?", taxonomy: Taxonomy | None = None
    ) -> "Record":
        """Parse and validate the output of :meth:`to_json`, with the images' bytes.

        Args:
            text: The JSON, at most 1 MB.
            images: Encoded bytes, one per entry of the JSON's ``images``.
            key: The key in the file name, for messages; the JSON's own ``key`` must equal it.
            taxonomy: See :meth:`validate`.

        Raises:
            RecordError: For anything the schema does not allow.
        """
        fields = Fields(parse_json(text, key), key)
        record = _record(fields, images)
        if key != "?" and record.key != key:
            raise RecordError(key, "key", f"the JSON says {record.key!r:.140}")
        return record.validate(taxonomy)


def _record(fields: Fields, images: tuple[bytes, ...]) -> Record:
    """Build a record from its JSON fields and image bytes."""
    if (schema := fields.take("schema", int)) not in READS:
        raise RecordError(fields.key, "schema", f"is {schema}; this version reads {' and '.join(map(str, READS))}")
    described = fields.items("images")
    if len(described) != len(images):
        raise RecordError(fields.key, "images", f"describes {len(described)} images, the shard has {len(images)}")
    record = Record(
        key=fields.take("key", str),
        question=fields.take("question", str),
        images=tuple(
            _image(Fields(body, fields.key, where), data) for (where, body), data in zip(described, images, strict=True)
        ),
        responses=tuple(_response(Fields(body, fields.key, where)) for where, body in fields.items("responses")),
        category=_category(fields),
        image_severity=fields.take("image_severity", int, optional=True),
        more_helpful=fields.take("more_helpful", int, optional=True),
        safer=fields.take("safer", int, optional=True),
        safety_tie=fields.take("safety_tie", bool),
        origin=dict(fields.take("origin", dict)),
        truth=_truth(fields),
    )
    fields.done()
    return record


def _category(fields: Fields) -> tuple[str, ...] | None:
    """The categories' names, ``()`` for none, ``None`` if unknown; a string is one name."""
    if "category" not in fields.body:
        return None
    value = fields.take("category", list, str, optional=True)
    return (value,) if isinstance(value, str) else None if value is None else tuple(value)


def _image(fields: Fields, data: bytes) -> Image:
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


def _response(fields: Fields) -> Response:
    response = Response(
        text=fields.take("text", str),
        safety=fields.take("safety", int, optional=True),
        is_safe=fields.take("is_safe", bool, optional=True),
        helpfulness=fields.take("helpfulness", float, int, optional=True),
        source=fields.take("source", str),
    )
    fields.done()
    return response


def _truth(fields: Fields) -> Truth | None:
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


def _problems(record: Record, taxonomy: Taxonomy | None) -> Iterator[tuple[str, str]]:
    """See :meth:`Record.problems`."""
    if not _KEY.fullmatch(record.key):
        yield (
            "key",
            f"{record.key!r:.140} must be 1-95 letters, digits, '_' or '-' (a dot would split the file name in the shard)",
        )
    for i, image in enumerate(record.images):
        if image.format not in IMAGE_FORMATS:
            yield f"images[{i}].format", f"{image.format!r} is not one of {', '.join(IMAGE_FORMATS)}"
        for name, value in (("id", image.id), ("sha256", image.sha256)):
            if not _HASH.fullmatch(value):
                yield f"images[{i}].{name}", "must be 64 hexadecimal digits"
    for i, response in enumerate(record.responses):
        if problem := check_level(response.safety):
            yield f"responses[{i}].safety", problem
        if problem := check_finite(response.helpfulness):
            yield f"responses[{i}].helpfulness", problem
    count = len(record.responses)
    for name, index in (("more_helpful", record.more_helpful), ("safer", record.safer)):
        if index is not None and not 0 <= index < count:
            yield name, f"{index} is not the 0-based index of one of the {count} responses"
    yield from _category_problems(record.category, taxonomy)
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in record.origin.items()):
        yield "origin", "must map strings to strings"
    else:
        yield from _text_problems(record)
    if record.truth is not None:
        yield from _truth_problems(record.truth, count)


def _text_problems(record: Record) -> Iterator[tuple[str, str]]:
    """Texts that are not valid Unicode."""
    texts = {"question": record.question}
    for i, response in enumerate(record.responses):
        texts |= {f"responses[{i}].text": response.text, f"responses[{i}].source": response.source}
    texts["origin"] = "".join((*record.origin, *record.origin.values()))
    for name, text in texts.items():
        if problem := check_text(text):
            yield name, problem


def _category_problems(category: tuple[str, ...] | None, taxonomy: Taxonomy | None) -> Iterator[tuple[str, str]]:
    """Problems of the categories: not a list, a name given twice, or names that the taxonomy does not have."""
    if category is None:
        return
    if not isinstance(category, tuple) or not all(isinstance(name, str) for name in category):
        yield "category", f"must be a list of names ([] for none, null for unknown), not {category!r:.80}"
        return
    if len(set(category)) < len(category):
        yield "category", f"{list(category)!r:.80} names one category twice"
    for name in category:
        if taxonomy and name not in taxonomy.categories:
            categories = ", ".join(taxonomy.categories) or "no categories"
            yield "category", f"{name!r} is not in taxonomy {taxonomy.name!r}, which has: {categories}"


def _truth_problems(truth: Truth, count: int) -> Iterator[tuple[str, str]]:
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
