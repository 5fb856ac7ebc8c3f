"""Simulated judges of the embedded world, with faults that are known: an audit has to find them."""

import math
import random
from collections.abc import Sequence

from safe_rlhf_v.construct.reply_parsing import opinion_of
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL
from safe_rlhf_v.scoring.judge import Asked, Axis, Judge, Opinion
from safe_rlhf_v.world.annotators import grade
from safe_rlhf_v.world.grammar import Slots, parse
from safe_rlhf_v.world.judge import scene_of
from safe_rlhf_v.world.scenes import INTENTS, Intent, Scene
from safe_rlhf_v.world.truth import helpfulness, safety

TIE_WIDTH: dict[Axis, float] = {"helpfulness": 0.4, "safety": 0.5}
"""Two responses whose noisy values differ by less are a tie."""
GARBAGE = (
    "As an assistant I can not rate this .",
    "Rating: seven",
    "Both are good , A and B .",
    "Better: A\nBetter: B",
    '{"better": ',
)


class SimulatedJudge(Judge):
    """A judge that knows the world's truth up to noise, and has the faults that it is given.

    It answers in words, which are read as those of any judge. Without a picture it believes what question and response say.

    YAML::

        class_path: safe_rlhf_v.world.SimulatedJudge
        init_args: {position_bias: 0.3}
    """

    def __init__(
        self,
        noise: float = 0.3,
        position_bias: float = 0.0,
        length_bias: float = 0.0,
        lazy: float = 0.0,
        blind: bool = False,
        garbage: float = 0.0,
        seed: int = 0,
        families: Sequence[str] = (),
    ) -> None:
        """Choose the faults.

        Args:
            noise: Standard deviation of its error, in units of true helpfulness and of levels.
            position_bias: Probability that it takes the first of two responses, whatever they are.
            length_bias: Probability that it takes the longer of two responses, whatever they are.
            lazy: Probability that it calls two responses a tie, and rates one as the middle of the scale.
            blind: Whether it ignores the picture.
            garbage: Probability of a reply that cannot be read.
            seed: Of noise and faults.
            families: Families of models it claims to descend from.
        """
        for name, share in (
            ("position_bias", position_bias),
            ("length_bias", length_bias),
            ("lazy", lazy),
            ("garbage", garbage),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it is a probability, 0..1")
        self.noise = noise
        self.position_bias = position_bias
        self.length_bias = length_bias
        self.lazy = lazy
        self.blind = blind
        self.garbage = garbage
        self.seed = seed
        self.families = tuple(families)

    def score(self, record: Record, text: str) -> dict[str, float]:
        ratings = self.ask([Asked(record, (text,), "helpfulness"), Asked(record, (text,), "safety")])
        helpful, level = (math.nan if one.value is None else one.value for one in ratings)
        harmful = level if math.isnan(level) else float(level < 0)
        return {"helpfulness": helpful, "level": level, "harmful": harmful}

    def ask(self, questions: Sequence[Asked]) -> list[Opinion]:
        return [opinion_of(self._say(question), len(question.texts), question.axis) for question in questions]

    def _say(self, asked: Asked) -> str:
        record = asked.record
        pictures = "+".join(image.id for image in record.images)
        rng = random.Random(f"{self.seed}/{record.key}/{pictures}/{asked.axis}/{asked.draw}/{asked.texts}")
        if rng.random() < self.garbage:
            return rng.choice(GARBAGE)
        lazy = rng.random() < self.lazy
        values = [self._value(record, text, asked.axis) for text in asked.texts]
        if len(values) == 1:
            return f"Rating: {self._rating(asked.axis, values[0] + rng.gauss(0, self.noise), lazy)}"
        if lazy:
            return "Better: tie"
        first, second = asked.texts
        if rng.random() < self.position_bias:
            return "Better: A"
        if rng.random() < self.length_bias and len(first.split()) != len(second.split()):
            return f"Better: {'A' if len(first.split()) > len(second.split()) else 'B'}"
        difference = values[0] - values[1] + (rng.gauss(0, self.noise) if first != second else 0.0)
        if abs(difference) < TIE_WIDTH[asked.axis]:
            return "Better: tie"
        return f"Better: {'A' if difference > 0 else 'B'}"

    def _rating(self, axis: Axis, value: float, lazy: bool) -> int:
        if axis == "helpfulness":
            return 1 if lazy else int(grade(value))
        return 0 if lazy else max(MIN_LEVEL, min(MAX_LEVEL, round(value)))

    def _value(self, record: Record, text: str, axis: Axis) -> float:
        """True value in the scene that the judge believes in."""
        intent = intent_of(record)
        scene = believed(record.question, text) if self.blind or record.truth is None else scene_of(record)[0]
        return helpfulness(scene, intent, text) if axis == "helpfulness" else float(safety(scene, intent, text))


def intent_of(record: Record) -> Intent:
    """Intent of a question of the world.

    Raises:
        ValueError: If it is none.
    """
    for intent in INTENTS:
        if record.origin.get("intent") == intent:
            return intent
    raise ValueError(f"record {record.key!r} is not a record of the embedded world; simulated judges know nothing else")


def named_scene(text: str) -> Scene | None:
    """The scene that a text names in full, as far as it names it; ``None`` if it names none."""
    slots = parse(text).slots
    return _scene(slots) if slots.name == "full" else None


def believed(question: str, text: str) -> Scene:
    """The scene that a reader without a picture believes in: the one that the question names, or else the response."""
    return named_scene(question) or _scene(parse(text).slots)


def _scene(slots: Slots) -> Scene:
    place = slots.place or slots.warned_place or slots.mitigation or "plain"
    thing = slots.object or slots.act_object or slots.warned_object or "plant"
    return Scene(thing, slots.colour or "red", place, slots.count or "one", seed=0)
