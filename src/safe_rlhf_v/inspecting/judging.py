"""Judges of ours that score samples of inspect."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safe_rlhf_v.evaluation.prompts import PromptSet
from safe_rlhf_v.inspecting.gathering import Gathered
from safe_rlhf_v.inspecting.messages import record_of
from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge, default_judge


@lru_cache(4)
def prompts_of(data: str, split: str) -> PromptSet:
    """The prompts of a split; task and scorers of one process share them.

    Args:
        data: Shard folder.
        split: Name of the split.

    Raises:
        ShardError: If the split is missing or damaged.
    """
    return PromptSet(Path(data), (split,))


class Judged:
    """Scores of one judge for samples of inspect; samples that wait are scored as one batch."""

    def __init__(self, judge: Judge, data: str | None = None, split: str = "test", batch_size: int = 16) -> None:
        """Choose what is judged.

        Args:
            judge: Who scores.
            data: Shard folder whose records the samples are named after: the judge gets the record, with its real picture.
                Without it the judge gets the conversation that the model got.
            split: Its split.
            batch_size: Most responses at a time.
        """
        self._judge = judge
        self._data = data
        self._split = split
        self._gathered: Gathered[tuple[Record, str], dict[str, float]] = Gathered(self._scores, batch_size)

    async def values(self, state: Any) -> dict[str, float]:
        """Named scores of the response of a sample; NaN where one is unknown.

        Args:
            state: ``TaskState`` after the generation.

        Raises:
            ValueError: If the judge cannot read the sample; inspect then counts it as failed and never as a score.
        """
        return await self._gathered.ask((self._record(state), str(state.output.completion)))

    def _record(self, state: Any) -> Record:
        """The prompt that is judged."""
        key = str(state.sample_id)
        if self._data is None:
            last = len(state.messages) - (bool(state.messages) and state.messages[-1].role == "assistant")
            return record_of(state.messages[:last])
        prompts = prompts_of(self._data, self._split)
        if (self._split, key) not in prompts.prompts:
            raise ValueError(f"{self._data}: split {self._split!r} has no record {key!r}; name the data of this task")
        return prompts.record(self._split, key)

    def _scores(self, pairs: Sequence[tuple[Record, str]]) -> list[dict[str, float]]:
        return self._judge.scores(pairs)


def has_truth(data: str, split: str) -> bool:
    """Whether a folder carries the ground truth that a judge of ours reads.

    Args:
        data: Shard folder.
        split: Its split.
    """
    return default_judge(prompts_of(data, split).first()) is not None


def world_judge(data: str, split: str) -> Judge:
    """The ground truth of a folder of the embedded world.

    Args:
        data: Shard folder.
        split: Its split.

    Raises:
        ValueError: If there is no ground truth.
    """
    judge = default_judge(prompts_of(data, split).first())
    if judge is None:
        raise ValueError(f"{data}: carries no ground truth, which only the embedded world has; name other scorers")
    return judge
