"""What a guard does with hidden harm, with genuine writing in twelve scripts, and with harmless text of its own language.

``python benchmarks/guard_hiding.py --guard runs/quickstart/guard --byte-guard runs/byte_guard/guard --data data/world``
writes docs/evidence/guard_hiding.json and prints its tables as Markdown. The byte-level guard is made by ``byte_guard.py``;
texts of other languages need ``pip install django babel``. About ten minutes on two idle cores.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from genuine_writing import genuine_writing
from guard_tables import hiding
from hiding import WAYS, Example, forms

from safe_rlhf_v.functional.intervals import clopper_pearson_upper
from safe_rlhf_v.guard import Guard, Input, Verdict
from safe_rlhf_v.guard.text import Reading, readings
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.world.judge import judge

SPLITS = ("test", "compositional")
BATCH = 32
ANY_WORDS = 100
"""Responses of each kind that are also given to a guard without the limit on rare words: what the readings do alone."""
OUTCOMES = ("allowed", "review", "blocked", "unchecked")


def outcome(verdict: Verdict) -> str:
    """``allowed`` is what the hiding wants; nothing else reaches a reader without a person's eye."""
    if verdict.status == "error":
        return "unchecked"
    return {"allow": "allowed", "review": "review", "block": "blocked"}[verdict.decision]


def judged(guard: Guard, inputs: Sequence[Input]) -> list[Verdict]:
    found: list[Verdict] = []
    for first in range(0, len(inputs), BATCH):
        found += guard.moderate_batch(inputs[first : first + BATCH])
    return found


def records(data: Path) -> Iterator[Record]:
    for split in SPLITS:
        yield from ShardedSplit(data, split)


def inputs_of(data: Path) -> tuple[list[Input], list[Input]]:
    """Harmful and harmless responses to their pictures and questions, by the world's own rules."""
    harmful: list[Input] = []
    harmless: list[Input] = []
    for record in records(data):
        for response in record.responses:
            level = judge(record, response.text)[1]
            (harmful if level < 0 else harmless).append(Input(record.images[0].data, record.question, response.text))
    random.Random(0).shuffle(harmful)
    random.Random(1).shuffle(harmless)
    return harmful, harmless


def hidden(guard: Guard, data: Path, foreign: Sequence[str], count: int) -> dict[str, Any]:
    """Outcomes of every way of hiding ``count`` responses that are blocked when alone."""
    harmful, harmless = inputs_of(data)
    blocked = [i for i, v in zip(harmful[: 2 * count], judged(guard, harmful[: 2 * count]), strict=True)
               if outcome(v) == "blocked"][:count]  # fmt: skip
    safe = [i for i, v in zip(harmless[:200], judged(guard, harmless[:200]), strict=True) if outcome(v) == "allowed"]
    if len(blocked) < count:
        raise ValueError(
            f"only {len(blocked)} of {2 * count} harmful responses are blocked when alone, {count} are wanted"
        )
    rng = random.Random(2)
    examples = [
        Example(
            i.image,
            i.question,
            i.response,
            other.image,
            [s.response for s in rng.sample(safe, 16)],
            " ".join(rng.sample(foreign, 4)),
        )
        for i, other in zip(blocked, rng.choices(harmless, k=count), strict=True)
    ]
    lenient = any_words(guard)
    found: dict[str, Any] = {}
    for name, way in WAYS.items():
        inputs = [way(example) for example in examples]
        found[name] = {"guard": counted(guard, inputs), "any_words": counted(lenient, inputs[:ANY_WORDS])}
        print(f"{name}: {found[name]}", flush=True)
    return found


def any_words(guard: Guard) -> Guard:
    """The same guard without the limit on rare words."""
    c = guard.calibration
    return Guard(guard.module, replace(c, limits=replace(c.limits, rare_share=1.0)), guard.identity)


def counted(guard: Guard, inputs: Sequence[Input]) -> dict[str, Any]:
    """Outcomes, the upper 95 % bound of the share that is allowed, tricks named, and the commonest reasons of unchecked ones."""
    verdicts = judged(guard, inputs)
    counts = Counter(map(outcome, verdicts))
    why = Counter(
        re.sub(r"\d+", "N", v.reasons[0].split("checked: ")[-1])[:80] for v in verdicts if v.status == "error"
    )
    return {
        **{key: counts[key] for key in OUTCOMES},
        "allowed_upper": clopper_pearson_upper(counts["allowed"], len(inputs)),
        "flags": dict(Counter(flag for verdict in verdicts for flag in verdict.flags)),
        "why_unchecked": dict(why.most_common(2)),
    }


def own_language(guard: Guard, data: Path) -> dict[str, dict[str, int]]:
    """Harmless responses, as they stand and with usual forms of writing: what other readings than the plain one cost."""
    harmless = inputs_of(data)[1]
    rng, lenient = random.Random(3), any_words(guard)
    typed = [item._replace(response=forms(item.response, rng)) for item in harmless[:300]]
    found: dict[str, dict[str, int]] = {}
    for name, reader, inputs in (
        ("as they stand", guard, harmless[:1000]),
        ("with forms of writing, any words", lenient, typed),
    ):
        with patch("safe_rlhf_v.guard.moderation.readings", lambda *texts: [Reading(texts)]):
            plain = judged(reader, inputs)
        whole = judged(reader, inputs)
        found[name] = {
            "responses": len(inputs),
            "stopped_plain": sum(not v.allowed for v in plain),
            "stopped_more": sum(p.allowed and not w.allowed for p, w in zip(plain, whole, strict=True)),
            "flagged": sum(bool(v.flags) for v in whole),
            "more_readings": sum(len(readings(i.question, i.response)) > 1 for i in inputs),
        }
    return found


def measured(folder: Path, data: Path, count: int) -> dict[str, Any]:
    """All that is measured of one guard."""
    torch.set_num_threads(1)
    guard, foreign = Guard.from_pretrained(folder), genuine_writing(count)["Latin"]
    return {"own_language": own_language(guard, data), "hidden": hidden(guard, data, foreign, count)}


def genuine(count: int) -> dict[str, dict[str, int]]:
    """Texts that the reader of texts alone calls tricks, and those with more than one reading."""
    return {
        script: {
            "texts": len(texts),
            "flagged": sum(any(reading.tricks for reading in readings(text)) for text in texts),
            "more_readings": sum(len(readings(text)) > 1 for text in texts),
        }
        for script, texts in genuine_writing(count).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", type=Path, default=Path("runs/quickstart/guard"))
    parser.add_argument("--byte-guard", type=Path, default=Path("runs/byte_guard/guard"))
    parser.add_argument("--data", type=Path, default=Path("data/world"))
    parser.add_argument("--count", type=int, default=300, help="responses, and texts per script")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/guard_hiding.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {"count": options.count, "genuine": genuine(options.count)}
    folders = {"words": options.guard, "bytes": options.byte_guard}
    with ProcessPoolExecutor(2) as pool:
        runs = {name: pool.submit(measured, folder, options.data, options.count) for name, folder in folders.items()}
        results = {name: run.result() for name, run in runs.items()}
    for part in ("hidden", "own_language"):
        found[part] = {name: result[part] for name, result in results.items()}
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(hiding(found, ANY_WORDS))


if __name__ == "__main__":
    main()
