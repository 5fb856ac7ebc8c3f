"""Examples of alarms: pairs that show what is meant, with pictures, texts and the judge's own words."""

from collections.abc import Mapping, Sequence

from safe_rlhf_v.construct.alarms import Check, Gold
from safe_rlhf_v.construct.grounding import Finding
from safe_rlhf_v.construct.judging import Judgement, Probe
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.measures import both, choices, contradicting, padded_pairs, picture_reading, values
from safe_rlhf_v.construct.questions import Item
from safe_rlhf_v.construct.responses import Pair
from safe_rlhf_v.scoring.judge import AXES, Axis

_PROBES: dict[str, tuple[Probe, ...]] = {
    "position_bias": ("compare",),
    "length_bias": ("padded",),
    "too_many_ties": ("compare",),
    "unstable": ("compare", "repeat"),
    "picture_not_read": ("rate", "swapped"),
    "against_gold": ("compare",),
}
"""Whose replies an alarm shows."""


def examples_of(
    check: Check, opinions: Mapping[Axis, Sequence[Judgement]], pairs: Mapping[str, Pair], gold: Gold | None, most: int
) -> list[Row]:
    """Pairs that show an alarm about a judge.

    Args:
        check: The alarm.
        opinions: The judge's, by axis.
        pairs: All pairs by key.
        gold: Gold items.
        most: Largest number of examples.
    """
    rows: list[Row] = []
    for axis in AXES if check.axis is None else (check.axis,):
        own = opinions.get(axis, ())
        for key, note in _pairs_with_notes(check, axis, own, gold):
            if len(rows) < most and key in pairs:
                rows.append(_example(check.name, check.judge, axis, pairs[key], _replies(check.name, own, key), note))
    return rows


def _pairs_with_notes(check: Check, axis: Axis, own: Sequence[Judgement], gold: Gold | None) -> list[tuple[str, str]]:
    """(pair, note) of pairs that show the alarm."""
    match check.name:
        case "position_bias":
            note = f"Chose the response that stood {check.side}, in both orders."
            return [(key, note) for key in contradicting(own, check.side == "first")]
        case "length_bias":
            note = "Preferred the response with a sentence said again, in both orders."
            return [(key, note) for key, preferred in padded_pairs(own).items() if preferred]
        case "too_many_ties":
            return [(key, "Both orders: a tie.") for key, choice in choices(own).items() if choice == -1]
        case "unstable":
            changed = both(values(own, "compare", 0, 1), values(own, "repeat", 0, 1))
            return [(key, "The same question, asked twice.") for key, first, second in changed if first != second]
        case "picture_not_read":
            return [(key, "The same rating beside another picture.") for key in picture_reading(own).unmoved]
        case "against_gold" if gold is not None:
            wrong = [
                (key, choice) for key, choice in choices(own).items() if choice == 1 - gold.choices[axis].get(key, 9)
            ]
            return [(key, f"Chose response {choice + 1}, the gold item says {2 - choice}.") for key, choice in wrong]
        case "unparsable":
            faulty = {one.pair: "A reply that cannot be read is no label." for one in own if one.fault == "unparsable"}
            return list(faulty.items())
    return []


def _replies(name: str, own: Sequence[Judgement], key: str) -> list[str]:
    if name == "unparsable":
        return [one.reply for one in own if one.pair == key and one.fault == "unparsable"]
    return [one.reply for one in own if one.pair == key and one.probe in _PROBES[name]]


def leak_examples(pairs: Mapping[str, Pair], findings: Mapping[str, Finding], most: int) -> list[Row]:
    """Questions that do not need their picture."""
    by_item = {pair.item.key: pair for pair in pairs.values()}
    leaking = [by_item[key] for key, finding in findings.items() if finding.leaks and key in by_item]
    note = "Response and verdict are the same without the picture."
    return [_example("leak", None, None, pair, [], note) for pair in leaking[:most]]


def _example(alarm: str, judge: str | None, axis: Axis | None, pair: Pair, replies: list[str], note: str) -> Row:
    return {
        "alarm": alarm,
        "judge": judge,
        "axis": axis,
        "key": pair.key,
        **_prompt(pair.item),
        "responses": [{"text": text, "source": source} for text, source in zip(pair.texts, pair.sources, strict=True)],
        "replies": replies,
        "note": note,
    }


def _prompt(item: Item) -> Row:
    category = None if item.category is None else list(item.category)
    return {"pictures": [item.image["file"]], "question": item.question, "category": category}
