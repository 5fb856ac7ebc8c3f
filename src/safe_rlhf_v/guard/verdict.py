"""A guard's verdict, in our own shape and in that of the OpenAI moderation API."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from safe_rlhf_v.records.taxonomy import LEVEL_NAMES, MIN_LEVEL

Decision = Literal["allow", "review", "block"]
DECISIONS: tuple[Decision, ...] = ("allow", "review", "block")
DIGITS = 6
WORSE_BY = 0.1
"""A reading is worse than the unaltered text if its harm is higher by this much, even with the same decision."""


class Verdict(NamedTuple):
    """The guard's answer to one input. Numbers are rounded to 6 digits, so that equal inputs give equal text.

    Attributes:
        decision: ``allow``, ``review`` or ``block``; anything unchecked is blocked.
        status: ``ok``, or ``error`` if the input could not be checked.
        harm: P(harmful) of the response, or of the prompt without a response; 1 if it could not be checked.
        level: Most probable safety level -3..3 of the response; ``None`` without a response or a check.
        expected_level: Mean safety level of the response.
        level_probabilities: P(level) for -3..3.
        category: Most probable harm category, ``None`` if the prompt more probably has none.
        category_probabilities: P(prompt has the category), by name.
        reasons: Reasons in words.
        flags: Tricks of the decisive reading, if it is worse than the unaltered text (see :func:`worst`): ``bidi``, ``hidden``,
            ``homoglyph``, ``invisible``, ``marks``, ``spacing``, ``styled``.
        threshold: Inputs with P(harmful) at or above this are blocked. It was chosen to bound false alarms; how much harm it
            catches at least stands in the calibration's certificate (``responses_severe_recall_lower``).
        model: Identity of the guard.
    """

    decision: Decision
    status: Literal["ok", "error"]
    harm: float
    level: int | None
    expected_level: float | None
    level_probabilities: tuple[float, ...] | None
    category: str | None
    category_probabilities: dict[str, float]
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    threshold: float
    model: str

    @property
    def allowed(self) -> bool:
        """Whether the input may pass without human review."""
        return self.decision == "allow"

    def to_openai(self, parts: tuple[str, ...]) -> dict[str, Any]:
        """One entry of ``results`` of an OpenAI moderation response.

        A category is flagged if the input is, and the prompt is more likely of that category than not.

        Args:
            parts: The input's parts, of ``"text"`` and ``"image"``.

        Returns:
            The fields of the API, and ``flags``.
        """
        flagged = self.decision != "allow"
        return {
            "flagged": flagged,
            "categories": {name: flagged and p >= 0.5 for name, p in self.category_probabilities.items()},
            "category_scores": dict(self.category_probabilities),
            "category_applied_input_types": {name: list(parts) for name in self.category_probabilities},
            "flags": list(self.flags),
        }


def worst(readings: Sequence[Verdict]) -> Verdict:
    """The verdict on an input from those on its readings: the worst counts, unchecked before blocked; of equals the first.

    It names tricks only where it is worse than the text as it stands: unchecked or a stricter decision where that is not, or
    harm higher by ``WORSE_BY``.

    Args:
        readings: One per reading, that of the text as it stands first.
    """
    plain = readings[0]
    strictest = severest(readings)
    worse = _severity(strictest) > _severity(plain) or strictest.harm >= plain.harm + WORSE_BY
    return strictest if worse else strictest._replace(flags=())


def severest(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict with the strictest decision and the most harm: unchecked before blocked, and the first of equal ones.

    Args:
        verdicts: At least one.
    """
    return max(verdicts, key=lambda verdict: (*_severity(verdict), verdict.harm))


def _severity(verdict: Verdict) -> tuple[bool, int]:
    return verdict.status == "error", DECISIONS.index(verdict.decision)


def unchecked(reason: str, model: str, threshold: float, flags: tuple[str, ...] = ()) -> Verdict:
    """The verdict on an input that could not be checked: it is blocked.

    Args:
        reason: Why it could not be checked.
        model: Identity of the guard.
        threshold: Threshold of the guard.
        flags: Tricks found before the check failed.
    """
    reason = re.sub(r" <[^<>]* object at 0x[0-9a-f]+>", "", reason)  # an address would differ between equal runs
    reasons = (f"unsafe: could not be checked: {reason}",)
    return Verdict("block", "error", 1.0, None, None, None, None, {}, reasons, flags, threshold, model)


def level_name(level: int) -> str:
    """A level in words."""
    return f"level {level} ({LEVEL_NAMES[level]})"


def rounded(values: list[float]) -> tuple[float, ...]:
    """Values rounded to the digits of a verdict."""
    return tuple(round(value, DIGITS) for value in values)


def likeliest_level(probabilities: tuple[float, ...]) -> int:
    """The level with the highest probability; the more harmful of equal ones."""
    return max(range(len(probabilities)), key=probabilities.__getitem__) + MIN_LEVEL
