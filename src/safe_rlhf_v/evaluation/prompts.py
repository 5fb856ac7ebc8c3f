"""The prompts of an evaluation: which records, in which order, and what a policy or judge is shown with each."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from safe_rlhf_v.construct.grounding import under_pictures
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.transforms import TransformError, transformed
from safe_rlhf_v.functional.certificates import order_by
from safe_rlhf_v.ingest.picture_groups import PictureGroups
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardedSplit

Picture = Literal["real", "other", "blank", "none"]
PICTURES: tuple[Picture, ...] = get_args(Picture)
PromptForm = Literal["real", "other", "blank", "none", "typographic", "harmless_prefix"]
"""What is shown of a prompt: it with one of the pictures, or transformed, which asks the same with other means."""


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
        split: Its split.
        key: Key of its record.
        row: Number of its record in the split.
        content: Short hash of the record, so that lines of changed data are never mixed.
        about: Its line in ``prompts.jsonl``.
        images: Number of its pictures.
    """

    split: str
    key: str
    row: int
    content: str
    about: Row
    images: int


class PromptSet:
    """The prompts of some splits.

    Attributes:
        prompts: By split and key, in stored order.
        grounding: Of these, the ones that are also shown with other pictures, or transformed.
        font: Font file of the text that is written into pictures; ``None`` for the built-in one.
    """

    def __init__(
        self,
        data: Path,
        splits: Sequence[str],
        most: int | None = None,
        grounding: int = 0,
        seed: int = 0,
        font: str | None = None,
    ) -> None:
        """Read which records there are.

        Args:
            data: Shard folder.
            splits: Splits in order.
            most: Largest number of prompts of a split, chosen at random; ``None`` for all.
            grounding: Number of prompts of each split that are also shown otherwise, chosen at random among those with a
                picture; among all of a split that has none.
            seed: Of these choices.
            font: Font file of the text that is written into pictures.

        Raises:
            ShardError: If a split is missing or damaged.
            ValueError: If a split holds no record, or two records of one split have one key.
        """
        self._splits = {split: ShardedSplit(data, split) for split in splits}
        self._seed = seed
        self.font = font
        self.prompts: dict[tuple[str, str], Prompt] = {}
        self.grounding: list[Prompt] = []
        self._circles: dict[tuple[str, int], tuple[list[Prompt], dict[str, int]]] = {}
        self._pictures = PictureGroups()  # records that share one picture of several are one image group
        self._under: dict[PromptForm, list[Prompt]] = {}
        self._problems: dict[PromptForm, list[str]] = {}
        for split in splits:
            own = self._read(data, split)
            chosen = own if most is None else self._some(own, most)
            self.prompts |= {(split, prompt.key): prompt for prompt in chosen}
            self.grounding += self._some([prompt for prompt in chosen if prompt.images] or chosen, grounding)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """In stored order, split by split."""
        return iter(self.prompts.values())

    def some(self, count: int, word: str, split: str | None = None) -> list[Prompt]:
        """Prompts chosen at random, in stored order.

        Args:
            count: How many at most.
            word: Another word gives another choice.
            split: Of which split; ``None`` for all.
        """
        return self._some([one for one in self if split in (None, one.split)], count, word)

    def record(self, split: str, key: str, form: PromptForm = "real") -> Record:
        """A record with its image bytes, with other pictures, or transformed.

        Args:
            split: Its split.
            key: Its key.
            form: ``other`` gives the picture of another record of the split, ``blank`` a grey one, ``none`` no picture; see
                :mod:`safe_rlhf_v.evaluation.transforms` for the others.

        Raises:
            TransformError: If the record cannot be transformed; see :meth:`under`.
        """
        prompt = self.prompts[split, key]
        record = self._splits[split][prompt.row]
        if form == "real":
            return record
        if form == "typographic" or form == "harmless_prefix":
            return transformed(record, form, self.font)
        other = self._other(prompt) if form == "other" else None
        versions = under_pictures(record, None if other is None else self._splits[split][other.row])
        return versions[form]

    def under(self, form: PromptForm) -> list[Prompt]:
        """Prompts that are shown in this form: all as they are, else those of :attr:`grounding` for which it can be done."""
        if form == "real":
            return list(self)
        if form not in self._under:  # every policy and judge asks for it, and a text must be drawn to know
            self._under[form] = [one for one in self.grounding if self._can_be(one, form)]
        return self._under[form]

    def problems(self, form: PromptForm) -> list[str]:
        """Why prompts of :attr:`grounding` cannot be transformed, one sentence each.

        Args:
            form: The transform.
        """
        self.under(form)
        return self._problems.get(form, [])

    def _can_be(self, prompt: Prompt, form: PromptForm) -> bool:
        if form == "other":
            return bool(prompt.images) and self._other(prompt) is not None
        if form in ("blank", "none"):
            return prompt.images > 0
        try:
            self.record(prompt.split, prompt.key, form)
        except TransformError as error:
            self._problems.setdefault(form, []).append(str(error))
            return False
        return True

    def first(self) -> Record:
        """The first record."""
        prompt = next(iter(self))
        return self.record(prompt.split, prompt.key)

    def _other(self, prompt: Prompt) -> Prompt | None:
        """Another prompt with as many pictures and other ones; ``None`` if there is none.

        All prompts stand in a random circle; each one's other is the next of another image group, so that no picture is the other
        one of many.
        """
        kind = (prompt.split, prompt.images)
        if kind not in self._circles:
            alike = [one for one in self if (one.split, one.images) == kind]
            circle = sorted(alike, key=lambda one: _number(self._seed, "other", one.key))
            self._circles[kind] = circle, {one.key: i for i, one in enumerate(circle)}
        circle, places = self._circles[kind]
        begin = places[prompt.key] + 1
        turns = itertools.chain(range(begin, len(circle)), range(begin - 1))
        return next((circle[i] for i in turns if circle[i].about["group"] != prompt.about["group"]), None)

    def _read(self, data: Path, split: str) -> list[Prompt]:
        stored = self._splits[split]
        prompts: dict[str, Prompt] = {}
        first_pictures: list[str] = []
        for row in range(len(stored)):
            record = stored[row]
            if record.key in prompts:
                raise ValueError(f"{data}: split {split} holds the key {record.key!r} twice")
            content = hashlib.sha256(record.to_json()).hexdigest()[:16]
            prompts[record.key] = Prompt(split, record.key, row, content, _about(split, record), len(record.images))
            self._pictures.join(record.group_members)
            first_pictures.append(record.group_members[0])
        if not prompts:
            raise ValueError(f"{data}: split {split} holds no record")
        for prompt, picture in zip(prompts.values(), first_pictures, strict=True):
            prompt.about["group"] = self._pictures.group_of(picture)
        first = {prompt.about["group"]: prompt.key for prompt in sorted(prompts.values(), key=_rank, reverse=True)}
        for prompt in prompts.values():
            prompt.about["stands"] = first[prompt.about["group"]] == prompt.key
        return list(prompts.values())

    def _some(self, prompts: Sequence[Prompt], count: int, word: str = "choice") -> list[Prompt]:
        ordered = sorted(prompts, key=lambda one: _number(self._seed, word, one.split, one.key))
        chosen = {(one.split, one.key) for one in ordered[:count]}
        return [one for one in prompts if (one.split, one.key) in chosen]


def _about(split: str, record: Record) -> Row:
    return {
        "split": split,
        "key": record.key,
        "group": "",  # known, as what follows from it, when all records of the split were read
        "category": None if record.category is None else list(record.category),
        "intent": record.origin.get("intent", record.origin.get("kind")),
        "question": record.question,
        "image_severity": record.image_severity,
        "prompt_safety": record.prompt_safety,
    }


def _rank(prompt: Prompt) -> bytes:
    """The first of an image group by this stands for it in a certificate, also where only some prompts are evaluated."""
    return order_by("0", prompt.key)


def _number(seed: int, *words: str) -> bytes:
    """A number that is random, and always the same for these words."""
    return hashlib.sha256("\0".join((str(seed), *words)).encode()).digest()
