"""Counts and lengths of records, for the data card."""

from array import array
from collections import Counter

import numpy as np

from safe_rlhf_v.records import Record

QUANTILES = (0, 25, 50, 75, 95, 100)


class SplitStatistics:
    """Of one split.

    Attributes:
        counts: By field, how often each value occurs.
        lengths: Characters of questions and responses, and sides of pictures in pixels.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        names = ("helpfulness", "is_safe", "more_helpful", "safer", "ties", "pictures per record", "format")
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        self.lengths: dict[str, array[int]] = {
            name: array("q") for name in ("question (characters)", "response (characters)", "longer side (pixels)")
        }

    def add(self, record: Record, lengths: list[int]) -> None:
        """Count a record."""
        counts = self.counts
        for response in record.responses:
            counts["helpfulness"][_text(response.helpfulness)] += 1
            counts["is_safe"][_text(response.is_safe)] += 1
        counts["more_helpful"][_text(record.more_helpful)] += 1
        counts["safer"][_text(record.safer)] += 1
        if len(record.responses) == 2:
            ties = [
                name for name, tie in (("safety", record.safety_tie), ("helpfulness", record.helpfulness_tie)) if tie
            ]
            counts["ties"][" and ".join(ties) or "none"] += 1
        counts["pictures per record"][str(len(record.images))] += 1
        question, *responses = lengths
        self.lengths["question (characters)"].append(question)
        self.lengths["response (characters)"].extend(responses)
        for image in record.images:
            counts["format"][image.format] += 1
            self.lengths["longer side (pixels)"].append(max(image.width, image.height))


class Statistics:
    """Of all splits.

    Attributes:
        splits: By split.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.splits: dict[str, SplitStatistics] = {}

    def add(self, split: str, record: Record, lengths: list[int]) -> None:
        """Count a record.

        Args:
            split: Its split.
            record: Texts and picture bytes are not needed.
            lengths: Characters of the question and of each response.
        """
        self.splits.setdefault(split, SplitStatistics()).add(record, lengths)


def quantiles(values: "array[int]") -> list[int]:
    """The :data:`QUANTILES` of some lengths."""
    return [int(one) for one in np.percentile(np.frombuffer(values, dtype=np.int64), QUANTILES, method="lower")]


def _text(value: object) -> str:
    return "unknown" if value is None else str(value)
