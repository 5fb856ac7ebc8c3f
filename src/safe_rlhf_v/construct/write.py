"""The last stage: labelled pairs as shards, with splits by image group, and a data card."""

import contextlib
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.audit import usable_judges
from safe_rlhf_v.construct.card import card
from safe_rlhf_v.construct.contamination import Benchmark, contaminated
from safe_rlhf_v.construct.grounding import read_grounding
from safe_rlhf_v.construct.images import usable_images
from safe_rlhf_v.construct.judging import read_opinions
from safe_rlhf_v.construct.labels import annotations_of, votes_of
from safe_rlhf_v.construct.people import Aggregation, with_votes
from safe_rlhf_v.construct.responses import read_pairs
from safe_rlhf_v.construct.select import people_annotations
from safe_rlhf_v.construct.stage import Stage, Workspace
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import read_bounded, write_whole
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.shards import ShardWriter
from safe_rlhf_v.shards.manifest import FILE_NAME

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,80}")
TAKEN = ("audit", "grounding", "images", "judgements", "people", "questions", "responses")
"""Names of files and folders of other stages in the working folder, without their endings."""


class WriteShards(Stage):
    """Writes the labelled pairs as shards.

    Without the pairs whose question leaks; labelled by the votes of the judges without alarms (with ``audited``) or of all;
    where people were asked, by their votes alone. All votes that count stand in the records. Pairs with the same image stand in
    one split. Images of named benchmarks are left out.

    YAML::

        class_path: safe_rlhf_v.construct.WriteShards
        init_args: {splits: {train: 0.8, validation: 0.1, test: 0.1}}
    """

    name = "shards"

    def __init__(
        self,
        splits: dict[str, float] | None = None,
        audited: bool = True,
        aggregation: Aggregation | None = None,
        benchmarks: dict[str, str] | None = None,
        near_distance: int = 4,
        truth: Judge | None = None,
        folder: str = "shards",
    ) -> None:
        """Choose what is written.

        Args:
            splits: Share of the image groups by name of the split; without it 0.8 train, 0.1 validation and 0.1 test.
            audited: Leave out judges with alarms and questions that leak.
            aggregation: What votes mean together; without it the majority.
            benchmarks: Benchmarks by name whose images must not occur: shard folders, or text files with one hash in a line
                (64 hexadecimal digits: SHA-256 of a file or of the pixels; 16: a perceptual hash).
            near_distance: Bits by which the perceptual hash of a benchmark's image differs at most; -1 compares exactly.
            truth: Whose scores stand in the records as true values; of synthetic data only.
            folder: Name of the shard folder in the working folder; a set may be written in several ways.

        Raises:
            ValueError: If the shares are not positive or do not sum to 1, or ``folder`` is no free name.
        """
        self.splits = dict(splits or {"train": 0.8, "validation": 0.1, "test": 0.1})
        if min(self.splits.values()) <= 0 or abs(sum(self.splits.values()) - 1) > 1e-6:
            raise ValueError(f"splits: the shares must be positive and sum to 1, not {self.splits}")
        self.audited = audited
        self.aggregation = aggregation
        self.benchmarks = dict(benchmarks or {})
        self.near_distance = near_distance
        self.truth = truth
        self.folder = folder
        if not _NAME.fullmatch(folder) or folder.lower() in TAKEN:
            raise ValueError(
                f"folder: {folder!r:.80} must be one name of letters, digits, '_' and '-', and none of {', '.join(TAKEN)}"
            )

    def run(self, work: Workspace) -> dict[str, Any]:
        """See :class:`Stage`; finished shards that hold the same records are left alone."""
        records, left_out = self._records(work)
        if not records:
            raise ValueError("shards: no pair is left to write; see audit.json for what was left out")
        placed = [(self._split(work, record), record) for record in records]
        placed.sort(key=lambda one: list(self.splits).index(one[0]))
        content = hashlib.sha256(
            b"".join(f"{name} ".encode() + record.to_json() for name, record in placed)
        ).hexdigest()
        root = work.folder / self.folder
        note = work.folder / f"{self.folder}.json"
        noted = _noted(note)
        if (root / FILE_NAME).exists():
            if noted != content:
                raise ValueError(
                    f"{root}: holds shards of other labels; remove {self.folder} and {note.name}, or name another folder"
                )
        else:
            write_whole(note, (json.dumps({"content": content}) + "\n").encode())
            self._write(work, placed)
        text = card(work, placed, left_out, self.audited)
        write_whole(work.folder / "card.md", text.encode())
        return {**Counter(name for name, _ in placed), **{name: count for name, count in left_out.items() if count}}

    def _write(self, work: Workspace, placed: Sequence[tuple[str, Record]]) -> None:
        images = usable_images(work).rows.values()
        licences = sorted({row["licence"] for row in images})
        licence = licences[0] if len(licences) == 1 else f"per image: {'; '.join(licences)}"
        about = {"dataset": f"constructed ({work.rubric.name})", "seed": str(work.seed)}
        root = work.folder / self.folder
        with ShardWriter(
            root, name=work.rubric.name, licence=licence, taxonomy=work.rubric.taxonomy, origin=about
        ) as writer:
            for name, record in placed:
                writer.write(name, record)

    def _records(self, work: Workspace) -> tuple[list[Record], dict[str, int]]:
        """The labelled records, and how many pairs were left out why."""
        pairs = read_pairs(work).usable
        leaking = {key for key, finding in read_grounding(work).items() if finding.leaks} if self.audited else set()
        grounded = {key: pair for key, pair in pairs.items() if pair.item.key not in leaking}
        known = contaminated(
            {pair.item.image["key"]: pair.item.image for pair in grounded.values()},
            [Benchmark(name, path) for name, path in self.benchmarks.items()],
            self.near_distance,
        )
        clean = {key: pair for key, pair in grounded.items() if pair.item.image["key"] not in known}
        votes = votes_of(read_opinions(work))
        trusted = usable_judges(work) if self.audited else None
        judges = [name for name in votes if trusted is None or name in trusted]
        if not judges:
            raise ValueError("shards: every judge has an alarm; mend the judges, or set audited: false")
        records = [pair.record(work, self.truth) for pair in clean.values()]
        labelled = with_votes(records, annotations_of(votes, judges, clean), self.aggregation).records
        labelled = with_votes(
            labelled, [a for a in people_annotations(work) if a.key in clean], self.aggregation
        ).records
        unlabelled = [record for record in labelled if record.votes is None]
        left_out = {
            "leaking_pairs": len(pairs) - len(grounded),
            "contaminated_pairs": len(grounded) - len(clean),
            "unlabelled_pairs": len(unlabelled),
            "judges_left_out": len(votes) - len(judges),
        }
        return [record for record in labelled if record.votes is not None], left_out

    def _split(self, work: Workspace, record: Record) -> str:
        """The split of a record's image group."""
        draw = random.Random(f"{work.seed}/split/{record.group}").random()
        for name, share in self.splits.items():
            if draw < share:
                return name
            draw -= share
        return list(self.splits)[-1]


def _noted(file: Path) -> str | None:
    """Hash of the records that finished shards hold. Raises: ValueError: If the file is a note of something else."""
    if not file.exists():
        return None
    with contextlib.suppress(ValueError, TypeError):
        body = json.loads(read_bounded(file, 10_000))
        if set(body) == {"content"}:
            return str(body["content"])
    raise ValueError(
        f"{file}: is not a note of shards; another stage may need it, so name another folder for the shards"
    )
