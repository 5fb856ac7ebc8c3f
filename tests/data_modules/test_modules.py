"""The two data modules without a trainer: what they train on, what they refuse, what their position means."""

import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule, SupervisedDataModule
from safe_rlhf_v.data_modules.plan import Position
from safe_rlhf_v.data_modules.source import ImageOptions
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.shards.images import decode

Folder = Callable[..., Path]


def keys(loader: Any) -> list[str]:
    return [key for batch in loader for key, valid in zip(batch.keys, batch.valid, strict=True) if valid]


def on_ranks(data: Any, world: int, rank: int = 0, step: int = 1, fn: str = "fit") -> Any:
    data.trainer = SimpleNamespace(
        world_size=world,
        global_rank=rank,
        global_step=step,
        state=SimpleNamespace(fn=fn),
        lightning_module=None,
        enable_validation=False,
    )
    return data


def test_preference_batch_has_every_label_and_its_type(folder: Folder) -> None:
    root = folder(train=4, validation=3)
    batch = next(
        iter(PreferenceDataModule(str(root), batch_size=4, validation_splits=("validation",)).val_dataloader()[0])
    )
    assert batch.keys == ("validation-0000", "validation-0001", "validation-0002", "")
    assert batch.valid.tolist() == [True, True, True, False]
    assert batch.responses[1] == ("response 1.0", "response 1.1")
    assert batch.prompts.questions == ("question 0", "question 1", "question 2", "")
    assert [len(row) for row in batch.prompts.images] == [1, 1, 1, 0] == [len(row) for row in batch.prompts.image_ids]
    assert batch.more_helpful.tolist() == [0, 1, 0, -1]
    assert batch.safer.tolist() == [1, 1, 1, -1]
    assert batch.safety.tolist() == [[-1, 0]] * 3 + [[UNKNOWN_LEVEL] * 2]
    assert batch.is_safe.tolist() == [[0, 1]] * 3 + [[-1, -1]]
    assert batch.category.tolist() == [[0, 0], [1, 0], [0, 1], [-1, -1]]
    assert batch.true_safety.tolist() == [[1, 1]] * 3 + [[UNKNOWN_LEVEL] * 2]
    assert batch.true_helpfulness[:3].tolist() == [[0.5, 0.5]] * 3
    assert all(map(math.isnan, batch.true_helpfulness[3].tolist()))
    assert batch.rules == (("", ""),) * 4
    full = next(iter(PreferenceDataModule(str(root), batch_size=3).val_dataloader()[0]))  # no masked row, no unknown
    for found in (batch, full):
        whole = (found.more_helpful, found.safer, found.safety, found.is_safe, found.category, found.true_safety)
        assert {t.dtype for t in whole} == {torch.int64}
        assert {found.valid.dtype, found.safety_tie.dtype} == {torch.bool}
        assert found.true_helpfulness.dtype == torch.float32


def test_supervised_takes_the_only_or_the_more_helpful_response(folder: Folder) -> None:
    for responses, expected in ((1, [0, 0, 0]), (2, [0, 1, 0])):
        root = folder(train=3, responses=responses, name=f"k{responses}")
        data = SupervisedDataModule(str(root), validation_splits=("train",), batch_size=4)
        batch = next(iter(data.val_dataloader()[0]))
        assert batch.responses == (*(f"response {i}.{k}" for i, k in enumerate(expected)), "")
        assert batch.attributes["object"].tolist() == [0, 1, 2, -1]
        assert batch.valid.tolist() == [True, True, True, False]


def test_loaders_stand_in_the_order_of_the_names(folder: Folder) -> None:
    data = PreferenceDataModule(
        str(folder(train=4, a=2, b=3)),
        validation_splits=("b", "a"),
        test_splits=("a",),
        batch_size=4,
        eval_batch_size=1,
    )
    assert data.evaluation_splits("validate") == ("b", "a")
    assert [len(loader) for loader in data.val_dataloader()] == [3, 2]
    assert (
        [len(loader) for loader in data.test_dataloader()]
        == [2]
        == [len(loader) for loader in data.predict_dataloader()]
    )
    assert data.taxonomy.categories == ("fire", "fraud")
    assert len(data.train_dataloader()) == 1


def test_a_folder_of_test_splits_alone_will_do(folder: Folder) -> None:
    data = PreferenceDataModule(str(folder(test=5)), batch_size=2)
    assert keys(data.test_dataloader()[0]) == [f"test-{i:04d}" for i in range(5)]
    assert data.taxonomy.name == "two"


def test_categories_filter_training_only(folder: Folder) -> None:
    root = str(folder(train=9, validation=4))
    data = PreferenceDataModule(root, batch_size=1, categories=("fraud",))
    assert sorted(keys(data.train_dataloader())) == ["train-0002", "train-0005", "train-0008"]
    assert len(keys(data.val_dataloader()[0])) == 4
    with pytest.raises(ValueError, match="unknown category 'arson'"):
        PreferenceDataModule(root, categories=("arson",)).train_dataloader()
    with pytest.raises(ValueError, match="no record of the categories"):
        PreferenceDataModule(root, train_split="validation", categories=()).train_dataloader()


def test_smaller_training_sets_are_part_of_larger_ones(folder: Folder) -> None:
    root = str(folder(train=30, per_shard=8))
    sets = [
        set(keys(PreferenceDataModule(root, batch_size=1, max_samples=n).train_dataloader())) for n in (5, 15, None)
    ]
    assert [len(found) for found in sets] == [5, 15, 30]
    assert sets[0] < sets[1] < sets[2]
    with pytest.raises(ValueError, match="max_samples is 0"):
        PreferenceDataModule(root, max_samples=0)


def test_images_are_scaled_and_capped(folder: Folder) -> None:
    root = str(folder(train=2))
    data = PreferenceDataModule(root, validation_splits=("train",), batch_size=2, images=ImageOptions(size=7))
    assert next(iter(data.val_dataloader()[0])).prompts.images[0][0].shape == (6, 7, 3)
    data = PreferenceDataModule(root, validation_splits=("train",), images=ImageOptions(max_pixels=100))
    with pytest.raises(ValueError, match=r"train-0000.*images\[0\].*12 pixels, the limit is 100"):
        next(iter(data.val_dataloader()[0]))


@pytest.mark.parametrize(("cache", "reads"), [(0, 24), (5, 19), (100, 12)])
def test_cached_records_are_read_once_and_stay_the_same(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, cache: int, reads: int
) -> None:
    read: list[int] = []
    open_record = ShardedSplit.__getitem__
    monkeypatch.setattr(ShardedSplit, "__getitem__", lambda split, row: read.append(row) or open_record(split, row))
    root = str(folder(train=12))
    loader = PreferenceDataModule(root, batch_size=4, images=ImageOptions(cache=cache)).train_dataloader()
    read.clear()
    batches = [batch for _ in range(2) for batch in loader]
    assert len(read) == reads
    plain = PreferenceDataModule(root, batch_size=4).train_dataloader()
    for batch, expected in zip(batches, [batch for _ in range(2) for batch in plain], strict=True):
        assert batch.keys == expected.keys
        assert batch.responses == expected.responses
        for row, other in zip(batch.prompts.images, expected.prompts.images, strict=True):
            assert all(map(torch.equal, row, other))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", [PreferenceDataModule, SupervisedDataModule])
def test_a_cache_lasts_over_epochs_with_workers_too(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, kind: Any, workers: int
) -> None:
    """Each worker fills its own: with two, every record is decoded twice at most, however many epochs there are."""
    decoded = multiprocessing.Value("i", 0)

    def counted(*args: Any, **options: Any) -> Any:
        with decoded.get_lock():
            decoded.value += 1
        return decode(*args, **options)

    monkeypatch.setattr("safe_rlhf_v.data_modules.source.decode", counted)
    data = kind(str(folder(train=12)), batch_size=4, num_workers=workers, images=ImageOptions(cache=100))
    loader = data.train_dataloader()
    epochs = [[batch for batch in loader] for _ in range(12)]
    assert sorted(key for batch in epochs[-1] for key in batch.keys) == sorted(k for b in epochs[0] for k in b.keys)
    pictures = sum(len(row) for batch in epochs[0] for row in batch.prompts.images)
    assert pictures <= decoded.value <= pictures * max(1, workers)


def test_ranks_share_an_epoch(folder: Folder) -> None:
    root = str(folder(train=12, validation=5))
    ranks = [on_ranks(PreferenceDataModule(root, batch_size=3), 2, rank) for rank in (0, 1)]
    seen = [keys(data.train_dataloader()) for data in ranks]
    assert not set(seen[0]) & set(seen[1])
    assert len(seen[0] + seen[1]) == 12
    assert sorted(sum((keys(data.val_dataloader()[0]) for data in ranks), [])) == [
        f"validation-{i:04d}" for i in range(5)
    ]


def test_state_goes_on_in_another_object(folder: Folder) -> None:
    root = str(folder(train=12))
    first = PreferenceDataModule(root, batch_size=2)
    everything = keys(first.train_dataloader()) + keys(first.train_dataloader())  # a rebuilt loader goes on as well
    assert len(set(everything[:12])) == len(set(everything[12:])) == 12
    assert everything[:12] != everything[12:]
    half = PreferenceDataModule(root, batch_size=2)
    batches = iter(half.train_dataloader())
    for _ in range(4):
        next(batches)
    state = half.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 4)
    resumed = PreferenceDataModule(root, batch_size=2, num_workers=1)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # saved again before training starts
    assert keys(resumed.train_dataloader()) == everything[8:20]
    late = PreferenceDataModule(root, batch_size=1)  # two ranks, same global batch; restored after the loader was made
    loader = on_ranks(late, 2).train_dataloader()
    late.load_state_dict(state)
    assert next(iter(loader)).keys == (everything[8],)


def test_a_fresh_run_starts_at_the_beginning_and_a_continued_one_goes_on(folder: Folder) -> None:
    data = PreferenceDataModule(str(folder(train=4)), batch_size=1)
    next(iter(data.train_dataloader()))
    on_ranks(data, 1, step=1).setup("fit")
    assert data.train_dataloader().position == Position(0, 1)
    on_ranks(data, 1, step=0).setup("fit")
    assert data.train_dataloader().position == Position(0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed = 0, now it is 1"),
        ({"max_samples": 7}, "max_samples = None, now it is 7"),
        ({"categories": ("fire",)}, r"categories = None, now it is \['fire'\]"),
        ({"batch_size": 2}, r"global_batch = 4, now it is 2: set batch_size to 4 on 1 rank"),
        ({"train_split": "validation"}, "train_split = 'train', now it is 'validation'"),
    ],
)
def test_a_position_that_would_mean_another_sample_is_refused(
    folder: Folder, change: dict[str, Any], message: str
) -> None:
    root = str(folder(train=8, validation=8))
    state = PreferenceDataModule(root, batch_size=4).state_dict()
    with pytest.raises(ValueError, match=message):
        PreferenceDataModule(root, **{"batch_size": 4, **change}).load_state_dict(state)


def test_refusals_that_need_more_than_an_option(folder: Folder) -> None:
    root = str(folder(train=8))
    state = PreferenceDataModule(root, batch_size=4).state_dict()
    with pytest.raises(ValueError, match="set batch_size to 2 on 2 rank"):
        on_ranks(PreferenceDataModule(root, batch_size=4), 2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"global_batch = 4, now it is 12; resume"):  # 4 cannot be shared by 3 ranks
        on_ranks(PreferenceDataModule(root, batch_size=4), 3).load_state_dict(state)
    on_ranks(PreferenceDataModule(root, batch_size=2), 2).load_state_dict(state)  # equal global batch
    with pytest.raises(ValueError, match="manifest = "):
        PreferenceDataModule(str(folder(train=9, name="other")), batch_size=4).load_state_dict(state)
    with pytest.raises(ValueError, match="version 0"):
        PreferenceDataModule(root, batch_size=4).load_state_dict({**state, "version": 0})
    on_ranks(PreferenceDataModule(root, batch_size=1), 1, fn="test").load_state_dict(
        state
    )  # evaluation continues nothing
