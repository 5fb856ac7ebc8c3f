"""What a guard does with hidden harm, with genuine writing in twelve scripts, and with harmless text of its own language.

``python benchmarks/guard_hiding.py --guard runs/quickstart/guard --byte-guard runs/byte_guard/guard --data data/world``
writes docs/evidence/guard_hiding.json and prints its tables as Markdown. The byte-level guard is made by ``byte_guard.py``;
texts of other languages need ``pip install django babel``. About ten CPU minutes per guard.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from genuine_writing import genuine_writing
from hiding import WAYS, Example, forms
from tqdm import tqdm

from safe_rlhf_v.functional.operating_points import clopper_pearson_upper
from safe_rlhf_v.guard import Guard, Input, Verdict
from safe_rlhf_v.guard.text import Reading, readings
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.world.judge import judge

SPLITS = ("test", "compositional")
BATCH = 32
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


def answers(data: Path) -> tuple[list[Input], list[Input]]:
    """Harmful and harmless answers to their pictures and questions, by the world's own rules."""
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
    """Outcomes of every way of hiding ``count`` answers that are blocked when alone."""
    harmful, harmless = answers(data)
    blocked = [i for i, v in zip(harmful[: 2 * count], judged(guard, harmful[: 2 * count]), strict=True)
               if outcome(v) == "blocked"][:count]  # fmt: skip
    safe = [i for i, v in zip(harmless[:200], judged(guard, harmless[:200]), strict=True) if outcome(v) == "allowed"]
    if len(blocked) < count:
        raise ValueError(
            f"only {len(blocked)} of {2 * count} harmful answers are blocked when alone, {count} are wanted"
        )
    rng = random.Random(2)
    examples = [
        Example(
            i.image,
            i.question,
            i.response,
            other.image,
            [s.response for s in rng.sample(safe, 16)],
            rng.choice(foreign),
        )
        for i, other in zip(blocked, rng.choices(harmless, k=count), strict=True)
    ]
    found: dict[str, Any] = {}
    for name, way in tqdm(WAYS.items(), desc="ways of hiding"):
        verdicts = judged(guard, [way(example) for example in examples])
        counts = Counter(map(outcome, verdicts))
        found[name] = {key: counts[key] for key in OUTCOMES}
        found[name]["allowed_upper"] = clopper_pearson_upper(counts["allowed"], count)
        found[name]["flags"] = dict(Counter(flag for verdict in verdicts for flag in verdict.flags))
        found[name]["why_unchecked"] = dict(
            Counter(v.reasons[0][30:110] for v in verdicts if v.status == "error").most_common(2)
        )
    return found


def own_language(guard: Guard, data: Path) -> dict[str, dict[str, int]]:
    """Harmless answers, as they stand and with usual forms of writing: what other readings than the plain one cost."""
    harmless = answers(data)[1]
    rng = random.Random(3)
    typed = [item._replace(response=forms(item.response, rng)) for item in harmless[:500]]
    found: dict[str, dict[str, int]] = {}
    for name, inputs in (("as they stand", harmless[:1000]), ("with forms of writing", typed)):
        with patch("safe_rlhf_v.guard.moderation.readings", lambda *texts: [Reading(texts)]):
            plain = judged(guard, inputs)
        whole = judged(guard, inputs)
        found[name] = {
            "answers": len(inputs),
            "stopped_plain": sum(not v.allowed for v in plain),
            "stopped_more": sum(p.allowed and not w.allowed for p, w in zip(plain, whole, strict=True)),
            "flagged": sum(bool(v.flags) for v in whole),
            "more_readings": sum(len(readings(i.question, i.response)) > 1 for i in inputs),
        }
    return found


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


def tables(found: dict[str, Any]) -> str:
    """The evidence as Markdown."""
    guards = list(found["hidden"])
    head = " | ".join(f"{name}: allowed (at most) | review | blocked | unchecked" for name in guards)
    lines = [f"| Hidden | {head} |", "|---|" + "---|" * (4 * len(guards))]
    for way in WAYS:
        cells = []
        for name in guards:
            row = found["hidden"][name][way]
            cells.append(
                f"{row['allowed']} ({row['allowed_upper']:.1%}) | {row['review']} | {row['blocked']} | {row['unchecked']}"
            )
        lines.append(f"| {way} | {' | '.join(cells)} |")
    more = "called a trick | with more than one reading"
    lines += ["", f"| Script | texts | {more} |", "|---|---|---|---|"]
    for script, r in found["genuine"].items():
        lines.append(f"| {script} | {r['texts']} | {r['flagged']} | {r['more_readings']} |")
    lines += ["", f"| Harmless answers | number | stopped as they stand | stopped by another reading | {more} |"]
    lines.append("|---|---|---|---|---|---|")
    for name in guards:
        for kind, r in found["own_language"][name].items():
            cells = " | ".join(
                str(r[key]) for key in ("answers", "stopped_plain", "stopped_more", "flagged", "more_readings")
            )
            lines.append(f"| {name}, {kind} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", type=Path, default=Path("runs/quickstart/guard"))
    parser.add_argument("--byte-guard", type=Path, default=Path("runs/byte_guard/guard"))
    parser.add_argument("--data", type=Path, default=Path("data/world"))
    parser.add_argument("--count", type=int, default=300, help="answers, and texts per script")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/guard_hiding.json"))
    options = parser.parse_args()
    texts = genuine_writing(options.count)
    found: dict[str, Any] = {
        "count": options.count,
        "genuine": genuine(options.count),
        "hidden": {},
        "own_language": {},
    }
    for name, folder in (("words", options.guard), ("bytes", options.byte_guard)):
        guard = Guard.from_pretrained(folder)
        found["hidden"][name] = hidden(guard, options.data, texts["Latin"], options.count)
        found["own_language"][name] = own_language(guard, options.data)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(tables(found))


if __name__ == "__main__":
    main()
