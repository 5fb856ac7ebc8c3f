"""The loader over real shard folders: workers, start methods, persistence and position."""

from collections import Counter
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest

from safe_rlhf_v.data_modules.collate import CollatePreference
from safe_rlhf_v.data_modules.loader import PlannedLoader
from safe_rlhf_v.data_modules.plan import Plan, Position
from safe_rlhf_v.data_modules.source import Source
from safe_rlhf_v.shards import ShardedSplit

Make = Callable[..., PlannedLoader]
Folder = Callable[..., Path]


@pytest.fixture
def make(folder: Folder) -> Make:
    """``make(samples=11, batch=4, ...)``: a loader over three to four uneven shards."""
    roots: dict[int, Path] = {}

    def build(
        samples: int = 11, batch: int = 4, world: int = 1, rank: int = 0, seed: int | None = 0, **options: Any
    ) -> Any:
        if samples not in roots:
            roots[samples] = folder(train=samples, per_shard=4, name=f"data-{samples}")
        split = ShardedSplit(roots[samples], "train")
        source = Source(split, range(samples), CollatePreference(split.manifest.taxonomy, 2))
        return PlannedLoader(source, Plan(samples, batch, world, rank, seed), **options)

    return build


def keys(batches: Any) -> list[tuple[str, ...]]:
    return [batch.keys for batch in batches]


@pytest.mark.parametrize(("world", "batch"), list(product((1, 2, 3, 4), (1, 4, 5))))
def test_evaluation_gives_each_sample_once_and_masks_the_rest(make: Make, world: int, batch: int) -> None:
    ranks = [list(make(14, batch, world, rank, None)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    rows = [(bool(v), k) for batches in ranks for b in batches for v, k in zip(b.valid, b.keys, strict=True)]
    assert sorted(key for valid, key in rows if valid) == [f"train-{i:04d}" for i in range(14)]
    assert {key for valid, key in rows if not valid} <= {""}
    assert all(len(b.keys) == batch for batches in ranks for b in batches)


@pytest.mark.parametrize(("world", "batch"), [(1, 5), (3, 1), (4, 4)])
@pytest.mark.parametrize("seed", [None, 0])
def test_workers_change_nothing(make: Make, world: int, batch: int, seed: int | None) -> None:
    for rank in {0, world - 1}:
        plain = keys(make(18, batch, world, rank, seed))
        assert plain == keys(make(18, batch, world, rank, seed, workers=2))
        assert len(plain) == len(make(18, batch, world, rank, seed))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_start_methods_change_nothing(make: Make, method: str) -> None:
    assert keys(make(workers=1, start_method=method)) == keys(make())


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_see_new_epochs_even_with_persistent_workers(make: Make, workers: int) -> None:
    loader = make(workers=workers, persistent=True)
    passes = [keys(loader) for _ in range(3)]
    assert passes == [
        [tuple(f"train-{i:04d}" for i in rows) for rows in loader.plan.batches(epoch)] for epoch in range(3)
    ]
    assert passes[0] != passes[1] != passes[2]


def test_an_abandoned_pass_leaves_no_batch_behind(make: Make) -> None:
    """Persistent workers hold batches read ahead; the next pass must not give them out."""
    plain, ahead = make(samples=18), make(samples=18, workers=2, persistent=True)
    for _ in range(5):
        assert keys(islice(iter(plain), 2)) == keys(islice(iter(ahead), 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_batch_with_another_number_of_workers(make: Make, workers: int) -> None:
    loader, stream, positions = make(14, 3), [], []
    for _ in range(3):
        for batch in loader:
            stream.append(batch.keys)
            positions.append(loader.position)  # as saved while the batch is held
    assert len(stream) == 12
    assert positions[3] == Position(0, 4)
    points = range(12) if workers == 0 else (3, 4)
    for point in points:
        resumed = make(14, 3, workers=workers)
        resumed.position = positions[point]
        rest = keys(resumed) + keys(resumed)
        assert rest[: 12 - point - 1] == stream[point + 1 :][: len(rest)]


def test_limited_passes_walk_through_all_data(make: Make) -> None:
    loader = make(samples=18, batch=1)
    seen = Counter(key for _ in range(6) for batch in islice(iter(loader), 3) for key in batch.keys)
    assert set(seen.values()) == {1}
    assert len(seen) == 18


def test_a_pass_across_an_epoch_border_is_whole(make: Make) -> None:
    loader = make(samples=12, batch=4)
    loader.position = Position(0, 2)
    numbers = [[f"train-{i:04d}" for i in rows] for rows in loader.plan.batches(0, 2) + loader.plan.batches(1)[:2]]
    assert [list(rows) for rows in keys(loader)] == numbers
    assert loader.position == Position(1, 2)


def test_the_global_random_state_is_left_alone(make: Make) -> None:
    import torch

    before = torch.get_rng_state()
    list(make())
    list(make(workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_types_survive_the_inner_loader(make: Make) -> None:
    for workers in (0, 1):
        batch = next(iter(make(workers=workers)))
        assert isinstance(batch.keys, tuple)
        assert isinstance(batch.prompts.images[0], tuple)
        assert isinstance(batch.responses[0], tuple)
        assert batch.prompts.images[0][0].shape == (12, 14, 3)


def test_nothing_makes_lightning_take_it_for_a_dataloader(make: Make) -> None:
    assert not {"sampler", "batch_sampler", "dataset", "worker_init_fn"} & set(dir(make()))
