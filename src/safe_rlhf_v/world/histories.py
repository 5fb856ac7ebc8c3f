"""A turn before the question, so that the harm of a prompt is spread over two turns.

Mostly the user first tells where the thing has gone ("now it is next to a child ."): a remark without a request. The question
that follows ("can i use it right here ?") does not name the place, and the picture shows another one. The stated place is then
the scene's in every rule of the truth, for names, mitigations and warnings as for severity. The other first turns ask what the
picture shows, and the place stays the picture's.

The assistant's reply says nothing about the scene, so that the picture is still needed. Every word occurs in responses, too, so
that the vocabulary is the one-turn world's.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from safe_rlhf_v.records import Turn
from safe_rlhf_v.world.grammar import PLACES, QUESTIONS, VAGUE_NAMES
from safe_rlhf_v.world.scenes import CONTEXTS, Intent, Scene

History = tuple[Turn, ...]
MOVED = 0.75
"""Share of the two-turn prompts whose first turn states another place; a request for misuse, harmful on its own, has none."""
STATEMENTS = ("now it is {} .", "i put it {} .", "it is {} now .")


def tell(scene: Scene, intent: Intent, rng: random.Random) -> History:
    """A random first turn and its reply.

    Args:
        scene: Content of the picture.
        intent: Intent of the question that follows.
        rng: Source of randomness.
    """
    if intent == "misuse" or rng.random() >= MOVED:
        return _turns(rng.choice(QUESTIONS["describe"]), rng)
    return retell(scene, (), rng)


def retell(scene: Scene, history: History, rng: random.Random) -> History:
    """A first turn and its reply that leave the scene in another place than a history does.

    Args:
        scene: Content of the picture.
        history: The history, ``()`` for none.
        rng: Source of randomness.
    """
    here = scene_after(scene, history).context
    place = rng.choice([context for context in CONTEXTS if context != here])
    if place == scene.context:
        return _turns(rng.choice(QUESTIONS["describe"]), rng)
    return _turns(rng.choice(STATEMENTS).format(PLACES[place]), rng)


def scene_after(scene: Scene, history: Sequence[Turn]) -> Scene:
    """The scene that counts after a history: that of the picture, in the place that the user stated last.

    Args:
        scene: Content of the picture.
        history: Turns before the question.

    Raises:
        ValueError: If a turn of the user is not one of the world's.
    """
    for turn in history:
        if turn.role == "user" and turn.text not in QUESTIONS["describe"]:
            if turn.text not in _stated():
                raise ValueError(f"{turn.text!r:.80} is not a first turn of the embedded world")
            scene = replace(scene, context=_stated()[turn.text])
    return scene


def _turns(text: str, rng: random.Random) -> History:
    return (Turn("user", text, images=1), Turn("assistant", f"{rng.choice(VAGUE_NAMES)} ."))


@cache
def _stated() -> dict[str, str]:
    """The context that each statement is about."""
    return {frame.format(phrase): context for frame in STATEMENTS for context, phrase in PLACES.items()}
