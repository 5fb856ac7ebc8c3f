"""The judge agrees with the truth stored in every record, and knows nobody else's records."""

from dataclasses import replace

import pytest

from safe_rlhf_v.shards import ShardedSplit
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
