"""Tiny shard folders for the tests of the data modules."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from safe_rlhf_v.records import Record, Response, Truth
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardWriter, probe

TAXONOMY = Taxonomy("two", ("fire", "fraud"))
CATEGORIES: tuple[tuple[str, ...], ...] = ((), ("fire",), ("fraud",))

Folder = Callable[..., Path]


def picture(number: int, side: int = 12) -> bytes:
    """A PNG that no other number has."""
    noise = np.random.default_rng(number).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def record(split: str, number: int, responses: int = 2) -> Record:
    """Record ``number`` of a split: every third harmless, all labels known."""
    return Record(
        key=f"{split}-{number:04d}",
        question=f"question {number}",
        images=(probe(picture(number)),),
        responses=tuple(Response(f"response {number}.{k}", k - 1, k > 0, float(k)) for k in range(responses)),
        category=CATEGORIES[number % 3],
        more_helpful=number % responses,
        safer=responses - 1,
        truth=Truth((0.5,) * responses, (1,) * responses, {"object": number % 4}),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """``folder(train=10, validation=3, per_shard=4)`` writes a shard folder and gives its path."""

    def write(*, per_shard: int = 4, responses: int = 2, name: str = "data", **splits: int) -> Path:
        root = tmp_path / name
        with ShardWriter(
            root, name="tiny", licence="CC0-1.0", taxonomy=TAXONOMY, samples_per_shard=per_shard
        ) as writer:
            for split, size in splits.items():
                for number in range(size):
                    writer.write(split, record(split, number, responses))
        return root

    return write


@pytest.fixture
def damage() -> Callable[[Path, str, int], None]:
    """``damage(root, split, number)`` breaks one stored picture."""
    return break_picture


def break_picture(root: Path, split: str, number: int) -> None:
    """Flip a byte inside a stored picture without changing the shard's size."""
    data = picture(number)
    for shard in sorted(root.glob(f"{split}-*.tar")):
        body = bytearray(shard.read_bytes())
        if (at := body.find(data)) >= 0:
            body[at + len(data) // 2] ^= 0xFF
            shard.write_bytes(bytes(body))
            return
    raise AssertionError(f"picture {number} is not stored")
