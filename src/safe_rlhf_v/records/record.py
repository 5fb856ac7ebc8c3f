"""One record: a prompt, its responses and their labels.

Shards store records (``KEY.jpg`` + ``KEY.json``) and every stage reads them: supervised, reward, cost, guard and prompt-only
training differ only in the fields they use. Records validate themselves; messages name the key and the field.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from safe_rlhf_v.records.conversation import Context, Turn, parse_turns, turn_problems
from safe_rlhf_v.records.parsing import Fields, RecordError, check_level, check_text, parse_json
from safe_rlhf_v.records.parts import (
    Image,
    Response,
    Truth,
    image_problems,
    parse_image,
    parse_response,
    parse_truth,
    response_problems,
    truth_problems,
)
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.records.votes import PairVotes, pair_vote_problems, parse_pair_votes

SCHEMA_VERSION = 3
READS = (1, 2, 3)
"""Schema versions that are read. In version 1 ``category`` was a single name; before version 3 a prompt was one turn, and there
were no ``system``, ``history``, ``prompt_safety``, ``helpfulness_tie`` and ``votes``."""
# KEY.json must fit into the 100 bytes of a tar header's name field.
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,95}")


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt with its responses and labels.

    The prompt is a conversation. Most have one turn, which ``question`` and ``images`` describe; ``system`` and ``history`` say
    what stands before it.

    Attributes:
        key: Unique in the data set; letters, digits, ``_`` and ``-`` only (a dot would split the file name in the shard).
        question: Text of the user's last turn. This turn holds those of ``images`` that no earlier turn holds.
        images: Zero or more images, in the order of the conversation.
        responses: Zero or more responses; two for a preference pair.
        category: Harm categories of the prompt: names, ``()`` if it is of none (a harmless prompt), ``None`` if unknown.
            In a file the same: a list of names, ``[]``, and ``null`` or no such field.
        system: System text; "" for none.
        history: Turns before the question, oldest first: the user's first, the assistant's last.
        prompt_safety: Safety level -3..3 of the prompt itself.
        image_severity: Risk level of the image, on the scale of its source.
        more_helpful: Index of the response that annotators rated more helpful.
        safer: Index of the response that annotators rated safer.
        safety_tie: Both responses have the same safety rating, so ``safer`` was a forced choice.
        helpfulness_tie: Both responses have the same helpfulness rating, so ``more_helpful`` was a forced choice.
        votes: What each annotator chose.
        origin: Where the record came from (data set, revision, split, row), as flat strings.
        truth: Noise-free values, synthetic data only.
    """

    key: str
    question: str
    images: tuple[Image, ...] = ()
    responses: tuple[Response, ...] = ()
    category: tuple[str, ...] | None = None
    system: str = ""
    history: tuple[Turn, ...] = ()
    prompt_safety: int | None = None
    image_severity: int | None = None
    more_helpful: int | None = None
    safer: int | None = None
    safety_tie: bool = False
    helpfulness_tie: bool = False
    votes: PairVotes | None = None
    origin: dict[str, str] = field(default_factory=dict)
    truth: Truth | None = None

    @property
    def context(self) -> Context:
        """System text and earlier turns."""
        return Context(self.system, self.history)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, with the question last."""
        return self.context.turns(self.question, len(self.images))

    @property
    def group(self) -> str:
        """Split group: the ids of the images, or the texts of the prompt if it has no image."""
        if self.images:
            return "+".join(image.id for image in self.images)
        if not self.system and not self.history:
            return f"text:{self.question}"
        return "texts:" + json.dumps([self.system, *(turn.text for turn in self.turns)], ensure_ascii=False)

    @property
    def group_members(self) -> tuple[str, ...]:
        """What no other split may hold: the id of each image, or, without images, the group."""
        return tuple(image.id for image in self.images) or (self.group,)

    def with_images(self, images: tuple[Image, ...]) -> "Record":
        """The record with other images in the same places; see :meth:`Context.with_images` for fewer of them."""
        return dataclasses.replace(self, images=images, history=self.context.with_images(len(images)).history)

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
        body["history"] = [turn._asdict() for turn in self.history]
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
        *others, last = map(str, READS)
        raise RecordError(fields.key, "schema", f"is {schema}; this version reads {', '.join(others)} and {last}")
    described = fields.items("images")
    if len(described) != len(images):
        raise RecordError(fields.key, "images", f"describes {len(described)} images, the shard has {len(images)}")
    record = Record(
        key=fields.take("key", str),
        question=fields.take("question", str),
        images=tuple(
            parse_image(Fields(body, fields.key, where), data)
            for (where, body), data in zip(described, images, strict=True)
        ),
        responses=tuple(
            parse_response(Fields(body, fields.key, where), schema) for where, body in fields.items("responses")
        ),
        category=_category(fields),
        image_severity=fields.take("image_severity", int, optional=True),
        more_helpful=fields.take("more_helpful", int, optional=True),
        safer=fields.take("safer", int, optional=True),
        safety_tie=fields.take("safety_tie", bool),
        origin=dict(fields.take("origin", dict)),
        truth=parse_truth(fields),
        **(_newer_fields(fields) if schema >= 3 else {}),
    )
    fields.done()
    return record


def _newer_fields(fields: Fields) -> dict[str, Any]:
    """The fields that only schema 3 has; one that is absent has its default."""
    values: dict[str, Any] = {}
    if "system" in fields.body:
        values["system"] = fields.take("system", str)
    if "history" in fields.body:
        values["history"] = parse_turns(fields, "history")
    if "prompt_safety" in fields.body:
        values["prompt_safety"] = fields.take("prompt_safety", int, optional=True)
    if "helpfulness_tie" in fields.body:
        values["helpfulness_tie"] = fields.take("helpfulness_tie", bool)
    if "votes" in fields.body:
        values["votes"] = parse_pair_votes(fields)
    return values


def _category(fields: Fields) -> tuple[str, ...] | None:
    """The categories' names, ``()`` for none, ``None`` if unknown; a string is one name."""
    if "category" not in fields.body:
        return None
    value = fields.take("category", list, str, optional=True)
    return (value,) if isinstance(value, str) else None if value is None else tuple(value)


def _problems(record: Record, taxonomy: Taxonomy | None) -> Iterator[tuple[str, str]]:
    """See :meth:`Record.problems`."""
    if not _KEY.fullmatch(record.key):
        yield (
            "key",
            f"{record.key!r:.140} must be 1-95 letters, digits, '_' or '-' (a dot would split the file name in the shard)",
        )
    for i, image in enumerate(record.images):
        yield from ((f"images[{i}].{name}", problem) for name, problem in image_problems(image))
    for i, response in enumerate(record.responses):
        yield from ((f"responses[{i}].{name}", problem) for name, problem in response_problems(response))
    count = len(record.responses)
    for name, index in (("more_helpful", record.more_helpful), ("safer", record.safer)):
        if index is not None and not 0 <= index < count:
            yield name, f"{index} is not the 0-based index of one of the {count} responses"
    yield from pair_vote_problems(record.votes, count)
    yield from turn_problems(record.history, len(record.images))
    if problem := check_level(record.prompt_safety):
        yield "prompt_safety", problem
    yield from _category_problems(record.category, taxonomy)
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in record.origin.items()):
        yield "origin", "must map strings to strings"
    else:
        yield from _text_problems(record)
    if record.truth is not None:
        yield from truth_problems(record.truth, count)


def _text_problems(record: Record) -> Iterator[tuple[str, str]]:
    """Texts that are not valid Unicode."""
    texts = {"question": record.question, "system": record.system}
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
