"""The judge: who scores a response in evaluation and in the construction of data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.loadable import Loadable

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


class Judge(Loadable, ABC):
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

    YAML::

        judge: {class_path: safe_rlhf_v.world.WorldJudge}
    """

    families: Collection[str] = ()
    """Families of models it descends from, as ``qwen``; judges that share one do not confirm each other. (): one of its own."""
    axes: ClassVar[tuple[Axis, ...]] = AXES
    """What it judges."""
    rates: ClassVar[bool] = True
    """Whether its ratings of one response are on the scales of :class:`Opinion`; else it only compares."""

    by_scores: ClassVar[bool] = True
    """Whether ratings and comparisons follow from its scores, so that nothing is asked twice; False with an own ``ask``."""
    knows_truth: ClassVar[bool] = False
    """Whether its scores are right by definition, so that other judges are measured by it."""
    reads_pictures: ClassVar[bool] = True
    """Whether it looks at the picture of a record."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Whoever has an ``ask`` of its own is asked, unless it says otherwise."""
        super().__init_subclass__(**options)
        if "ask" in vars(cls) and "by_scores" not in vars(cls):
            cls.by_scores = False

    @abstractmethod
    def score(self, record: Record, text: str) -> dict[str, float]:
        """Named values of one response, always the same names; NaN where a value does not apply.

        Names that reports know: ``helpfulness`` and ``level`` (-3..3) as means; ``harmful`` and ``refused`` as shares.
        Other names are averaged as they are.

        Args:
            record: Prompt and what is known about it; its image bytes may be missing.
            text: The response.
        """

    def scores(self, pairs: Sequence[tuple[Record, str]]) -> list[dict[str, float]]:
        """:meth:`score` of several responses; a judge that is faster with many at a time has one of its own.

        Args:
            pairs: Prompts with their image bytes, and responses.
        """
        return [self.score(record, text) for record, text in pairs]

    def compared(self, axis: Axis, first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
        """1 if the first of two responses is the better one by their scores, -1 if the second is, 0 if neither; ``None`` unknown.

        Args:
            axis: On which axis.
            first: Scores of the first response.
            second: Scores of the second response.
        """
        values = [scores.get(_SCORES[axis], math.nan) for scores in (first, second)]
        if any(map(math.isnan, values)):
            return None
        return float((values[0] > values[1]) - (values[0] < values[1]))

    def ask(self, questions: Sequence[Asked]) -> list[Opinion]:
        """One opinion for each question, in order; without a method of its own a judge rates and compares by its scores.

        Args:
            questions: What is asked; the records hold their image bytes.
        """
        judged = [question.axis in self.axes for question in questions]
        pairs = [
            (question.record, text)
            for question, ok in zip(questions, judged, strict=True)
            if ok
            for text in question.texts
        ]
        scores = iter(self.scores(pairs))
        return [
            self._from_scores(question.axis, [next(scores) for _ in question.texts])
            if ok
            else Opinion(None, fault="unknown")
            for question, ok in zip(questions, judged, strict=True)
        ]

    def _from_scores(self, axis: Axis, scores: Sequence[Mapping[str, float]]) -> Opinion:
        if len(scores) == 2:
            value = self.compared(axis, *scores)
        else:
            rating = scores[0].get(_SCORES[axis], math.nan)
            value = None if math.isnan(rating) else rating
        return Opinion(value, fault="" if value is not None else "unknown")


def default_judge(record: Record) -> Judge | None:
    """The ground truth for the embedded world's records, and ``None`` for others.

    Args:
        record: One of the records that will be scored.
    """
    if record.truth is None or "intent" not in record.origin:
        return None
    judge: Judge = import_module("safe_rlhf_v.world").WorldJudge()  # above this room: found by its name alone
    return judge
