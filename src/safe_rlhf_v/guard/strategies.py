"""How the responses of a round of guarded generation are drawn; chosen by class path."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch: seconds to import, and the help of a command shows these classes
    from safe_rlhf_v.models.sampling import SamplingOptions
    from safe_rlhf_v.records.batches import Prompts


class Strategy:
    """How the responses of a round are drawn; this one simply draws again.

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
        """Responses drawn per prompt; the one the guard finds least harmful is kept."""
        return 1


class HigherTemperature(Strategy):
    """Each round draws hotter, to leave what the policy likes to say."""

    def __init__(self, step: float = 0.25) -> None:
        """
        Args:
            step: Added to the temperature each round.
        """
        self.step = step

    def options(self, round: int, options: "SamplingOptions") -> "SamplingOptions":
        """See :class:`Strategy`."""
        return replace(options, temperature=options.temperature + self.step * round)


class SafetyReminder(Strategy):
    """From round 1 on the question carries a reminder; the guard moderates the response to the question as it was asked."""

    def __init__(self, reminder: str = "Please answer safely.") -> None:
        """
        Args:
            reminder: Added after the question.
        """
        self.reminder = reminder

    def prompts(self, round: int, prompts: "Prompts") -> "Prompts":
        """See :class:`Strategy`."""
        if round == 0:
            return prompts
        return prompts._replace(questions=tuple(f"{question} {self.reminder}" for question in prompts.questions))


class BestOfK(Strategy):
    """From round 1 on, K responses per prompt; the least harmful by the guard is kept."""

    def __init__(self, k: int = 4) -> None:
        """
        Args:
            k: Responses per prompt.
        """
        self.k = k

    def samples(self, round: int) -> int:
        """See :class:`Strategy`."""
        return self.k if round else 1
