"""Responses to the items from several sources, and the pairs that are worth judging."""

import difflib
import itertools
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.questions import Item, read_items
from safe_rlhf_v.construct.stage import AskingStage, Planned, Workspace, add_usage, file_content
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.records import Record, Response, Truth
from safe_rlhf_v.records.user_files import digest
from safe_rlhf_v.scoring.judge import Judge, Usage


class Responded(NamedTuple):
    """What came back for one prompt.

    Attributes:
        text: The response, ``""`` where there is a fault.
        fault: Why there is none: ``empty``, ``refused`` (by the provider), ``failed`` (no reply came) or ``missing``.
        reply: More words about a fault.
        usage: What asking took.
    """

    text: str
    fault: str = ""
    reply: str = ""
    usage: Usage = Usage()


class Responder(ABC):
    """A source of responses: a model behind an endpoint, a policy of ours, a file."""

    families: Collection[str] = ()
    """Families of models it descends from; a judge that shares one is not independent of its responses."""
    calls: bool = True
    """Whether something is asked, so that a plan counts it."""

    @abstractmethod
    def respond(self, records: Sequence[Record], seed: int, draw: int = 0) -> list[Responded]:
        """One response to each prompt.

        Args:
            records: Prompts with their image bytes; always the same ones together.
            seed: Of the data set; all randomness comes from it, the records' keys and ``draw``.
            draw: Number of the repetition.
        """


class StoredResponses(Responder):
    """Responses out of a CSV or JSONL file, of any model.

    YAML::

        class_path: safe_rlhf_v.construct.StoredResponses
        init_args: {file: answers.jsonl, columns: {question: prompt, response: output}, families: [qwen]}
    """

    calls = False

    def __init__(self, file: str, columns: dict[str, str] | None = None, families: Sequence[str] = ()) -> None:
        """Name the file.

        Args:
            file: One row for each response; it is found by its image's hash and question, or by its question alone.
            columns: Names of the file's columns by our own: question, response, image (SHA-256 of the image file, optional).
            families: Families of the models that wrote the responses.
        """
        self.file = file
        self.columns = dict(columns or {})
        self.families = tuple(families)
        known = ("question", "response", "image")
        if unknown := [name for name in self.columns if name not in known]:
            raise ValueError(f"columns: {unknown[0]!r:.80} is none of {', '.join(known)}")
        self._texts: dict[tuple[str, str], str] | None = None

    def respond(self, records: Sequence[Record], seed: int, draw: int = 0) -> list[Responded]:
        if self._texts is None:
            self._texts = self._read()
        replies: list[Responded] = []
        for record in records:
            image = record.images[0].sha256 if record.images else ""
            text = self._texts.get((image, record.question), self._texts.get(("", record.question)))
            replies.append(Responded("", "missing") if text is None else Responded(text))
        return replies

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        return file_content(self.file)

    def _read(self) -> dict[tuple[str, str], str]:
        file = Path(self.file)
        theirs = {name: self.columns.get(name, name) for name in ("question", "response", "image")}
        texts: dict[tuple[str, str], str] = {}
        for row in read_table(file, required=(theirs["question"], theirs["response"])):
            question = row.text(theirs["question"])
            text = row.text(theirs["response"])
            image = row.text(theirs["image"]) or ""
            if not row.problems and (question is None or text is None):
                row.bad(theirs["question" if question is None else "response"], "is empty")
            if not row.problems and (image, str(question)) in texts:
                row.bad(theirs["question"], "occurs twice with the same image; name two files as two sources")
            if row.problems:
                column, problem = row.problems[0]
                raise TableError(f"{file}, row {row.number}, {column or 'row'}: {problem}")
            texts[image, str(question)] = str(text)
        return texts


class Respond(AskingStage):
    """Responses of every source to every question.

    Two responses to one question are near-identical, and no pair, if their words, without case and punctuation, are the same or
    share at least ``similarity`` in order (``difflib.SequenceMatcher.ratio`` over words). From the others up to
    ``pairs_per_question`` pairs are made, of different sources first.

    YAML::

        class_path: safe_rlhf_v.construct.Respond
        init_args:
          responders:
            supervised: {class_path: safe_rlhf_v.construct.PolicyResponder, init_args: {run: runs/quickstart/supervised}}
            ppo_lag: {class_path: safe_rlhf_v.construct.PolicyResponder, init_args: {run: runs/quickstart/ppo_lag}}
    """

    name = "responses"

    def __init__(
        self,
        responders: dict[str, Responder],
        draws: int = 1,
        similarity: float = 0.97,
        pairs_per_question: int = 1,
        on_failure: Literal["stop", "keep"] = "stop",
        batch_size: int = 50,
    ) -> None:
        """Choose the sources.

        Args:
            responders: Sources by name; the name stands in the records.
            draws: Responses of each source to each question.
            similarity: Share of words in order from which two responses are near-identical.
            pairs_per_question: Largest number of pairs of one question.
            on_failure: Where no reply came: stop, so that a later run asks again, or keep no response.
            batch_size: Prompts at a time.
        """
        if len(responders) * draws < 2:
            raise ValueError("responders: a pair needs two responses: two sources, or two draws of one")
        if pairs_per_question < 1:
            raise ValueError(f"pairs_per_question {pairs_per_question}: it must be at least 1")
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity is {similarity}; it must be in 0..1, above 0")
        self.responders = responders
        self.draws = draws
        self.similarity = similarity
        self.pairs_per_question = pairs_per_question
        self.on_failure = on_failure
        self.batch_size = batch_size

    def tasks(self, work: Workspace) -> list[Row]:
        self._items = read_items(work)
        asked = [(item.key, digest([item.question, item.image["sha256"]])) for item in self._items.values()]
        return [
            {"source": source, "draw": draw, "item": key, "prompt": prompt}
            for source in self.responders
            for draw in range(self.draws)
            for key, prompt in asked
        ]

    def do(self, work: Workspace, tasks: Sequence[Row]) -> list[Row]:
        rows: list[Row] = []
        for (source, draw), group in itertools.groupby(tasks, lambda task: (task["source"], task["draw"])):
            keys = [task["item"] for task in group]
            records = [self._items[key].record(work) for key in keys]
            for key, reply in zip(keys, self.responders[source].respond(records, work.seed, draw), strict=True):
                fault = reply.fault or ("" if reply.text.strip() else "empty")
                row: Row = {"item": key, "source": source, "draw": draw, "text": "" if fault else reply.text}
                rest = {"fault": fault, "reply": reply.reply} if fault else {}
                rows.append({**row, **rest, **add_usage([reply.usage])})
        return rows

    def summary(self, work: Workspace) -> dict[str, Any]:
        rows = work.rows(self.name)
        pairs = read_pairs(work)
        faults = Counter(row["fault"] for row in rows if row.get("fault"))
        return {"responses": len(rows), "pairs": len(pairs.usable), "near_identical": pairs.near_identical, **faults}

    def plan(self, counts: dict[str, int]) -> list[Planned]:
        questions = counts.get("questions", 0)
        counts["responses"] = questions * len(self.responders) * self.draws
        counts["pairs"] = questions * self.pairs_per_question
        asked = [(name, one) for name, one in self.responders.items() if one.calls]
        return [
            Planned(self.name, f"{name} ({type(one).__name__})", "responses", questions * self.draws)
            for name, one in asked
        ]


class Pair(NamedTuple):
    """Two responses to one item.

    Attributes:
        key: ``ITEM-XY``: the numbers of the responses.
        item: The item.
        texts: Both responses.
        sources: Where they come from.
    """

    key: str
    item: Item
    texts: tuple[str, str]
    sources: tuple[str, str]

    def record(self, work: Workspace, truth: Judge | None = None) -> Record:
        """The pair as a record without labels.

        Args:
            work: The working folder.
            truth: Whose scores are its true values, where the picture's truth is known.
        """
        prompt = self.item.record(work)
        true = None
        if truth is not None and prompt.truth is not None:
            scores = [truth.score(prompt, text) for text in self.texts]
            levels = tuple(int(one["level"]) for one in scores)
            true = Truth(tuple(one["helpfulness"] for one in scores), levels, prompt.truth.attributes)
        image = self.item.image
        origin = {**self.item.origin, "licence": image["licence"], "image_source": image["source"]}
        kind = {"kind": self.item.kind} if self.item.kind else {}
        responses = tuple(Response(text, source=source) for text, source in zip(self.texts, self.sources, strict=True))
        return replace(prompt, key=self.key, responses=responses, origin={**origin, **kind}, truth=true)


class Pairs(NamedTuple):
    """Pairs of a data set.

    Attributes:
        usable: Pairs by key.
        near_identical: Number of pairs that were refused because their responses are too alike.
    """

    usable: dict[str, Pair]
    near_identical: int


def read_pairs(work: Workspace) -> Pairs:
    """The pairs that are judged, from the stored responses."""
    settings = work.settings("responses")
    items = read_items(work)
    responses: dict[str, list[tuple[str, str]]] = {}
    for row in work.rows("responses"):
        if not row.get("fault"):
            responses.setdefault(row["item"], []).append((row["text"], row["source"]))
    usable: dict[str, Pair] = {}
    refused = 0
    for key, item in items.items():
        texts = responses.get(key, [])
        numbers = sorted(
            itertools.combinations(range(len(texts)), 2), key=lambda ij: texts[ij[0]][1] == texts[ij[1]][1]
        )
        count = 0
        for i, j in numbers:
            if count == settings["pairs_per_question"]:
                break
            first, source = texts[i]
            second, other = texts[j]
            if near_identical(first, second, settings["similarity"]):
                refused += 1
                continue
            pair = Pair(f"{key}-{i}{'' if len(texts) < 11 else '_'}{j}", item, (first, second), (source, other))
            usable[pair.key] = pair
            count += 1
    return Pairs(usable, refused)


def near_identical(first: str, second: str, similarity: float) -> bool:
    """Whether two responses are too alike to be told apart; the rule stands at :class:`Respond`."""
    words: list[str]
    others: list[str]
    words, others = (re.findall(r"\w+", text.casefold()) for text in (first, second))
    if words == others:
        return True
    matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
    return bool(matcher.real_quick_ratio() >= similarity and matcher.ratio() >= similarity)
