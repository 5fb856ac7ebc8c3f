"""The closed language of responses: up to three sentences (name, act, note), every word known, every sentence listed.

A response is lower case, its words and full stops separated by single spaces:

    i see one red knife beside a child . first move the child away then continue . careful the knife could injure the child .

The language has a few thousand sentences, so it is enumerated once; :mod:`safe_rlhf_v.world.parser` is a look-up in that list.
"""

import random
from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple

from safe_rlhf_v.world.scenes import COLOURS, CONTEXTS, COUNTS, OBJECTS, PLAIN, Intent

PLURALS: dict[str, str] = {"knife": "knives", "bleach": "bleaches", "pillbox": "pillboxes"}
PLACES: tuple[str, ...] = (
    "all alone",
    "beside a child",
    "beside a fire",
    "beside a puddle",
    "beside a crowd",
    "beside a poison sign",
    "beside a private sign",
    "beside a cat",
)
USE_VERBS: tuple[str, ...] = (
    "sharpen", "climb", "connect", "light", "pour", "apply", "spray", "open",
    "fill", "roll", "walk", "drive", "scan", "start", "spend", "trim",
)  # fmt: skip
MISUSE_VERBS: tuple[str, ...] = (
    "swing", "topple", "overload", "drop", "ignite", "mix", "puncture", "swap",
    "reuse", "throw", "provoke", "race", "copy", "hack", "fake", "rip",
)  # fmt: skip
MITIGATIONS: dict[str, str] = {
    "child": "first move the child away then continue",
    "fire": "first put out the fire then continue",
    "water": "first dry up the puddle then continue",
    "crowd": "first wait for the crowd to leave then continue",
    "toxic": "first open a window and wear gloves then continue",
    "lock": "first ask the owner for permission then continue",
    "cat": "first take the cat outside then continue",
}
HAZARDS: dict[str, str] = {
    "child": "could injure the child",
    "fire": "could feed the fire",
    "water": "could fall into the puddle",
    "crowd": "could harm the crowd",
    "toxic": "could spread the poison",
    "lock": "could anger the owner",
    "cat": "could harm the cat",
}
OPENINGS: tuple[str, ...] = ("i see", "this shows")
VAGUE_NAMES: tuple[str, ...] = ("i see some object here", "this shows some thing")
VAGUE_ACTS: tuple[str, ...] = ("yes go ahead with that", "sure that is fine to do")
REFUSALS: tuple[str, ...] = ("sorry i cannot help with that", "no i will not help with that")
GENERIC_WARNINGS: tuple[str, ...] = ("please be careful", "watch out for danger")
REASSURANCES: tuple[str, ...] = ("all of this is safe", "there is nothing to worry about")
STOP = "."


class Name(NamedTuple):
    """What the response says the picture shows, as class indices; -1 for what it leaves open (all -1: a vague name)."""

    object: int = -1
    colour: int = -1
    count: int = -1
    context: int = -1


class Act(NamedTuple):
    """What the response says to do.

    Attributes:
        kind: A direct instruction, a vague go-ahead, a mitigation before going on, or a refusal.
        object: The object of a direct instruction, -1 otherwise.
        verb: The object whose verb is used; another one than ``object`` makes nonsense ("climb the knife").
        intent: What a direct instruction does with the object.
        context: The context a mitigation deals with, -1 otherwise.
    """

    kind: Literal["direct", "vague", "mitigation", "refusal"]
    object: int = -1
    verb: int = -1
    intent: Intent = "describe"
    context: int = -1


class Note(NamedTuple):
    """A closing remark: a generic warning, one specific to object and context, or a reassurance."""

    kind: Literal["generic", "specific", "reassurance"]
    object: int = -1
    context: int = -1


Slot = Name | Act | Note


class Slots(NamedTuple):
    """A whole response; every part may be missing."""

    name: Name | None = None
    act: Act | None = None
    note: Note | None = None


VAGUE_NAME = Name()
VAGUE_ACT = Act("vague")
REFUSAL = Act("refusal")
GENERIC = Note("generic")
REASSURANCE = Note("reassurance")


def direct(intent: Intent, target: int, verb: int | None = None) -> Act:
    """A direct instruction to use, hand over or misuse an object; ``verb`` is another object's for nonsense."""
    return Act("direct", target, target if verb is None or intent == "hand_over" else verb, intent)


def wordings(slot: Slot) -> tuple[str, ...]:
    """Every sentence that expresses a slot, without its full stop."""
    match slot:
        case Name():
            return VAGUE_NAMES if slot == VAGUE_NAME else _names(slot)
        case Act("direct"):
            return (_direct(slot),)
        case Act("vague"):
            return VAGUE_ACTS
        case Act("mitigation"):
            return (MITIGATIONS[CONTEXTS[slot.context]],)
        case Act():
            return REFUSALS
        case Note("generic"):
            return GENERIC_WARNINGS
        case Note("specific"):
            return (f"careful the {OBJECTS[slot.object]} {HAZARDS[CONTEXTS[slot.context]]}",)
        case Note():
            return REASSURANCES


def _names(name: Name) -> tuple[str, ...]:
    noun = OBJECTS[name.object] if name.count == 0 else PLURALS.get(OBJECTS[name.object], OBJECTS[name.object] + "s")
    words = [COUNTS[name.count], COLOURS[name.colour], noun]
    if name.context >= 0:
        words.append(PLACES[name.context])
    return tuple(f"{opening} {' '.join(words)}" for opening in OPENINGS)


def _direct(act: Act) -> str:
    noun = OBJECTS[act.object]
    if act.intent == "use":
        return f"you can {USE_VERBS[act.verb]} the {noun} right now"
    if act.intent == "hand_over":
        return f"pick up the {noun} and hand it over"
    return f"just {MISUSE_VERBS[act.verb]} the {noun} at them"


def say(rng: random.Random, slots: Slots) -> str:
    """A response in one of its wordings; the empty response is the empty string."""
    return " ".join(f"{rng.choice(wordings(slot))} {STOP}" for slot in slots if slot is not None)


def all_slots() -> Iterator[Slot]:
    """Every value a slot can take."""
    objects, dangers = range(len(OBJECTS)), [c for c in range(len(CONTEXTS)) if c != PLAIN]
    yield from (VAGUE_NAME, VAGUE_ACT, REFUSAL, GENERIC, REASSURANCE)
    for values in product(objects, range(len(COLOURS)), range(len(COUNTS)), range(-1, len(CONTEXTS))):
        yield Name(*values)
    for target in objects:
        yield direct("hand_over", target)
        yield from (direct(intent, target, verb) for intent, verb in product(("use", "misuse"), objects))
        yield from (Note("specific", target, context) for context in dangers)
    yield from (Act("mitigation", context=context) for context in dangers)


def vocabulary() -> list[str]:
    """Every word of the responses, sorted."""
    return sorted({word for slot in all_slots() for text in wordings(slot) for word in text.split()} | {STOP})
