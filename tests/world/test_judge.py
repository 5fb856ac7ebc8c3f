"""The judge agrees with the truth stored in every record, and knows nobody else's records."""

import math
from dataclasses import replace

import pytest

from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.world import SimulatedJudge
from safe_rlhf_v.world.judge import judge


@pytest.mark.parametrize("split", ["test", "counterfactual_verdict"])
def test_it_finds_the_stored_truth(world, split):
    records = ShardedSplit(world, split)
    for i in range(len(records)):
        record = records[i]
        for k, response in enumerate(record.responses):
            assert judge(record, response.text) == (record.truth.helpfulness[k], record.truth.safety[k])


def test_foreign_records_are_refused(world):
    record = ShardedSplit(world, "test")[0]
    for foreign in (replace(record, truth=None), replace(record, origin={})):
        with pytest.raises(ValueError, match="is not a record of the embedded world"):
            judge(foreign, "x")


def test_a_reply_that_cannot_be_read_scores_nothing(world):
    records = ShardedSplit(world, "test")
    for seed in range(5):
        score = SimulatedJudge(garbage=1.0, seed=seed).score(records[0], records[0].responses[0].text)
        assert set(score) == {"helpfulness", "level", "harmful"} and all(map(math.isnan, score.values()))
    for i in range(5):
        score = SimulatedJudge(noise=0.0).score(records[i], records[i].responses[0].text)
        assert score["harmful"] == float(score["level"] < 0)
