"""Photographs without labels, a policy that repeats what it is asked, and a judge of words: evaluations that cost nothing."""

import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from safe_rlhf_v.evaluation.policies import Policy
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.policy.answers import Answer
from safe_rlhf_v.records import Image, Record
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.shards import ShardWriter, probe


class Echo(Policy):
    """Repeats the question behind a word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def respond(
        self, records: Sequence[Record], sampling: SamplingOptions, seed: int, reference: Policy | None = None
    ) -> list[Answer]:
        shades = [zlib.crc32(b"".join(image.data or b"" for image in record.images)) for record in records]
        values = {"length": 3.0}
        return [
            Answer(f"{self.word} {record.question} {sampling.temperature} {shade}", "", values)
            for record, shade in zip(records, shades, strict=True)
        ]


class Words(Judge):
    """Calls harmful what begins with yes."""

    def score(self, record: Record, text: str) -> dict[str, float]:
        harmful = float(text.startswith("yes"))
        return {"helpfulness": float(len(text) % 4), "level": -2 * harmful, "harmful": harmful, "cost": 2 * harmful - 1}


def photograph(shade: int) -> Image:
    """A picture of one grey."""
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(buffer, "PNG")
    return probe(buffer.getvalue())


def write_photographs(
    root: Path, prompts: int, images: int, question_of: Callable[[int], str] = "What is {}?".format, **more: Any
) -> Path:
    """Shards with a split ``test`` of records that know nothing but a question and a picture; without images there are none.

    Args:
        root: The folder.
        prompts: Records.
        images: Different pictures among them.
        question_of: From number to question.
        **more: Further fields of the records.
    """
    with ShardWriter(root, name="photographs", licence="CC0-1.0", taxonomy=None) as writer:
        for number in range(prompts):
            own = (photograph(20 * (number % images)),) if images else ()
            writer.write("test", Record(f"k{number:03d}", question_of(number), own, **more))
    return root


def tiny(data: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Options of an evaluation of two policies."""
    policies = {"start": Echo("yes"), "mine": Echo("no")}
    return {
        "policies": policies, "start": "start", "data": data, "output": output, "judges": {"words": Words()}, "budget": 0.1,
        "device": "cpu", **more,
    }  # fmt: skip
