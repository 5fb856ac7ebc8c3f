"""Questions about the images, and what becomes of them: one item is an image with a question."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safe_rlhf_v.construct.images import load_image, usable_images
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.stage import AskingStage, Planned, Workspace, add_usage, file_content
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.records import Image, Record, Truth
from safe_rlhf_v.scoring.judge import Usage

Kind = Literal["benign", "borderline", "harmful"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Intent of a question: harmless; harmful only together with some pictures; harmful."""
QUESTION_COLUMNS = ("image", "question", "kind", "category")


class Question(NamedTuple):
    """One question about an image.

    Attributes:
        text: The question.
        kind: Its intent, ``None`` if unknown.
        category: Harm categories of question and image together: names, () for none, ``None`` if unknown.
        origin: What else is known of it, as flat texts.
    """

    text: str
    kind: Kind | None = None
    category: tuple[str, ...] | None = None
    origin: Mapping[str, str] = {}


class QuestionReply(NamedTuple):
    """What a source says about one image.

    Attributes:
        questions: The questions; none where there is a fault.
        reply: The words of a model as they came.
        fault: Why there are none: ``unparsable``, ``refused`` or ``failed``.
        usage: What asking took.
    """

    questions: tuple[Question, ...]
    reply: str = ""
    fault: str = ""
    usage: Usage = Usage()


class Pictured(NamedTuple):
    """An image of the working folder.

    Attributes:
        row: Its row.
        image: With its bytes.
    """

    row: Row
    image: Image


class QuestionSource(ABC):
    """Where questions come from."""

    @abstractmethod
    def ask(self, images: Sequence[Pictured], seed: int) -> list[QuestionReply]:
        """What is asked about each image.

        Args:
            images: Images with what is known of them.
            seed: Of the data set.
        """

    @abstractmethod
    def most(self, images: int) -> tuple[int, int]:
        """How many questions there will be at most about so many images, and how often a model is asked for them."""

    def unused(self, images: Collection[str]) -> int:
        """How many questions of the source name none of the usable images.

        Args:
            images: Names of the usable images.
        """
        return 0


class QuestionFile(QuestionSource):
    """Questions out of a CSV or JSONL file, of any generator.

    YAML::

        source:
          class_path: safe_rlhf_v.construct.QuestionFile
          init_args: {file: prompts.jsonl, columns: {image: image_path, question: prompt}}
    """

    def __init__(self, file: str, columns: dict[str, str] | None = None) -> None:
        """Name the file.

        Args:
            file: One row for each question. An image is named as in the manifest of the images.
            columns: Names of the file's columns by our own: image, question, kind, category; where it is not named, a column
                has our name. The last two may be missing.
        """
        self.file = file
        self.columns = dict(columns or {})
        if unknown := [name for name in self.columns if name not in QUESTION_COLUMNS]:
            raise ValueError(f"columns: {unknown[0]!r:.80} is none of {', '.join(QUESTION_COLUMNS)}")
        self._by_image: dict[str, list[Question]] | None = None

    def ask(self, images: Sequence[Pictured], seed: int) -> list[QuestionReply]:
        if self._by_image is None:
            self._by_image = self._read()
        return [QuestionReply(tuple(self._by_image.get(image.row["name"], ()))) for image in images]

    def most(self, images: int) -> tuple[int, int]:
        return sum(map(len, self._read().values())), 0

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        return file_content(self.file)

    def unused(self, images: Collection[str]) -> int:
        return sum(len(questions) for name, questions in self._read().items() if name not in images)

    def _read(self) -> dict[str, list[Question]]:
        file = Path(self.file)
        theirs = {name: self.columns.get(name, name) for name in QUESTION_COLUMNS}
        by_image: dict[str, list[Question]] = {}
        for row in read_table(file, required=(theirs["image"], theirs["question"])):
            image = row.text(theirs["image"])
            text = row.text(theirs["question"])
            named = row.text(theirs["kind"])
            kind = next((kind for kind in KINDS if kind == named), None)
            category = row.names(theirs["category"])
            if row.readable and not row.problems and (image is None or text is None):
                row.bad(theirs["image" if image is None else "question"], "is empty")
            if named is not None and kind is None:
                row.bad(theirs["kind"], f"{named!r:.40} is none of {', '.join(KINDS)}")
            if row.problems:
                column, problem = row.problems[0]
                raise TableError(f"{file}, row {row.number}, {column or 'row'}: {problem}")
            by_image.setdefault(str(image), []).append(Question(str(text), kind, category))
        return by_image


class AskQuestions(AskingStage):
    """Questions about every image.

    YAML::

        class_path: safe_rlhf_v.construct.AskQuestions
        init_args:
          source: {class_path: safe_rlhf_v.construct.QuestionFile, init_args: {file: prompts.jsonl}}
    """

    name = "questions"

    def __init__(
        self, source: QuestionSource, on_failure: Literal["stop", "keep"] = "stop", batch_size: int = 16
    ) -> None:
        """Choose the source.

        Args:
            source: Where the questions come from.
            on_failure: Where no reply came: stop, so that a later run asks again, or keep no question.
            batch_size: Images at a time.
        """
        self.source = source
        self.on_failure = on_failure
        self.batch_size = batch_size

    def tasks(self, work: Workspace) -> list[Row]:
        names = ("key", "name", "sha256", "severity", "category", "attributes")
        self._rows = usable_images(work).rows
        return [{name: row.get(name) for name in names} for row in self._rows.values()]

    def do(self, work: Workspace, tasks: Sequence[Row]) -> list[Row]:
        rows = self._rows
        images = [Pictured(rows[task["key"]], load_image(work, rows[task["key"]])) for task in tasks]
        replies = self.source.ask(images, work.seed)
        return [self._row(work, task, reply) for task, reply in zip(tasks, replies, strict=True)]

    def _row(self, work: Workspace, task: Row, reply: QuestionReply) -> Row:
        for question in reply.questions:
            unknown = [name for name in question.category or () if name not in work.rubric.categories]
            if unknown:
                raise ValueError(
                    f"question {question.text!r:.80}: category {unknown[0]!r:.80} is not in the rubric {work.rubric.name!r}"
                )
        questions = [
            {
                "question": question.text,
                "kind": question.kind,
                "category": None if question.category is None else list(question.category),
                "origin": dict(question.origin),
            }
            for question in reply.questions
        ]
        rest = {"fault": reply.fault, "reply": reply.reply} if reply.reply or reply.fault else {}
        return {"image": task["key"], "questions": questions, **rest, **add_usage([reply.usage])}

    def summary(self, work: Workspace) -> dict[str, Any]:
        items = read_items(work)
        faults = Counter(row["fault"] for row in work.rows(self.name) if row.get("fault"))
        kinds = Counter(item.kind or "unknown kind" for item in items.values())
        unused = self.source.unused({row["name"] for row in usable_images(work).rows.values()})
        return {"questions": len(items), **kinds, **faults, **({"about no usable image": unused} if unused else {})}

    def plan(self, counts: dict[str, int]) -> list[Planned]:
        counts["questions"], calls = self.source.most(counts.get("images", 0))
        return [Planned(self.name, type(self.source).__name__, "questions about an image", calls)] if calls else []


class Item(NamedTuple):
    """An image with a question.

    Attributes:
        key: ``IMAGE-qNUMBER``.
        image: Row of the image.
        question: The question.
        kind: Its intent, ``None`` if unknown.
        category: Harm categories, () for none, ``None`` if unknown.
        origin: What else is known.
    """

    key: str
    image: Row
    question: str
    kind: Kind | None
    category: tuple[str, ...] | None
    origin: dict[str, str]

    @property
    def group(self) -> str:
        """Name under which categories are counted: one name, ``(none)`` or ``(unknown)``."""
        return "(unknown)" if self.category is None else self.category[0] if self.category else "(none)"

    def record(self, work: Workspace) -> Record:
        """The item as a prompt, with its image and, of synthetic images, what they show."""
        attributes = self.image.get("attributes")
        truth = None if attributes is None else Truth((), (), dict(attributes))
        return Record(
            key=self.key,
            question=self.question,
            images=(load_image(work, self.image),),
            category=self.category,
            image_severity=self.image.get("severity"),
            origin=self.origin,
            truth=truth,
        )


def read_items(work: Workspace) -> dict[str, Item]:
    """Every question by key; one that is asked twice about an image counts once."""
    images = usable_images(work).rows
    items: dict[str, Item] = {}
    for row in work.rows("questions"):
        image = images[row["image"]]
        seen: set[str] = set()
        for number, one in enumerate(row["questions"]):
            same = re.sub(r"\s+", " ", one["question"]).strip().casefold()
            if same in seen:
                continue
            seen.add(same)
            key = f"{row['image']}-q{number}"
            category = one["category"] if one["category"] is not None else image.get("category")
            names = None if category is None else tuple(category)
            items[key] = Item(key, image, one["question"], one["kind"], names, dict(one["origin"]))
    return items
