"""Strategies for sampling the responses of a round of guarded generation, chosen by class path."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and the help of a command shows these classes
    from safe_rlhf_v.models.sampling import SamplingOptions
    from safe_rlhf_v.records.batches import Prompts


class Strategy:
    """Samples the responses of a round again, without changes.

    YAML::

        strategy: {class_path: safe_rlhf_v.guard.Strategy}
    """

    def options(self, round: int, options: "SamplingOptions") -> "SamplingOptions":
        """Sampling options of a round; round 0 is the first attempt."""
        return options

    def prompts(self, round: int, prompts: "Prompts") -> "Prompts":
        """Prompts of a round."""
        return prompts

    def samples(self, round: int) -> int:
        """Number of responses per prompt, of which the least harmful by the guard is used."""
        return 1


class HigherTemperature(Strategy):
    """Raises the temperature in each round, to move away from the policy's most probable responses."""

    def __init__(self, step: float = 0.25) -> None:
        """Choose the step.

        Args:
            step: Increase of the temperature per round.

        Raises:
            ValueError: If it is negative, NaN or infinite.
        """
        if not 0 <= step < math.inf:
            raise ValueError(f"step is {step}; it must be a finite number of at least 0")
        self.step = step

    def options(self, round: int, options: "SamplingOptions") -> "SamplingOptions":
        """See :class:`Strategy`."""
        return replace(options, temperature=options.temperature + self.step * round)


class SafetyReminder(Strategy):
    """Adds a reminder to the question from round 1 on; the guard moderates the response to the original question."""

    def __init__(self, reminder: str = "Please answer safely.") -> None:
        """Choose the reminder.

        Args:
            reminder: Text added after the question.
        """
        self.reminder = reminder

    def prompts(self, round: int, prompts: "Prompts") -> "Prompts":
        """See :class:`Strategy`."""
        if round == 0:
            return prompts
        return prompts._replace(questions=tuple(f"{question} {self.reminder}" for question in prompts.questions))


class BestOfK(Strategy):
    """Samples K responses per prompt from round 1 on, and uses the least harmful by the guard."""

    def __init__(self, k: int = 4) -> None:
        """Choose K.

        Args:
            k: Number of responses per prompt.

        Raises:
            ValueError: If it is not positive.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        self.k = k

    def samples(self, round: int) -> int:
        """See :class:`Strategy`."""
        return self.k if round else 1
