"""Noisy annotators: labels sampled from the true values with a known noise."""

import math
import random

from safe_rlhf_v.records import Response
from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL

HELPFUL_SCALE = 0.4
"""P(label agrees) = sigmoid(difference in helpfulness / 0.4)."""
SAFER_SCALE = 0.5
"""P(label agrees) = sigmoid(difference in level / 0.5)."""
UNSAFE_SCALE = 0.25
"""P(labelled unsafe) = sigmoid(-(level + 0.5) / 0.25)."""
LEVEL_NOISE = 0.1
"""Probability that a level rating is one step off."""


def prefer(first: float, second: float, scale: float | None, rng: random.Random) -> int:
    """Index of the preferred of two values: the larger one with probability sigmoid(difference / scale).

    Without a scale it is always the larger one (the first of two equal ones).
    """
    if scale is None:
        return int(second > first)
    return int(rng.random() >= _sigmoid((first - second) / scale))


def rate(text: str, level: int, helpfulness: float, source: str, rng: random.Random, exact_level: bool) -> Response:
    """A response with noisy labels; with ``exact_level`` the level rating is exact."""
    rated = level
    if not exact_level and rng.random() < LEVEL_NOISE:
        rated = max(MIN_LEVEL, min(MAX_LEVEL, level + rng.choice((-1, 1))))
    unsafe = rng.random() < _sigmoid(-(level + 0.5) / UNSAFE_SCALE)
    return Response(text, rated, not unsafe, grade(helpfulness), source)


def grade(helpfulness: float) -> float:
    """True helpfulness on the 0..3 scale of annotators."""
    return max(0.0, min(3.0, round((helpfulness + 2) / 2)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
