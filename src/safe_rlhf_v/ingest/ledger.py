"""What is known of the records written so far; an interrupted import rebuilds it from its progress."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from safe_rlhf_v.ingest.likeness import any_alike
from safe_rlhf_v.ingest.statistics import Statistics
from safe_rlhf_v.records import Record, Turn
from safe_rlhf_v.shards import split_of
from safe_rlhf_v.shards.tar import Place

TRAIN = "train"
NEAR = 6
"""Largest number of differing bits, of 64, of the perceptual hashes of pictures that look alike."""
SHOWN_PICTURES = 24
SHOWN_DROPPED = 20


class Entry(NamedTuple):
    """A record that was written.

    Attributes:
        split: Its split.
        record: The record without texts and picture bytes.
        place: Where it stands.
        likenesses: Perceptual hashes of its pictures.
        lengths: Characters of the question and of each response.
        digest: Hash of all that it says but its key and origin.
    """

    split: str
    record: Record
    place: Place
    likenesses: list[str]
    lengths: list[int]
    digest: str

    @classmethod
    def of(cls, split: str, record: Record, place: Place, likenesses: list[str]) -> "Entry":
        """The entry of a record."""
        lengths = [len(record.question), *(len(response.text) for response in record.responses)]
        return cls(split, _bare(record), place, likenesses, lengths, content_digest(record))

    def to_json(self) -> list[Any]:
        """As the progress stores it."""
        return [self.split, self.record.to_json().decode(), *self[2:]]

    @classmethod
    def from_json(cls, body: list[Any]) -> "Entry":
        """From the progress."""
        split, text, place, *rest = body
        return cls(split, _parsed(text), Place(*place), *rest)


class Dropped(NamedTuple):
    """A row that is left out.

    Attributes:
        reason: Why.
        part: File of the row.
        row: Its number.
    """

    reason: str
    part: str
    row: int


@dataclass
class Ledger:
    """Everything that later rows and the data card depend on.

    Attributes:
        cut: Shares cut from train, by split.
        splits: Split of every picture, and of every prompt without pictures.
        fixed: Splits that the source states itself.
        digests: Hashes of all records.
        likenesses: Perceptual hash of every picture, by split.
        dropped: Number of rows left out, by reason.
        examples: Some of them.
        files: Number of distinct picture files.
        reused: Number of uses of a picture beyond the first.
        statistics: For the data card.
        pictures: Places of the pictures for the contact sheet, by their ids.
    """

    cut: Mapping[str, float]
    splits: dict[str, str] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    likenesses: dict[str, list[int]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Dropped]] = field(default_factory=dict)
    files: set[bytes] = field(default_factory=set)
    reused: int = 0
    statistics: Statistics = field(default_factory=Statistics)
    pictures: list[tuple[int, str, str, Place, int]] = field(default_factory=list)

    def place(self, record: Record, split: str) -> tuple[str, str]:
        """The split of a record, and why it must be left out (empty if it need not).

        Args:
            record: The record.
            split: Its split according to the source; from train, some are cut.
        """
        if bytes.fromhex(content_digest(record)) in self.digests:
            return split, "the same as an earlier row"
        known = {self.splits[name] for name in _names(record) if name in self.splits}
        if split != TRAIN:
            if others := known - {split}:
                return split, f"its picture stands in {min(others)}, too"
            return split, ""
        cut = {name: share for name, share in self.cut.items() if name not in self.fixed}
        if others := known & self.fixed:
            return split, f"its picture stands in {min(others)}, too"
        if len(known) > 1:
            return split, f"its pictures stand in {' and '.join(sorted(known))}"
        if known:
            return known.pop(), ""
        return split_of(record.group, {**cut, TRAIN: 1 - sum(cut.values())}), ""

    def add(self, entry: Entry, fixed: bool) -> None:
        """Take over a record that was written.

        Args:
            entry: The record.
            fixed: Whether the source states its split.
        """
        if fixed:
            self.fixed.add(entry.split)
        self.digests.add(bytes.fromhex(entry.digest))
        self.statistics.add(entry.split, entry.record, entry.lengths)
        for name in _names(entry.record):
            self.splits.setdefault(name, entry.split)
        for i, (image, likeness) in enumerate(zip(entry.record.images, entry.likenesses, strict=True)):
            self.files.add(bytes.fromhex(image.sha256)[:16])
            if not self._is_new(image.id):
                self.reused += 1
                continue
            self.likenesses.setdefault(entry.split, []).append(int(likeness, 16))
            item = (-int(image.id, 16), image.id, entry.split, entry.place, i)  # the smallest ids: a fair choice
            (heapq.heappush if len(self.pictures) < SHOWN_PICTURES else heapq.heappushpop)(self.pictures, item)

    def _is_new(self, image_id: str) -> bool:
        """Whether a picture occurs for the first time."""
        key = bytes.fromhex(image_id)[:16]
        if key in self._images:
            return False
        self._images.add(key)
        return True

    def __post_init__(self) -> None:
        """Begin without pictures."""
        self._images: set[bytes] = set()

    @property
    def images(self) -> int:
        """Number of distinct pictures."""
        return len(self._images)

    def drop(self, row: Dropped) -> None:
        """Count a row that is left out."""
        self.dropped[row.reason] += 1
        examples = self.examples.setdefault(row.reason, [])
        if len(examples) < SHOWN_DROPPED:
            examples.append(row)

    def alike(self) -> dict[str, int]:
        """Number of pictures outside train that look like one in train, by split."""
        train = np.array(sorted(set(self.likenesses.get(TRAIN, []))), dtype=np.uint64)
        counts = {
            split: sum(any_alike(train, np.uint64(one), NEAR) for one in hashes)
            for split, hashes in sorted(self.likenesses.items())
            if split != TRAIN
        }
        return {split: count for split, count in counts.items() if count}

    def alike_in_train(self) -> int:
        """Number of pictures of train with the perceptual hash of an earlier one."""
        hashes = self.likenesses.get(TRAIN, [])
        return len(hashes) - len(set(hashes))


def content_digest(record: Record) -> str:
    """Hash (hex) of all that a record says but its key and origin."""
    text = repr((record.group, replace(record, key="", origin={}, images=())))
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]


def _names(record: Record) -> list[str]:
    """What ties a record to its split: its pictures, or its texts."""
    return [image.id for image in record.images] or [hashlib.sha256(record.group.encode(errors="replace")).hexdigest()]


def _bare(record: Record) -> Record:
    """A record without picture bytes, and without texts unless they are its group."""
    responses = tuple(replace(response, text="") for response in record.responses)
    images = tuple(replace(image, data=b"") for image in record.images)
    if not images:
        return replace(record, responses=responses)
    history = tuple(Turn(turn.role, "", turn.images) for turn in record.history)
    return replace(record, responses=responses, images=images, question="", system="", history=history)


def _parsed(text: str) -> Record:
    return Record.from_json(text.encode(), (b"",) * len(json.loads(text)["images"]))
