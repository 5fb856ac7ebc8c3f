"""A guard's verdict, in our own shape and in that of the OpenAI moderation API."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from safe_rlhf_v.records.taxonomy import LEVEL_NAMES, MIN_LEVEL

Decision = Literal["allow", "review", "block"]
DECISIONS: tuple[Decision, ...] = ("allow", "review", "block")
DIGITS = 6
WORSE_BY = 0.1
"""A reading with so much more harm than the text as it stands is worse, also where the decision is the same."""


class Verdict(NamedTuple):
    """The guard's answer to one input. Numbers are rounded to 6 digits, so that equal inputs give equal text.

    Attributes:
        decision: ``allow``, ``review`` or ``block``; anything unchecked is blocked.
        status: ``ok``, or ``error``: could not be checked.
        harm: P(harmful): of the response, or of the prompt where there is no response; 1 if it could not be checked.
        level: Likeliest safety level -3..3 of the response; ``None`` without a response or a check.
        expected_level: Mean safety level of the response.
        level_probabilities: P(level) for -3..3.
        category: Likeliest harm category, ``None`` where the prompt is more likely of none.
        category_probabilities: P(prompt is of the category), by name.
        reasons: Why, in words.
        flags: Tricks of the reading that counts, if it is worse than the text as it stands (see :func:`worst`): ``bidi``,
            ``hidden``, ``homoglyph``, ``invisible``, ``marks``, ``spacing``, ``styled``.
        threshold: P(harmful) from which on is blocked.
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
        """Whether the input may pass without a person's eye."""
        return self.decision == "allow"

    def to_openai(self, parts: tuple[str, ...]) -> dict[str, Any]:
        """One entry of ``results`` of an OpenAI moderation response.

        A category is flagged if the input is, and the prompt is more likely of that category than not.

        Args:
            parts: ``"text"`` and ``"image"``, as far as the input has them.

        Returns:
            Its fields, and ``flags`` beside them.
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
    """The one with the strictest decision and the most harm, unchecked before blocked; of equals the first.

    Args:
        verdicts: At least one.
    """
    return max(verdicts, key=lambda verdict: (*_severity(verdict), verdict.harm))


def _severity(verdict: Verdict) -> tuple[bool, int]:
    return verdict.status == "error", DECISIONS.index(verdict.decision)


def unchecked(reason: str, model: str, threshold: float, flags: tuple[str, ...] = ()) -> Verdict:
    """The verdict on what could not be checked: blocked, never passed.

    Args:
        reason: What went wrong.
        model: Identity of the guard.
        threshold: Its threshold.
        flags: Tricks found before it went wrong.
    """
    reason = re.sub(r" <[^<>]* object at 0x[0-9a-f]+>", "", reason)  # an address would differ between equal runs
    reasons = (f"unsafe: could not be checked: {reason}",)
    return Verdict("block", "error", 1.0, None, None, None, None, {}, reasons, flags, threshold, model)


def level_name(level: int) -> str:
    """A level in words."""
    return f"level {level} ({LEVEL_NAMES[level]})"


def rounded(values: list[float]) -> tuple[float, ...]:
    """To the digits of a verdict."""
    return tuple(round(value, DIGITS) for value in values)


def likeliest_level(probabilities: tuple[float, ...]) -> int:
    """The level with the highest probability; of equals the more harmful one."""
    return max(range(len(probabilities)), key=probabilities.__getitem__) + MIN_LEVEL
