"""The plan, alone: pure functions of numbers."""

from itertools import product

import pytest

from safe_rlhf_v.data_modules.plan import PADDING, Plan, nested_subset

GRID = list(product((1, 2, 3, 4), (1, 4, 5), (20, 37, 60)))


def plans(samples: int, batch: int, world: int, seed: int | None) -> list[Plan]:
    return [Plan(samples, batch, world, rank, seed) for rank in range(world)]


@pytest.mark.parametrize(("world", "batch", "samples"), GRID)
def test_training_repeats_nothing_and_drops_less_than_a_global_batch(world: int, batch: int, samples: int) -> None:
    for epoch in (0, 1):
        ranks = [plan.batches(epoch) for plan in plans(samples, batch, world, seed=3)]
        assert (
            {len(batches) for batches in ranks}
            == {samples // (batch * world)}
            == {len(Plan(samples, batch, world, 0, 3))}
        )
        seen = [row for batches in ranks for rows in batches for row in rows]
        assert len(seen) == len(set(seen)) > samples - batch * world
        assert set(seen) <= set(range(samples))


@pytest.mark.parametrize(("world", "batch", "samples"), [*GRID, (4, 5, 1), (3, 4, 0)])
def test_evaluation_is_exactly_once_with_equal_steps(world: int, batch: int, samples: int) -> None:
    ranks = [plan.batches(0) for plan in plans(samples, batch, world, seed=None)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(rows) == batch for batches in ranks for rows in batches)
    real = [row for batches in ranks for rows in batches for row in rows if row != PADDING]
    assert sorted(real) == list(range(samples))
    padding = len(ranks[0]) * batch * world - samples
    assert 0 <= padding < batch * world


def test_global_batches_do_not_depend_on_the_number_of_ranks() -> None:
    def together(world: int) -> list[list[int]]:
        ranks = [plan.batches(2) for plan in plans(37, 8 // world, world, seed=5)]
        return [sum(step, []) for step in zip(*ranks, strict=True)]

    assert together(1) == together(2) == together(4)
    assert len(together(1)) == 4


def test_order_depends_on_seed_and_epoch_and_is_stable() -> None:
    assert Plan(10, 1, seed=0).order(0) == [1, 0, 2, 4, 9, 3, 8, 6, 7, 5]  # equal on every machine and version
    orders = {tuple(Plan(30, 1, seed=seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6
    assert Plan(30, 5, seed=0).order(1) == Plan(30, 2, 3, 1, seed=0).order(1)


def test_a_start_is_the_rest_of_the_epoch() -> None:
    plan = Plan(37, 4, 2, 1, seed=1)
    for start in range(len(plan) + 1):
        assert plan.batches(1, start) == plan.batches(1)[start:]


def test_a_split_smaller_than_a_global_batch_is_refused_with_its_mend() -> None:
    with pytest.raises(ValueError, match=r"7 training samples .* global batch of 8 \(2 ranks x 4\): .*batch_size=3$"):
        Plan(7, 4, 2, 0, seed=0)
    Plan(7, 3, 2, 0, seed=0)
    with pytest.raises(ValueError, match=r"1 training samples .* \(2 ranks x 4\): give more data, or fewer ranks"):
        Plan(1, 4, 2, 0, seed=0)
    assert len(Plan(7, 4, 2, 0)) == 1  # evaluation pads instead
    match = r"of split 'demo' .*: lower demonstration_batch_size, as --data\.init_args\.demonstration_batch_size=3$"
    with pytest.raises(ValueError, match=match):
        Plan(3, 8, seed=0, split="demo", option="demonstration_batch_size")


@pytest.mark.parametrize(("batch", "world", "rank"), [(0, 1, 0), (1, 2, 2), (1, 0, 0), (1, 2, -1)])
def test_senseless_numbers_are_refused(batch: int, world: int, rank: int) -> None:
    with pytest.raises(ValueError, match="outside its range"):
        Plan(10, batch, world, rank)


def test_subsets_are_nested_and_keep_the_stored_order() -> None:
    rows = list(range(0, 4000, 2))
    small, large = nested_subset(rows, 500, seed=0), nested_subset(rows, 1500, seed=0)
    assert len(small) == 500
    assert len(large) == 1500
    assert set(small) < set(large) < set(rows)
    assert small == sorted(small)
    assert nested_subset(rows, 5000, seed=0) == nested_subset(rows, None, seed=0) == rows
    assert nested_subset(rows, 500, seed=1) != small
    assert 1500 < sum(small) / len(small) < 2500  # spread over the split, not its beginning: expected 2000
