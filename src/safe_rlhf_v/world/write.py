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
from safe_rlhf_v.world.counterfactual import COUNTERFACTUALS, twins
from safe_rlhf_v.world.grammar import QUESTIONS, write
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

SMALL_SIZES = {name: size // 10 for name, size in SIZES.items()}
LABELLED_AS_TRAINING = ("train", "validation")
"""Splits with noisy safety ratings; in the others (an audited calibration set, tests) they are exact. Preferences are noisy
in all splits except the twins."""


def write_world(root: str | Path, *, seed: int = 0, sizes: dict[str, int] | None = None, progress: bool = True) -> None:
    """Write every split into a shard folder; the same seed and sizes give the same bytes.

    Args:
        root: Folder to create.
        seed: Seed of all random choices.
        sizes: Records per split, replacing those of :data:`SIZES`.
        progress: Show progress bars.

    Raises:
        ValueError: If a split is unknown, or the size of a split of pairs is odd.
    """
    sizes = {**SIZES, **(sizes or {})}
    for name, size in sizes.items():
        if name not in SIZES:
            raise ValueError(f"unknown split {name!r}; the world has: {', '.join(SIZES)}")
        if (name == "supervised" or name in COUNTERFACTUALS) and size % 2:
            raise ValueError(f"split {name!r} consists of pairs, but its size {size} is odd")
    origin = {"dataset": WORLD_ORIGIN, "seed": str(seed)}
    with ShardWriter(root, name="embedded-world", licence="CC0-1.0", taxonomy=WORLD, origin=origin) as writer:
        for name, size in sizes.items():
            rng = random.Random(f"{seed}/{name}")
            records = tqdm(_split(name, size, rng), total=size, desc=f"{name:>26}", disable=not progress)
            for record in records:
                writer.write(name, record)


def _split(name: str, size: int, rng: random.Random) -> Iterator[Record]:
    if name == "supervised":
        return _demonstrations(name, size, rng)
    return _twins(name, size, rng) if name in COUNTERFACTUALS else _pairs(name, size, rng)


def build(
    key: str,
    scene: Scene,
    intent: Intent,
    question: str,
    texts: list[tuple[str, str]],
    rng: random.Random,
    twin: str = "",
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
    """
    split = key.rsplit("-", 1)[0]
    exact = split not in LABELLED_AS_TRAINING
    truth = Truth(
        helpfulness=tuple(helpfulness(scene, intent, text) for text, _ in texts),
        safety=tuple(safety(scene, intent, text) for text, _ in texts),
        attributes=scene.attributes(),
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
        images=(probe(encode(scene)),),
        responses=labelled,
        category=(name,) if (name := category(scene, intent)) else (),
        image_severity=scene.severity,
        more_helpful=more_helpful,
        safer=safer,
        safety_tie=pair and labelled[0].safety == labelled[1].safety,
        origin={"intent": intent},
        truth=truth,
    )


def _demonstrations(name: str, size: int, rng: random.Random) -> Iterator[Record]:
    for i in range(size // 2):
        scene, intent = draw_prompt(rng)
        for j, asked in enumerate((intent, rng.choice([x for x in INTENTS if x != intent]))):
            text = make.demonstrate(scene, asked, rng)
            question = rng.choice(QUESTIONS[asked])
            yield build(f"{name}-{2 * i + j:06d}", scene, asked, question, [(text, "demonstrator")], rng)


def _pairs(name: str, size: int, rng: random.Random) -> Iterator[Record]:
    for i in range(size):
        scene, intent = draw_prompt(rng, compositional=name == "compositional")
        texts = draw_pair(scene, intent, rng)
        yield build(f"{name}-{i:06d}", scene, intent, rng.choice(QUESTIONS[intent]), texts, rng)


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


def _twins(name: str, size: int, rng: random.Random) -> Iterator[Record]:
    for i in range(size // 2):
        pair = twins(name, rng)
        keys = [f"{name}-{2 * i + j:06d}" for j in range(2)]
        question = rng.choice(QUESTIONS[pair.intent])
        for j, scene in enumerate(pair.scenes):
            texts = [(text, "counterfactual") for text in pair.texts]
            yield build(keys[j], scene, pair.intent, question, texts, rng, twin=keys[1 - j])
