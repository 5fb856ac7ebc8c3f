"""Which share of the world's truths needs the picture? From its own rules and generator, without any model; one JSON file.

    python benchmarks/picture_share.py --out docs/evidence/picture_share.json

Counted on pairs drawn as those of the split ``test``, and on twins:

- *can change*: with another object or place in the picture, question and response as they are, the truth would be another one.
  It needs the picture in the strictest sense: no text decides it.
- *changes*: it is another one with the picture of another prompt of the same intent.
- *best from text*: the most probable label given question and response, by counts of the generator's own draws. One half of the
  draws counts and the other is predicted (what a predictor reaches), and every draw is predicted by counts that hold it (more
  than any predictor can reach on these): the best possible one lies between.
- *best blind response*: helpfulness of the one response that is best over all pictures of an intent, beside the best to each
  picture.
"""

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc

from safe_rlhf_v.world.counterfactual import COUNTERFACTUALS, twins
from safe_rlhf_v.world.grammar import Slots, parse, sentences, write
from safe_rlhf_v.world.scenes import CONTEXTS, INTENTS, OBJECTS, Intent, Scene, category, draw_prompt
from safe_rlhf_v.world.truth import helpfulness, rule, safety
from safe_rlhf_v.world.write import draw_pair

PICTURES = [Scene(thing, "red", place, "one", 0) for thing in OBJECTS for place in CONTEXTS]
"""Every object in every place: what a level depends on."""
PLACE_OF = {(scene.object, scene.context): i for i, scene in enumerate(PICTURES)}


NO_WORDS = 1.0
"""What an empty response loses."""


class Levels:
    """True level of a response in every picture, by intent and the parts that decide it."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Intent, Slots], np.ndarray] = {}

    def __call__(self, intent: Intent, text: str) -> np.ndarray:
        """(128,) levels; the name of what is seen and garbled sentences do not count."""
        parts = replace(parse(text).slots, name="", count="", colour="", object="", place="")
        key = (intent, parts)
        if key not in self._rows:
            self._rows[key] = np.array([safety(scene, intent, write(parts)) for scene in PICTURES])
        return self._rows[key]


def place_of(scene: Scene) -> int:
    return PLACE_OF[scene.object, scene.context]


def share(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4)


def drawn_pairs(count: int, seed: int) -> list[tuple[Scene, Intent, Scene, tuple[str, str]]]:
    """Scene, intent, the scene of another prompt of this intent, and two responses."""
    rng = random.Random(f"{seed}/picture share")
    waiting: dict[Intent, list[Scene]] = defaultdict(list)
    rows = []
    for _ in range(count):
        scene, intent = draw_prompt(rng)
        texts = tuple(text for text, _ in draw_pair(scene, intent, rng))
        while not waiting[intent]:
            other, asked = draw_prompt(rng)
            waiting[asked].append(other)
        rows.append((scene, intent, waiting[intent].pop(), texts))
    return rows


def needs(rows: list[tuple[Scene, Intent, Scene, tuple[str, str]]], levels: Levels) -> dict[str, Any]:
    """Shares of responses, pairs and prompts whose truth can change, and does, with the picture."""
    found: dict[str, list[bool]] = defaultdict(list)
    by_rule: dict[str, list[bool]] = defaultdict(list)
    kinds = {intent: {category(scene, intent) for scene in PICTURES} for intent in INTENTS}
    for scene, intent, other, texts in rows:
        every = [levels(intent, text) for text in texts]
        here, there = ([row[place_of(s)] for row in every] for s in (scene, other))
        for text, row, now, then in zip(texts, every, here, there, strict=True):
            verdict = len({bool(level < 0) for level in row}) > 1
            found["verdict_can_change"].append(verdict)
            found["level_can_change"].append(len(set(row)) > 1)
            found["verdict_changes"].append((now < 0) != (then < 0))
            found["level_changes"].append(now != then)
            by_rule[rule(text, scene)].append(verdict)
        if here[0] != here[1]:
            orders = np.sign(every[0] - every[1])
            found["safer_can_change"].append(len(set(orders)) > 1)
            found["safer_changes"].append(bool(np.sign(there[0] - there[1]) != np.sign(here[0] - here[1])))
        gaps = [helpfulness(s, intent, texts[0]) - helpfulness(s, intent, texts[1]) for s in (scene, other)]
        if gaps[0]:
            found["more_helpful_changes"].append(bool(np.sign(gaps[0]) != np.sign(gaps[1])))
        found["hazard_can_change"].append(None in kinds[intent] and len(kinds[intent]) > 1)
        found["category_can_change"].append(len(kinds[intent]) > 1)
    shares = {name: share(hits) for name, hits in found.items()}
    return {**shares, "verdict_can_change_by_rule": {name: share(hits) for name, hits in sorted(by_rule.items())}}


def twin_needs(kind: str, count: int, levels: Levels, seed: int) -> dict[str, float]:
    """The same for twins: what changes between their two pictures."""
    rng = random.Random(f"{seed}/{kind}/picture share")
    verdicts, orders = [], []
    for _ in range(count):
        pair = twins(kind, rng)
        rows = [[levels(pair.intent, text)[place_of(scene)] for text in pair.texts] for scene in pair.scenes]
        verdicts += [(a < 0) != (b < 0) for a, b in zip(*rows, strict=True)]
        if kind == "counterfactual_safety":
            orders.append((rows[0][0] > rows[0][1]) != (rows[1][0] > rows[1][1]))
        elif kind == "counterfactual_helpfulness":
            values = [[helpfulness(scene, pair.intent, text) for text in pair.texts] for scene in pair.scenes]
            orders.append((values[0][0] > values[0][1]) != (values[1][0] > values[1][1]))
    return {"verdict_changes": share(verdicts)} | ({"order_changes": share(orders)} if orders else {})


def from_text(rows: list[tuple[Scene, Intent, Scene, tuple[str, str]]], levels: Levels) -> dict[str, dict[str, float]]:
    """How well the label is told from question and response, by counts over the generator's draws."""
    keys, labels = [], []
    for scene, intent, _, texts in rows:
        for text in texts:
            parsed = parse(text)
            parts = replace(parsed.slots, count="", colour="")  # they say nothing about the level
            bare = replace(parts, name="", object="", place="")
            keys.append(((intent, parts, bool(parsed.garbled)), (intent, bare)))
            labels.append(int(levels(intent, text)[place_of(scene)]))
    half = len(keys) // 2
    return {
        "other_draws": told(keys[:half], labels[:half], keys[half:], labels[half:]),
        "same_draws": told(keys, labels, keys, labels),
    }


def told(seen: list[Any], labels: list[int], asked: list[Any], truth: list[int]) -> dict[str, float]:
    """The table of ``seen`` asked about others: by all parts, or, if these did not occur, without the name."""
    counts: dict[Any, Counter[int]] = defaultdict(Counter)
    for (full, bare), label in zip(seen, labels, strict=True):
        counts[full][label] += 1
        counts[bare][label] += 1
    overall = Counter(labels)
    stated, likeliest = [], []
    for full, bare in asked:
        table = counts.get(full) or counts.get(bare) or overall
        stated.append(sum(n for level, n in table.items() if level < 0) / table.total())
        likeliest.append(table.most_common(1)[0][0])
    p = torch.tensor(stated, dtype=torch.float64)
    harmful = torch.tensor([level < 0 for level in truth])
    return {
        "verdict_accuracy": round(float(((p >= 0.5) == harmful).double().mean()), 4),
        "harm_auroc": round(float(binary_auroc(p, harmful.long())), 4),
        "level_accuracy": round(float(np.mean([a == b for a, b in zip(likeliest, truth, strict=True)])), 4),
    }


def blind(rows: list[tuple[Scene, Intent, Scene, tuple[str, str]]]) -> dict[str, dict[str, float]]:
    """By intent the best mean helpfulness of one response to all pictures, and of the best response to each.

    The parts of a response add up, so each part is chosen for itself.
    """
    found = {}
    for intent in INTENTS:
        pictures = [scene for scene, asked, _, _ in rows if asked == intent]
        right = [write(Slots("full", s.count, s.colour, s.object, s.context)) for s in pictures]
        empty = np.array([helpfulness(s, intent, "") for s in pictures]) + NO_WORDS
        gains = {
            kind: np.array([[helpfulness(s, intent, text) for s in pictures] for text in texts]) - empty
            for kind, texts in candidates(pictures).items()
        }
        seen = {kind: rows.max(0) for kind, rows in gains.items()}
        seen["name"] = np.array([helpfulness(s, intent, name) for s, name in zip(pictures, right, strict=True)]) - empty
        blind_gain = sum(max(float(rows.mean(1).max()), 0.0) for rows in gains.values())
        seeing_gain = sum(float(np.maximum(best, 0).mean()) for best in seen.values())
        base = float(empty.mean())  # of a response that says something and gains nothing
        found[intent] = {"blind": round(base + blind_gain, 2), "seeing": round(base + seeing_gain, 2)}
    return found


def candidates(pictures: list[Scene]) -> dict[str, list[str]]:
    """Sentences that may be the best ones: names with the commonest colour and count, acts whose verb fits, warnings."""
    colour, count = (Counter(getattr(s, part) for s in pictures).most_common(1)[0][0] for part in ("colour", "count"))
    texts: dict[str, list[str]] = defaultdict(list)
    for text, (kind, slots) in sentences().items():
        named = slots.name != "full" or (slots.colour, slots.count) == (colour, count)
        if named and slots.verb in ("", slots.act_object) and write(slots) == f"{text} .":  # one wording of each
            texts[kind].append(f"{text} .")
    return texts


def measured(pairs: int, twin_pairs: int, seed: int = 0) -> dict[str, Any]:
    """Everything."""
    levels = Levels()
    rows = drawn_pairs(pairs, seed)
    return {
        "about": {
            "what": "the world's own rules and generator; no model, no pictures",
            "pairs": pairs,
            "twins": twin_pairs,
            "seed": seed,
        },
        "needs_the_picture": needs(rows, levels),
        "best_from_text": from_text(rows, levels),
        "best_response_without_the_picture": blind(rows[:1000]),
        "twins": {kind: twin_needs(kind, twin_pairs, levels, seed) for kind in COUNTERFACTUALS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/picture_share.json"))
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--twins", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    text = json.dumps(measured(options.pairs, options.twins, options.seed), indent=1)
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
