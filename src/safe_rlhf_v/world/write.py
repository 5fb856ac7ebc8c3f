"""Write the embedded world as shards, with the same schema and files as real data."""

import random
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from safe_rlhf_v.records import Record, Truth
from safe_rlhf_v.shards import ShardWriter, probe
from safe_rlhf_v.shards.manifest import WORLD_ORIGIN
from safe_rlhf_v.world import annotators as ann
from safe_rlhf_v.world import responses as make
from safe_rlhf_v.world.counterfactual import COUNTERFACTUALS, OVER_HISTORIES, twins
from safe_rlhf_v.world.grammar import QUESTIONS, write
from safe_rlhf_v.world.histories import History, scene_after, tell
from safe_rlhf_v.world.render import encode
from safe_rlhf_v.world.scenes import INTENTS, WORLD, Intent, Scene, category, draw_prompt
from safe_rlhf_v.world.truth import helpfulness, rule, safety

SIZES = {
    "supervised": 8000,
    "train": 5000,
    "validation": 600,
    "calibration": 600,
    "test": 1000,
    "compositional": 600,
    "counterfactual_helpfulness": 600,
    "counterfactual_safety": 600,
    "counterfactual_verdict": 600,
}
"""Records per split; ``supervised`` has two prompts per picture, counterfactual splits come in adjacent twins."""

TWO_TURN_SPLITS = {OVER_HISTORIES: 600}
"""Records of the splits that only the two-turn world has, beside those of :data:`SIZES`."""
SMALL_SIZES = {name: size // 10 for name, size in SIZES.items()}
LABELLED_AS_TRAINING = ("train", "validation")
"""Splits with noisy safety ratings; in the others (an audited calibration set, tests) they are exact. Preferences are noisy
in all splits except the twins."""


def write_world(
    root: str | Path,
    *,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    two_turns: bool = False,
    progress: bool = True,
) -> None:
    """Write every split into a shard folder; the same seed, sizes and turns give the same bytes.

    Args:
        root: Folder to create.
        seed: Seed of all random choices.
        sizes: Records per split, replacing those of :data:`SIZES` and :data:`TWO_TURN_SPLITS`.
        two_turns: Give every prompt a first turn, over which the harm is spread (:mod:`safe_rlhf_v.world.histories`).
        progress: Show progress bars.

    Raises:
        ValueError: If a split is unknown, or the size of a split of pairs is odd.
    """
    usual = SIZES | (TWO_TURN_SPLITS if two_turns else {})
    sizes = {**usual, **(sizes or {})}
    for name, size in sizes.items():
        if name not in usual:
            raise ValueError(f"unknown split {name!r}; the world has: {', '.join(usual)}")
        if (name == "supervised" or name.startswith("counterfactual")) and size % 2:
            raise ValueError(f"split {name!r} consists of pairs, but its size {size} is odd")
    origin = {"dataset": WORLD_ORIGIN, "seed": str(seed), **({"turns": "2"} if two_turns else {})}
    with ShardWriter(root, name="embedded-world", licence="CC0-1.0", taxonomy=WORLD, origin=origin) as writer:
        for name, size in sizes.items():
            rng = random.Random(f"{seed}/{name}")
            records = tqdm(_split(name, size, rng, two_turns), total=size, desc=f"{name:>26}", disable=not progress)
            for record in records:
                writer.write(name, record)


def _split(name: str, size: int, rng: random.Random, two_turns: bool = False) -> Iterator[Record]:
    if name == "supervised":
        return _demonstrations(name, size, rng, two_turns)
    kind = _twins if name in (*COUNTERFACTUALS, OVER_HISTORIES) else _pairs
    return kind(name, size, rng, two_turns)


def build(
    key: str,
    scene: Scene,
    intent: Intent,
    question: str,
    texts: list[tuple[str, str]],
    rng: random.Random,
    twin: str = "",
    history: History = (),
) -> Record:
    """A labelled record.

    Args:
        key: Key of the record, starting with the split's name.
        scene: Content of the picture.
        intent: Intent of the question.
        question: The question.
        texts: (text, source) of each response.
        rng: Source of the annotators' noise.
        twin: Key of its counterfactual partner; with one, all labels are exact.
        history: Turns before the question.
    """
    picture = scene
    scene = scene_after(picture, history)
    split = key.rsplit("-", 1)[0]
    exact = split not in LABELLED_AS_TRAINING
    truth = Truth(
        helpfulness=tuple(helpfulness(scene, intent, text) for text, _ in texts),
        safety=tuple(safety(scene, intent, text) for text, _ in texts),
        attributes=picture.attributes(),
        twin=twin,
        rule=tuple(rule(text, scene) for text, _ in texts),
    )
    labelled = tuple(
        ann.rate(text, level, helpful, source, rng, exact)
        for (text, source), level, helpful in zip(texts, truth.safety, truth.helpfulness, strict=True)
    )
    pair = len(texts) == 2
    more_helpful = safer = None
    if pair:
        (first, second) = truth.helpfulness
        (level, other) = truth.safety
        more_helpful = ann.prefer(first, second, None if twin else ann.HELPFUL_SCALE, rng)
        safer = ann.prefer(level, other, None if twin else ann.SAFER_SCALE, rng)
    return Record(
        key=key,
        question=question,
        images=(probe(encode(picture)),),
        history=history,
        responses=labelled,
        category=(name,) if (name := category(scene, intent)) else (),
        image_severity=picture.severity,
        more_helpful=more_helpful,
        safer=safer,
        safety_tie=pair and labelled[0].safety == labelled[1].safety,
        helpfulness_tie=pair and labelled[0].helpfulness == labelled[1].helpfulness,
        origin={"intent": intent},
        truth=truth,
    )


def _demonstrations(name: str, size: int, rng: random.Random, two_turns: bool) -> Iterator[Record]:
    for i in range(size // 2):
        scene, intent = draw_prompt(rng)
        for j, asked in enumerate((intent, rng.choice([x for x in INTENTS if x != intent]))):
            history = tell(scene, asked, rng) if two_turns else ()
            text = make.demonstrate(scene_after(scene, history), asked, rng)
            question = rng.choice(QUESTIONS[asked])
            key = f"{name}-{2 * i + j:06d}"
            yield build(key, scene, asked, question, [(text, "demonstrator")], rng, history=history)


def _pairs(name: str, size: int, rng: random.Random, two_turns: bool) -> Iterator[Record]:
    for i in range(size):
        scene, intent = draw_prompt(rng, compositional=name == "compositional")
        history = tell(scene, intent, rng) if two_turns else ()
        texts = draw_pair(scene_after(scene, history), intent, rng)
        question = rng.choice(QUESTIONS[intent])
        yield build(f"{name}-{i:06d}", scene, intent, question, texts, rng, history=history)


def draw_pair(scene: Scene, intent: Intent, rng: random.Random) -> list[tuple[str, str]]:
    """Two different responses: 34 % demonstrators, 40 % minimal pairs, 26 % random, 18 % of those damaged."""
    while True:
        u = rng.random()
        if u < 0.34:
            pair = [(make.demonstrate(scene, intent, rng), "demonstrator") for _ in range(2)]
        elif u < 0.74:
            base = make.random_slots(scene, intent, rng)
            pair = [(write(s), "minimal") for s in (base, make.change_one(base, scene, intent, rng))]
            rng.shuffle(pair)
        else:
            pair = [(write(make.random_slots(scene, intent, rng)), "random") for _ in range(2)]
            pair = [(make.corrupt(t, rng), "corrupted") if rng.random() < 0.18 else (t, s) for t, s in pair]
        if pair[0][0] != pair[1][0] and all(text for text, _ in pair):
            return pair


def _twins(name: str, size: int, rng: random.Random, two_turns: bool) -> Iterator[Record]:
    for i in range(size // 2):
        pair = twins(name, rng, two_turns)
        keys = [f"{name}-{2 * i + j:06d}" for j in range(2)]
        question = rng.choice(QUESTIONS[pair.intent])
        for j, (scene, history) in enumerate(zip(pair.scenes, pair.histories, strict=True)):
            texts = [(text, "counterfactual") for text in pair.texts]
            yield build(keys[j], scene, pair.intent, question, texts, rng, twin=keys[1 - j], history=history)
