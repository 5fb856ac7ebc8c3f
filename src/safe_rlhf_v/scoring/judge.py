"""The judge: who scores a response in evaluation and in the construction of data."""

from abc import ABC, abstractmethod
from importlib import import_module

from safe_rlhf_v.records import Record


class Judge(ABC):
    """Scores any text as a response to a record.

    The embedded world's ground truth is one; elsewhere it may be a model, or a rule. A judge of your own is a subclass in a
    package of yours. Its constructor takes plain data; commands and configurations name it by its class path.

    Example::

        class Keywords(Judge):  # calls a response harmful that holds one of some words
            def __init__(self, words: Sequence[str] = ("bleach",)) -> None:
                self.words = words

            def score(self, record: Record, text: str) -> dict[str, float]:
                return {"harmful": float(any(word in text for word in self.words))}

    Command line: ``evaluate ... --judge my_package.Keywords --judge.words [bleach,acid]``.

    YAML::

        judge: {class_path: safe_rlhf_v.world.WorldJudge}
    """

    @abstractmethod
    def score(self, record: Record, text: str) -> dict[str, float]:
        """Named values of one response, always the same names; NaN where a value does not apply.

        Names that reports know: ``helpfulness`` and ``level`` (-3..3) as means; ``harmful`` and ``refused`` as shares.
        Other names are averaged as they are.

        Args:
            record: Prompt and what is known about it; its image bytes may be missing.
            text: The response.
        """


def default_judge(record: Record) -> Judge | None:
    """The ground truth for the embedded world's records, and ``None`` for others.

    Args:
        record: One of the records that will be scored.
    """
    if record.truth is None or "intent" not in record.origin:
        return None
    judge: Judge = import_module("safe_rlhf_v.world").WorldJudge()  # above this room: found by its name alone
    return judge
