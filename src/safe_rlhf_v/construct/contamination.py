"""Contamination: images of named benchmarks that must not stand in training data."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.ingest.identify import identity
from safe_rlhf_v.ingest.likeness import any_alike
from safe_rlhf_v.records.user_files import read_bounded
from safe_rlhf_v.shards import Manifest, ShardedSplit

_MAX_BYTES = 1_000_000_000


class Benchmark(NamedTuple):
    """A benchmark whose images are known.

    Attributes:
        name: Its name.
        path: A shard folder, or a text file with one hash in a line.
    """

    name: str
    path: str

    def hashes(self) -> tuple[set[str], list[str]]:
        """Exact hashes (of files and of pixels) and perceptual ones.

        Raises:
            ValueError: If there is no such benchmark, a line is no hash, or a picture cannot be read.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            return self._listed(folder)
        exact: set[str] = set()
        looks: list[str] = []
        for split in Manifest.load(folder).splits:
            records = ShardedSplit(folder, split)
            for image in (image for row in range(len(records)) for image in records[row].images):
                if image.id not in exact:
                    known = identity(image.data)
                    if known.problem:
                        raise ValueError(f"benchmark {self.name}: {folder}, image {image.sha256}: {known.problem}")
                    looks.append(known.likeness)
                exact |= {image.id, image.sha256}
        return exact, looks

    def _listed(self, file: Path) -> tuple[set[str], list[str]]:
        exact: set[str] = set()
        looks: list[str] = []
        text = read_bounded(file, _MAX_BYTES).decode("utf-8-sig", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            word = line.strip().lower()
            if re.fullmatch(r"[0-9a-f]{64}", word):
                exact.add(word)
            elif re.fullmatch(r"[0-9a-f]{16}", word):
                looks.append(word)
            elif word:
                raise ValueError(
                    f"benchmark {self.name}: {file}, line {number}: {word!r:.40} is no hash of 16 or 64 digits"
                )
        if not exact and not looks:
            raise ValueError(f"benchmark {self.name}: {file} names no hash")
        return exact, looks


def contaminated(images: Mapping[str, Row], benchmarks: Sequence[Benchmark], near_distance: int) -> dict[str, str]:
    """The benchmark by key of each image that stands in one.

    Args:
        images: Rows of collected images by key.
        benchmarks: The benchmarks.
        near_distance: Bits by which perceptual hashes of one picture differ at most; -1 compares exactly.
    """
    known: dict[str, str] = {}
    for benchmark in benchmarks:
        exact, looks = benchmark.hashes()
        hashes = np.array([int(word, 16) for word in looks], dtype=np.uint64)
        for key, row in images.items():
            same = row["id"] in exact or row["sha256"] in exact
            if same or (near_distance >= 0 and any_alike(hashes, np.uint64(int(row["phash"], 16)), near_distance)):
                known.setdefault(key, benchmark.name)
    return known
