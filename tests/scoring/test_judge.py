"""The judge that is taken where none is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from safe_rlhf_v.scoring.judge import Judge, default_judge
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.world import WorldJudge


def test_the_worlds_records_are_judged_by_their_truth_and_others_by_nobody(world: Path) -> None:
    record = ShardedSplit(world, "test")[0]
    assert isinstance(default_judge(record), WorldJudge)
    assert default_judge(replace(record, truth=None)) is None
    assert default_judge(replace(record, origin={})) is None


def test_a_judge_scores() -> None:
    class Silent(Judge):
        """Says nothing."""

    with pytest.raises(TypeError, match="score"):
        Silent()  # type: ignore[abstract]
