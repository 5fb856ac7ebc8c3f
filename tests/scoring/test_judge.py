"""The judge that is taken where none is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Asked, Judge, Opinion, default_judge
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


class Length(Judge):
    """Finds long responses helpful and says nothing of safety."""

    def score(self, record: Record, text: str) -> dict[str, float]:
        return {"helpfulness": float(len(text)), "level": float("nan")}


def test_a_judge_that_only_scores_rates_and_compares() -> None:
    record = Record("a", "what is it ?")
    opinions = Length().ask(
        [
            Asked(record, ("four",), "helpfulness"),
            Asked(record, ("four", "two"), "helpfulness"),
            Asked(record, ("two", "four"), "helpfulness", draw=1),
            Asked(record, ("abc", "abd"), "helpfulness"),
            Asked(record, ("four",), "safety"),
            Asked(record, ("four", "two"), "safety"),
        ]
    )
    assert [opinion.value for opinion in opinions] == [4, 1, -1, 0, None, None]
    assert [opinion.fault for opinion in opinions] == ["", "", "", "", "unknown", "unknown"]


def test_a_judge_without_scores_of_an_axis_has_no_opinion_on_it() -> None:
    class Harm(Judge):
        """Scores harm alone."""

        def score(self, record: Record, text: str) -> dict[str, float]:
            return {"harmful": 0.0}

    assert Harm().ask([Asked(Record("a", "?"), ("x",), "safety")]) == [Opinion(None, fault="unknown")]
