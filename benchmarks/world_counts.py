"""What the splits of the embedded world hold: shares of levels, rules, ties and harm, without a picture drawn; one JSON file.

python benchmarks/world_counts.py --out docs/evidence/world.json
"""

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safe_rlhf_v.records import Record
from safe_rlhf_v.world.judge import scene_from, scene_of
from safe_rlhf_v.world.render import encode
from safe_rlhf_v.world.scenes import CONTEXTS, INTENTS, Scene
from safe_rlhf_v.world.truth import safety
from safe_rlhf_v.world.write import SIZES, _split

PICTURE = encode(Scene("knife", "red", "water", "one", 0))


def split(name: str, seed: int, turns: bool = False) -> list[Record]:
    """A split as ``write_world`` draws it, every picture being the same one: no truth depends on its pixels."""
    with patch("safe_rlhf_v.world.write.encode", lambda scene: PICTURE):
        return list(_split(name, SIZES[name], random.Random(f"{seed}/{name}"), turns))


def share(hits: Iterable[bool]) -> float:
    return round(statistics.fmean(hits), 4)


def half_ties(agreements: Iterable[float]) -> float:
    """Share of what is above 0, a tie counting half."""
    return round(statistics.fmean((x > 0) + (x == 0) / 2 for x in agreements), 4)


def responses(records: list[Record]) -> dict[str, Any]:
    """Levels, harm and the rules that decide it."""
    truths = [record.truth for record in records if record.truth]
    rules = Counter(rule for t in truths for rule, level in zip(t.rule, t.safety, strict=True) if level < 0)
    every = [level for t in truths for level in t.safety]
    categories = Counter(record.category[0] for record in records if record.category)
    return {
        "responses": len(every),
        "levels": {f"{level:+d}": share(x == level for x in every) for level in range(-3, 4)},
        "harmful": share(x < 0 for x in every),
        "harmful_by_rule": {name: round(count / len(every), 4) for name, count in rules.items()},
        "harmless_prompts": share(record.category == () for record in records),
        "each_category": [round(count / len(records), 4) for count in sorted(categories.values())],
    }


def preferences(records: list[Record]) -> dict[str, float]:
    """Pairs: ties, disagreement, and how often the response of more words is the better one."""
    gaps = []
    for record in records:
        assert record.truth
        (helpful, other), (level, second) = record.truth.helpfulness, record.truth.safety
        longer = len(record.responses[0].text.split()) - len(record.responses[1].text.split())
        gaps.append((helpful - other, level - second, longer))
    return {
        "level_ties": share(not level for _, level, _ in gaps),
        "disagree_where_both_differ": share((h > 0) != (level > 0) for h, level, _ in gaps if h and level),
        "longer_is_more_helpful": half_ties(h * longer for h, _, longer in gaps if h),
        "longer_is_safer": half_ties(level * longer for _, level, longer in gaps if level),
    }


def two_turns(records: list[Record]) -> dict[str, float]:
    """What the level of a response depends on, when history and question share it."""
    rows = []
    for record in records:
        scene, intent = scene_of(record)
        assert record.truth
        shown = scene_from(record.truth.attributes)
        for response in record.responses:
            here = safety(scene, intent, response.text)
            elsewhere = {safety(replace(scene, context=place), intent, response.text) for place in CONTEXTS}
            asked = {safety(scene, other, response.text) for other in INTENTS}
            verdicts = {level < 0 for level in elsewhere}
            wrong = safety(shown, intent, response.text) != here
            rows.append((here < 0, len(elsewhere) > 1, len(verdicts) > 1, len(asked) > 1, wrong))
    names = ("harmful", "level_needs_history", "verdict_needs_history", "level_needs_question", "wrong_by_the_picture")
    shares = {name: share(hits) for name, hits in zip(names, zip(*rows, strict=True), strict=True)}
    return shares | {"harmless_prompts": share(record.category == () for record in records)}


def unsafe_demonstrations(records: list[Record]) -> float:
    """Of the responses that a policy imitates under ``demonstrations_from: helpful`` the share that is labelled unsafe."""
    return share(not record.responses[record.more_helpful or 0].is_safe for record in records)


def measured(seed: int) -> dict[str, Any]:
    """Everything."""
    train, supervised = split("train", seed), split("supervised", seed)
    return {
        "about": {"what": "labels and truths of the embedded world's splits, by its own rules; no model", "seed": seed},
        "train": responses(train) | preferences(train) | {"unsafe_demonstrations": unsafe_demonstrations(train)},
        "supervised": {"unsafe_demonstrations": unsafe_demonstrations(supervised)},
        "test": preferences(split("test", seed)),
        "two_turns_train": two_turns(split("train", seed, True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/world.json"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    text = json.dumps(measured(options.seed), indent=1)
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
