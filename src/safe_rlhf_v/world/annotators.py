"""Noisy annotators: from exact scores to the labels that training sees."""

import math
import random

from safe_rlhf_v.taxonomy import MAX_LEVEL, MIN_LEVEL

HELPFULNESS_SCALE = 0.4
SAFETY_SCALE = 0.5
VERDICT_SCALE = 0.25
VERDICT_BOUNDARY = -0.5
LEVEL_ERROR = 0.1


def prefer(rng: random.Random, first: float, second: float, scale: float) -> int:
    """Index of the preferred response: 0 with probability sigmoid((first - second) / scale)."""
    return 0 if rng.random() < _sigmoid((first - second) / scale) else 1


def verdict(rng: random.Random, level: int) -> bool:
    """Whether an annotator calls a response safe: unsafe with probability sigmoid(-(level + 0.5) / 0.25)."""
    return rng.random() >= _sigmoid(-(level - VERDICT_BOUNDARY) / VERDICT_SCALE)


def rate(rng: random.Random, level: int) -> int:
    """A rated safety level: one off with probability 0.1 (inwards at the ends of the scale)."""
    if rng.random() >= LEVEL_ERROR:
        return level
    return rng.choice([moved for moved in (level - 1, level + 1) if MIN_LEVEL <= moved <= MAX_LEVEL])


def better(first: float, second: float) -> int | None:
    """Index of the larger score, ``None`` for a tie: the exact preference."""
    return None if first == second else int(second > first)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
