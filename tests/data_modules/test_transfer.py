"""Pictures between processes: the same bytes, no more memory than needed, and no block used again while somebody reads it."""

import gc
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from safe_rlhf_v.data_modules import transfer
from safe_rlhf_v.data_modules.collate import CollatePrompts
from safe_rlhf_v.data_modules.loader import PlannedLoader
from safe_rlhf_v.data_modules.plan import Plan
from safe_rlhf_v.data_modules.source import ImageOptions, Source
from safe_rlhf_v.data_modules.transfer import Arrived, Block, Mailbox, Packed, SharedBlocks, private_block
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardedSplit, ShardWriter, decode, probe

NONE = Taxonomy("none", ())
SIZES = [(8, 8), (160, 120), (1, 1), (33, 7), (96, 96), (256, 64)]


def encoded(number: int, format: str = "JPEG") -> bytes:
    width, height = SIZES[number % len(SIZES)]
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(noise).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with none, one or three pictures of very different sizes."""
    root = tmp_path_factory.mktemp("mixed") / "data"
    with ShardWriter(root, name="mixed", licence="CC0-1.0", taxonomy=NONE) as writer:
        for number in range(24):
            images = tuple(probe(encoded(number + i, "PNG" if i else "JPEG")) for i in range((1, 0, 3, 1)[number % 4]))
            writer.write("train", Record(f"r{number:03d}", f"question {number}", images))
    return root


def loader(root: Path, **options: Any) -> PlannedLoader:
    images = ImageOptions(size=options.pop("size", None), cache=options.pop("cache", 0))
    split = ShardedSplit(root, "train")
    source = Source(split, range(len(split)), CollatePrompts(NONE), images)
    return PlannedLoader(source, Plan(len(split), 5, seed=options.pop("seed", 0)), **options)


def pixels(batches: Any) -> list[bytes]:
    return [
        image.numpy().tobytes() + str(image.shape).encode()
        for b in batches
        for row in b.prompts.images
        for image in row
    ]


@pytest.mark.parametrize("size", [None, 40])
def test_workers_threads_and_the_cache_give_the_same_pixels(
    mixed: Path, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "safe_rlhf_v.data_modules.source.THREADED_BYTES", 0
    )  # small pictures are decoded by threads, too
    split = ShardedSplit(mixed, "train")
    order = [row for rows in Plan(24, 5, seed=0).batches(0) for row in rows]
    alone = [decode(image.data, size=size) for row in order for image in split[row].images]
    expected = [image.tobytes() + f"torch.Size({list(image.shape)})".encode() for image in alone]
    for options in ({"threads": 1}, {"threads": 3}, {"workers": 2}, {"workers": 1, "cache": 7}, {"cache": 24}):
        reading = loader(mixed, size=size, **options)
        assert pixels(reading) == expected
        first = pixels(reading)
        reading.position = type(reading.position)(0, 0)
        assert pixels(reading) == expected != first  # the second pass of this loader is another epoch


def test_batches_that_are_held_are_not_written_again(mixed: Path) -> None:
    """More batches than a worker has blocks, all of them held; then all again, when they were let go."""
    plain, shared = loader(mixed), loader(mixed, workers=1, persistent=True)
    for _ in range(3):
        held = list(shared)
        assert pixels(held) == pixels(plain)


def test_one_picture_of_a_batch_is_enough_to_hold_it(mixed: Path) -> None:
    reading = loader(mixed, workers=1, persistent=True, seed=None)
    first = next(iter(reading)).prompts.images[0][0]
    before = first.clone()
    for _ in range(3):
        list(reading)
    assert torch.equal(first, before)


def test_a_batch_belongs_to_its_reader(mixed: Path) -> None:
    """What a reader paints into its batch is in no later one, also from a cache."""
    for options in ({}, {"cache": 24}, {"workers": 1, "persistent": True, "cache": 24}):
        reading = loader(mixed, seed=None, **options)
        before = pixels(reading)
        for batch in reading:
            for row in batch.prompts.images:
                for image in row:
                    image.fill_(7)
        assert pixels(reading) == before


MAILBOX = Mailbox()


def sent(blocks: SharedBlocks, value: int, shape: tuple[int, int, int] = (4, 5, 3)) -> Arrived:
    block = blocks(int(np.prod(shape)))
    picture = block.take(shape)
    assert picture is not None
    picture[...] = value
    batch = {"image": (torch.from_numpy(picture),), "labels": torch.tensor([value]), "text": "x"}
    rebuild, parts = Packed(batch, block, 0, MAILBOX).__reduce__()
    arrived = rebuild(*parts)
    assert isinstance(arrived, Arrived)
    return arrived


def test_a_block_is_used_again_when_its_last_picture_is_let_go() -> None:
    blocks = SharedBlocks()
    first = sent(blocks, 1)
    batch = first.batch()
    (picture,) = batch["image"]
    assert batch["labels"].tolist() == [1] and batch["text"] == "x" and (picture == 1).all()
    del first, batch
    second = sent(blocks, 2)  # the picture is still held
    assert second.origin == (0, 1)
    assert (picture == 1).all()
    corner = picture[:1, :1]
    del picture
    third = sent(blocks, 3)
    assert third.origin == (0, 2)  # so is a part of it
    del corner
    gc.collect()
    assert sent(blocks, 4).origin == (0, 0)


def test_a_batch_that_nobody_unpacks_frees_its_block() -> None:
    blocks = SharedBlocks()
    arrived = sent(blocks, 1)
    del arrived
    assert sent(blocks, 2).origin == (0, 0)


def test_a_block_is_sent_once() -> None:
    """Handing it over takes longer than decoding a picture."""
    blocks = SharedBlocks()
    block = blocks(60)
    assert Packed((), block, 5, MAILBOX).__reduce__()[1][2] is block.shared
    assert Packed((), block, 5, MAILBOX).__reduce__()[1][2] is None
    larger = transfer.SharedBlock(90, block.number)
    assert Packed((), larger, 5, MAILBOX).__reduce__()[1][2] is larger.shared


@pytest.mark.parametrize("persistent", [False, True])
def test_passes_that_are_broken_off_or_interleaved_read_the_same(mixed: Path, persistent: bool) -> None:
    """What was on its way when a pass was left is received and dropped, and its blocks serve the next pass."""
    expected = pixels(loader(mixed, seed=None))
    reading = loader(mixed, seed=None, workers=2, persistent=persistent)
    for batches in (1, 3, 2):
        broken_off = iter(reading)
        for _ in range(batches):
            next(broken_off)
        assert pixels(reading) == expected
        broken_off.close()
    if not persistent:  # persistent workers serve one pass at a time, by torch's own rule
        one, other = iter(reading), iter(reading)
        assert [pixels([a]) == pixels([b]) for a, b in zip(one, other, strict=True)] == [True] * len(reading)


def test_the_blocks_of_a_loader_are_given_back_with_it(mixed: Path) -> None:
    for persistent in (False, True):
        open_before = len(Mailbox._open)
        reading = loader(mixed, workers=1, persistent=persistent)
        for _ in range(4):
            assert pixels(reading)
        del reading
        gc.collect()
        assert len(Mailbox._open) == open_before


def test_a_block_that_is_too_small_is_replaced_when_there_are_enough() -> None:
    blocks = SharedBlocks()
    held = [sent(blocks, i) for i in range(transfer.BLOCKS)]
    assert sent(blocks, 9).origin == (0, -1)  # all are in use: memory of its own
    del held[3:]
    larger = sent(blocks, 7, (40, 50, 3))
    assert larger.origin == (0, 3)
    assert (larger.batch()["image"][0] == 7).all()


def test_sizes_that_records_state_are_not_believed(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong sizes cost speed and nothing else; absurd ones reserve nothing."""
    from dataclasses import replace

    split = ShardedSplit(mixed, "train")
    record = split[0]
    expected = decode(record.images[0].data)
    reserved: list[int] = []

    def allocate(size: int) -> Block:
        reserved.append(size)
        return private_block(size)

    for width, height in ((1, 1), (8, 9), (0, 0), (-5, 7), (10**9, 10**9), (4999, 5000)):
        forged = replace(record, images=(replace(record.images[0], width=width, height=height),))
        monkeypatch.setattr(ShardedSplit, "__getitem__", lambda self, row, forged=forged: forged)
        batch, _, _ = Source(split, range(3), CollatePrompts(NONE)).load([0, 1], allocate=allocate)
        assert all(np.array_equal(row[0].numpy(), expected) for row in batch.prompts.images)
    assert max(reserved) <= 2 * 3 * 25_000_000
    monkeypatch.setattr(transfer, "MAX_BYTES", 100)
    batch, _, _ = Source(split, range(3), CollatePrompts(NONE)).load([0, 1])
    assert all(np.array_equal(row[0].numpy(), expected) for row in batch.prompts.images)


@pytest.mark.parametrize("options", [{"threads": 3}, {"workers": 1}])
def test_a_broken_picture_is_named_wherever_it_is_decoded(
    folder: Callable[..., Path], options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safe_rlhf_v.shards import ShardError

    monkeypatch.setattr("safe_rlhf_v.data_modules.source.THREADED_BYTES", 0)
    root = folder(train=6)
    split = ShardedSplit(root, "train")
    source = Source(split, range(6), CollatePrompts(split.manifest.taxonomy), ImageOptions(max_pixels=100))
    with pytest.raises(
        ShardError, match=r"train-000000\.tar: record 'train-0000', field 'images\[0\]': 14 x 12 pixels"
    ):
        list(PlannedLoader(source, Plan(6, 3), **options))


def test_threads_leave_the_filters_of_warnings_alone(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    monkeypatch.setattr("safe_rlhf_v.data_modules.source.THREADED_BYTES", 0)
    before = list(warnings.filters)
    list(loader(mixed, threads=4))
    assert warnings.filters == before
