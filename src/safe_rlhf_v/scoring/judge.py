"""The judge: who scores a response in evaluation and in the construction of data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import ClassVar, Literal, NamedTuple, get_args

from safe_rlhf_v.records import Record

Axis = Literal["helpfulness", "safety"]
AXES: tuple[Axis, ...] = get_args(Axis)
_SCORES: dict[Axis, str] = {"helpfulness": "helpfulness", "safety": "level"}
"""Which of a judge's scores is its rating on an axis."""


class Asked(NamedTuple):
    """One question to a judge: to rate one response, or to compare two, on one axis.

    Attributes:
        record: The prompt; its pictures are what the judge may look at.
        texts: One response to rate; or two to compare, in the order in which the judge reads them.
        axis: On which axis.
        draw: Number of the repetition; a judge with randomness draws anew.
    """

    record: Record
    texts: tuple[str, ...]
    axis: Axis
    draw: int = 0


class Usage(NamedTuple):
    """What questions to a model took, where it is counted.

    Attributes:
        prompt_tokens: Tokens of the questions.
        completion_tokens: Tokens of the replies.
        cost: Price of both, in the currency of the configured prices.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Opinion(NamedTuple):
    """What a judge says.

    Attributes:
        value: Of one response its rating (helpfulness 0..3, safety level -3..3); of two 1 if the first is the better one, -1 if
            the second is, 0 if neither. ``None`` if there is no label.
        reply: The words of the judge as they came; ``""`` from a judge that computes.
        fault: Why there is no label: ``unparsable``, ``refused``, ``failed`` (no reply came), ``unknown`` (the judge does not
            judge this); ``""`` with a label.
        usage: What the question took.
    """

    value: float | None
    reply: str = ""
    fault: str = ""
    usage: Usage = Usage()


class Judge(ABC):
    """Scores any text as a response to a record, rates it on an axis, and compares two.

    The embedded world's ground truth is one; elsewhere it may be a model, or a rule. A judge of your own is a subclass in a
    package of yours that says how it scores one response; from that follow its ratings and comparisons, unless it has others
    (:meth:`ask`). Its constructor takes plain data; commands and configurations name it by its class path.

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

    families: Collection[str] = ()
    """Families of models it descends from, as ``qwen``; judges that share one do not confirm each other. (): one of its own."""
    axes: ClassVar[tuple[Axis, ...]] = AXES
    """What it judges."""
    rates: ClassVar[bool] = True
    """Whether its ratings of one response are on the scales of :class:`Opinion`; else it only compares."""

    @abstractmethod
    def score(self, record: Record, text: str) -> dict[str, float]:
        """Named values of one response, always the same names; NaN where a value does not apply.

        Names that reports know: ``helpfulness`` and ``level`` (-3..3) as means; ``harmful`` and ``refused`` as shares.
        Other names are averaged as they are.

        Args:
            record: Prompt and what is known about it; its image bytes may be missing.
            text: The response.
        """

    def ask(self, questions: Sequence[Asked]) -> list[Opinion]:
        """One opinion for each question, in order; without a method of its own a judge compares its scores.

        Args:
            questions: What is asked; the records hold their image bytes.
        """
        return [_from_scores(self, question) for question in questions]


def _from_scores(judge: Judge, asked: Asked) -> Opinion:
    """Rating or comparison by the scores; an axis that is not scored has no opinion."""
    name = _SCORES[asked.axis]
    scores = [judge.score(asked.record, text).get(name, math.nan) for text in asked.texts]
    if any(map(math.isnan, scores)):
        return Opinion(None, fault="unknown")
    if len(scores) == 1:
        return Opinion(scores[0])
    first, second = scores
    return Opinion(float((first > second) - (first < second)))


def default_judge(record: Record) -> Judge | None:
    """The ground truth for the embedded world's records, and ``None`` for others.

    Args:
        record: One of the records that will be scored.
    """
    if record.truth is None or "intent" not in record.origin:
        return None
    judge: Judge = import_module("safe_rlhf_v.world").WorldJudge()  # above this room: found by its name alone
    return judge
