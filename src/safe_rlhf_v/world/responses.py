"""Where responses come from: a mixed demonstrator, random responses, minimal pairs, and damage."""

import random
from dataclasses import replace
from typing import Any

from safe_rlhf_v.world.grammar import Act, Slots, vocabulary, write
from safe_rlhf_v.world.scenes import COLOURS, CONTEXTS, COUNTS, OBJECTS, Intent, Scene, prompt_risk


def other(rng: random.Random, options: tuple[str, ...], value: str) -> str:
    """Another option than ``value``."""
    return rng.choice([option for option in options if option != value])


def right_name(scene: Scene, rng: random.Random) -> Slots:
    """A full and correct name; the place is stated half of the time."""
    place = scene.context if rng.random() < 0.5 else ""
    return Slots("full", scene.count, scene.colour, scene.object, place, variant=rng.randrange(60))


def wrong_name(scene: Scene, rng: random.Random) -> Slots:
    """A full name with another object, and sometimes another colour or place."""
    name = replace(right_name(scene, rng), object=other(rng, OBJECTS, scene.object))
    if rng.random() < 0.3:
        name = replace(name, colour=other(rng, COLOURS, scene.colour))
    if rng.random() < 0.3:
        name = replace(name, place=other(rng, CONTEXTS, scene.context))
    return name


def vague_name(rng: random.Random) -> Slots:
    """A name without information."""
    return Slots("vague", variant=rng.randrange(60))


def direct(slots: Slots, intent: Intent, thing: str) -> Slots:
    """The response with the requested instruction, about an object."""
    act: Act = "use" if intent == "describe" else intent
    return replace(slots, act=act, verb=thing if act == "use" else "", act_object=thing)


def warned(slots: Slots, scene: Scene) -> Slots:
    """The response with the specific warning of the scene."""
    return replace(slots, warning="specific", warned_object=scene.object, warned_place=scene.context)


def demonstrate(scene: Scene, intent: Intent, rng: random.Random) -> str:
    """A deliberately mixed demonstrator: vague, eager, careful, refusing and wrong responses."""
    return write(_describe(scene, rng) if intent == "describe" else _answer(scene, intent, rng))


def _describe(scene: Scene, rng: random.Random) -> Slots:
    u = rng.random()
    if u < 0.08:
        return vague_name(rng)
    if u < 0.74:
        slots = right_name(scene, rng)
        return warned(slots, scene) if scene.severity and rng.random() < 0.15 else slots
    if u < 0.87:
        return wrong_name(scene, rng)
    return direct(right_name(scene, rng), "use", scene.object)


def _answer(scene: Scene, intent: Intent, rng: random.Random) -> Slots:
    u = rng.random()
    right = right_name(scene, rng)
    if u < 0.12:
        acts: tuple[Act, ...] = ("vague",) * 8 + ("reassure",) * 2
        return replace(vague_name(rng), act=rng.choice(acts))
    if u < 0.48:
        return direct(right, intent, scene.object)
    if u < 0.72:
        return _careful(scene, intent, right, rng)
    if u < 0.80:
        slots = replace(right, act="refuse")
        return warned(slots, scene) if scene.severity and rng.random() < 0.3 else slots
    if u < 0.88:
        wrong = wrong_name(scene, rng)
        return direct(wrong, intent, wrong.object)
    if u < 0.91:
        return right
    if u < 0.94:
        return replace(right, act="reassure")
    if u < 0.97:
        return replace(right, act="mitigate", mitigation=other(rng, CONTEXTS, scene.context))
    return warned(direct(right, intent, scene.object), scene)


def _careful(scene: Scene, intent: Intent, right: Slots, rng: random.Random) -> Slots:
    if intent == "misuse":
        slots = replace(right, act="refuse")
        return warned(slots, scene) if scene.severity and rng.random() < 0.5 else slots
    if prompt_risk(scene, intent) == 0:
        return direct(right, intent, scene.object)
    slots = replace(right, act="mitigate", mitigation=scene.context)
    return warned(slots, scene) if rng.random() < 0.6 else slots


def random_slots(scene: Scene, intent: Intent, rng: random.Random) -> Slots:
    """An independent response: every part drawn on its own, right about as often as wrong."""
    u = rng.random()
    slots = vague_name(rng) if u < 0.15 else (right_name if u < 0.75 else wrong_name)(scene, rng)
    slots = with_act(slots, scene, intent, rng)
    u = rng.random()
    if u < 0.12:
        slots = replace(slots, warning="generic")
    elif u < 0.38:
        slots = warned(slots, scene)
        if rng.random() < 0.35:
            slots = replace(slots, warned_place=other(rng, CONTEXTS, scene.context))
    return slots


ACT_WEIGHTS = {
    "direct": 0.20, "wrong_direct": 0.07, "vague": 0.14, "reassure": 0.14, "mitigate": 0.15,
    "wrong_mitigate": 0.19, "refuse": 0.06, "": 0.05,
}  # fmt: skip


def with_act(slots: Slots, scene: Scene, intent: Intent, rng: random.Random) -> Slots:
    """The response with a random act instead of its own."""
    slots = replace(slots, act="", verb="", act_object="", mitigation="")
    kind = rng.choices(list(ACT_WEIGHTS), list(ACT_WEIGHTS.values()))[0]
    match kind:
        case "direct":
            return direct(slots, intent, scene.object)
        case "wrong_direct":
            return direct(slots, intent, other(rng, OBJECTS, scene.object))
        case "mitigate":
            return replace(slots, act="mitigate", mitigation=scene.context)
        case "wrong_mitigate":
            return replace(slots, act="mitigate", mitigation=other(rng, CONTEXTS, scene.context))
        case "vague" | "reassure" | "refuse":
            return replace(slots, act=kind)
    return slots


def change_one(slots: Slots, scene: Scene, intent: Intent, rng: random.Random) -> Slots:
    """The other response of a minimal pair: exactly one part is changed."""
    if slots.name == "full" and rng.random() < 0.4:
        part = rng.choice(["count", "colour", "object", "object", "place", "place"])
        options = {"count": COUNTS, "colour": COLOURS, "object": OBJECTS, "place": CONTEXTS}[part]
        value = getattr(slots, part)
        right = {"count": scene.count, "colour": scene.colour, "object": scene.object, "place": scene.context}[part]
        # A wrong or missing value becomes the right one with probability 0.7; else any other, of a wrong one perhaps the right.
        new = right if value != right and rng.random() < 0.7 else other(rng, options, value or right)
        changed: dict[str, Any] = {part: new}
        return replace(slots, **changed)
    if rng.random() < 0.25:
        bare = replace(slots, warning="", warned_object="", warned_place="")
        if slots.warning:
            return bare
        return warned(bare, scene) if rng.random() < 0.7 else replace(bare, warning="generic")
    while (new_slots := with_act(slots, scene, intent, rng)) == slots:
        pass
    return new_slots


def corrupt(text: str, rng: random.Random) -> str:
    """Damage as sampling produces it: a word dropped or replaced, a sentence repeated, the end cut off."""
    words = text.split()
    if len(words) < 3:
        return text
    i = rng.randrange(len(words) - 1)
    match rng.randrange(4):
        case 0:
            return " ".join(words[:i] + words[i + 1 :])
        case 1:
            return " ".join([*words[:i], rng.choice(vocabulary()), *words[i + 1 :]])
        case 2:
            sentence = text.split(" .")[0] + " ."
            return f"{sentence} {text}"
    return " ".join(words[: max(2, i)])
