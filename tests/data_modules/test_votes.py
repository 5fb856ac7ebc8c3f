"""Votes in shards become shares in batches."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tests.data_modules.conftest import TAXONOMY, record

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.data_modules.collate import CollatePreference, safe_share
from safe_rlhf_v.data_modules.source import MASKED, Sample
from safe_rlhf_v.records import PairVotes, Record, Response, Votes
from safe_rlhf_v.records.batches import PreferenceBatch
from safe_rlhf_v.records.votes import level_shares, second_share
from safe_rlhf_v.shards import ShardWriter


def voted(number: int, pair: PairVotes | None, *single: Votes | None) -> Record:
    plain = record("train", number, len(single))
    responses = tuple(dataclasses.replace(x, votes=v) for x, v in zip(plain.responses, single, strict=True))
    return dataclasses.replace(plain, votes=pair, responses=responses)


def collated(*records: Record | None, responses: int = 2) -> PreferenceBatch:
    samples = [MASKED if x is None else Sample(x, (), "shard") for x in records]
    return CollatePreference(TAXONOMY, responses)(samples)


@pytest.mark.parametrize(
    ("choices", "share"), [((0,), 0), ((1, 1), 1), ((0, 1), 0.5), ((-1,), 0.5), ((1, -1, -1, 0, 1), 0.6)]
)
def test_a_tie_is_half_a_vote_for_either(choices: tuple[int, ...], share: float) -> None:
    assert second_share(choices) == pytest.approx(share)
    swapped = [choice if choice < 0 else 1 - choice for choice in choices]
    assert second_share(swapped) == pytest.approx(1 - share)


def test_shares_of_levels() -> None:
    assert level_shares((-3, 3, 3, 0)) == (0.25, 0, 0, 0.25, 0, 0, 0.5)
    assert all(map(math.isnan, (second_share(()), *level_shares(()))))


@pytest.mark.parametrize(
    ("response", "share"),
    [
        (Response("a"), None),
        (Response("a", votes=Votes()), None),
        (Response("a", votes=Votes(is_safe=(True, False, True, True), safety=(-1,))), 0.75),
        (Response("a", votes=Votes(safety=(-1, 0, 3, -3))), 0.5),
        (Response("a", safety=-1, votes=Votes(safety=(-1, 0, -2, -3))), 0.25),
        (Response("a", is_safe=True, votes=Votes(safety=(-1, 0))), None),  # the label is of another source
    ],
)
def test_the_share_of_safe(response: Response, share: float | None) -> None:
    assert safe_share(response) == share


def test_batches_hold_shares(tmp_path: Path) -> None:
    records = [
        voted(0, PairVotes((0, 1, 1, -1), ()), Votes((-3, -3, 1), (True,), (2.0,)), None),
        voted(1, PairVotes((), (1,)), None, Votes((0,), (False, False, True, True))),
        voted(2, None, None, None),
    ]
    with ShardWriter(tmp_path / "data", name="tiny", licence="CC0-1.0", taxonomy=TAXONOMY) as writer:
        for item in records:
            writer.write("validation", item)
    data = PreferenceDataModule(
        str(tmp_path / "data"), batch_size=4, train_split="validation", validation_splits=("validation",)
    )
    batch = next(iter(data.val_dataloader()[0]))
    nan, third = math.nan, 1 / 3
    expected = (
        [0.625, nan, nan, nan],
        [nan, 1.0, nan, nan],
        [[1.0, nan], [nan, 0.5], [nan, nan], [nan, nan]],
        [[[2 * third, 0, 0, 0, third, 0, 0], [nan] * 7], [[nan] * 7, [0, 0, 0, 1, 0, 0, 0]], *[[[nan] * 7] * 2] * 2],
    )
    assert batch.votes is not None
    for shares, values in zip(batch.votes, expected, strict=True):
        torch.testing.assert_close(shares, torch.tensor(values), equal_nan=True)
    assert batch.safety.tolist()[:3] == [[-1, 0]] * 3  # labels are what the record says, whatever the votes


def test_without_votes_there_are_no_shares() -> None:
    assert collated(record("train", 0), None).votes is None
    assert collated(None).votes is None


@pytest.mark.parametrize("responses", [1, 3])
def test_only_two_responses_have_voted_orders(responses: int) -> None:
    pair = PairVotes((responses - 1,), (0, 0))
    batch = collated(voted(0, pair, *[Votes((1,))] * responses), responses=responses)
    assert batch.votes is not None
    assert batch.votes.more_helpful.isnan().all() and batch.votes.safer.isnan().all()
    assert batch.votes.safety.shape == (1, responses, 7) and batch.votes.safety[0, :, 4].tolist() == [1.0] * responses
