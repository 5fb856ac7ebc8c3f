"""The audit of a constructed data set as a page: what went wrong first, then each judge, the labels, and examples.

What it reads is the content of ``audit.json``; its schema stands in ``construct/audit.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_v.reports.audit_words import MEASURES, explain
from safe_rlhf_v.reports.blocks import (
    Bar,
    Bars,
    Block,
    Card,
    Confusion,
    Example,
    Examples,
    Figure,
    Figures,
    Finding,
    Findings,
    Histogram,
    Picture,
    Point,
    Scatter,
    Section,
    Side,
    Table,
    Text,
    worst_cards_first,
)
from safe_rlhf_v.reports.charts import number
from safe_rlhf_v.reports.page import Page

VERSION = 1
AXES = ("helpfulness", "safety")
Json = Mapping[str, Any]


def audit_page(audit: Json, folder: Path) -> Page:
    """The audit as a page.

    Args:
        audit: Content of ``audit.json``.
        folder: The working folder; pictures of examples are read from inside it only.

    Raises:
        ValueError: If this is no audit, or one of another version.
    """
    if audit.get("format") != "safe_rlhf_v.audit" or audit.get("version") != VERSION:
        raise ValueError(
            f"not an audit of version {VERSION}: format {audit.get('format')!r:.80}, version {audit.get('version')!r:.80}"
        )
    alarms = audit["alarms"]
    sections = [
        Section("What went wrong", audit["rule"]["text"], [Findings(_findings(audit), _all_clear(audit))]),
        Section("At a glance", blocks=[Figures(_key_figures(audit))]),
        Section(
            "Judges",
            "The judge with the most alarms stands first. Bars carry 95 % intervals.",
            [*_judges_in_a_plane(audit), *worst_cards_first([_judge(judge, alarms) for judge in audit["judges"]])],
        ),
        Section("Agreement", AGREEMENT, list(_agreement(audit["agreement"]))),
        Section("Against gold items", GOLD, list(_gold(audit["confusion"])) or [Text("There were no gold items.")]),
        Section("Do the questions need their pictures?", blocks=list(_grounding(audit["grounding"]))),
        Section("What a model would learn from", LABELS, list(_labels(audit["labels"]))),
        Section("Examples", blocks=list(_examples(audit, folder)) or [Text("There are none.")]),
        Section("What was collected", blocks=list(_items(audit["items"]))),
        Section("All tests", blocks=[_tests(audit)]),
    ]
    kind = "synthetic data with a known ground truth" if audit["synthetic"] else "data without a known ground truth"
    facts = [("Data", kind), ("Judges", number(len(audit["judges"]))), ("Tests", number(len(audit["tests"])))]
    return Page(
        f"Audit of {audit['name']}",
        "How far the labels of this data set can be trusted.",
        sections,
        facts,
        sensitive=not audit["synthetic"],
    )


AGREEMENT = (
    "Krippendorff's alpha: 1 if judges agree on every response, 0 if they agree as often as by chance. Judges of one family of "
    "models count as one, because they share their mistakes."
)
GOLD = "Items whose right label is known, judged like all others: the row is the right label, the column what the judge said."
LABELS = (
    "Ties teach nothing, and a model cannot be more accurate than its labels: the ceiling is the best accuracy that can be "
    "expected on held-out labels of the same judges."
)


def _findings(audit: Json) -> list[Finding]:
    """Alarms, and judges that are not independent."""
    findings = [_alarm(alarm) for alarm in audit["alarms"]]
    for judge in audit["judges"]:
        if not judge["independent"]:
            findings.append(_dependence(judge))
    return findings


def _alarm(alarm: Json) -> Finding:
    title, meaning, action = explain(alarm["name"])
    where = " · ".join(part for part in (alarm["judge"], alarm["axis"]) if part) or "the data"
    return Finding("alarm", title, meaning, action, where, alarm["text"])


def _dependence(judge: Json) -> Finding:
    title, meaning, action = explain("not_independent")
    return Finding("warning", title, meaning, action, judge["name"], judge["dependence"])


def _all_clear(audit: Json) -> str:
    return f"None of {number(len(audit['tests']))} tests raised an alarm. That is a good sign and not a proof."


def _key_figures(audit: Json) -> list[Figure]:
    items = audit["items"]
    figures = [
        Figure("Alarms", len(audit["alarms"]), severity="alarm" if audit["alarms"] else "good"),
        Figure("Usable pairs", items["usable_pairs"], "count", f"of {number(items['pairs'])}"),
        Figure(
            "Judges without alarm",
            sum(judge["usable"] for judge in audit["judges"]),
            "count",
            f"of {len(audit['judges'])}",
        ),
    ]
    for axis in AXES:
        if agreement := audit["agreement"].get(axis):
            note = f"{number(agreement['low'])} to {number(agreement['high'])}"
            figures.append(Figure(f"Agreement on {axis} (alpha)", agreement["alpha"], note=note))
    if audit["grounding"]:
        leak = audit["grounding"]["leak"]
        figures.append(Figure("Questions that do not need their picture", leak["rate"], "share", _bounds(leak)))
    for name, model in (("reward", "Reward"), ("cost", "Cost")):
        labels = audit["labels"][name]
        note = f"{number(labels['ties']['rate'], 'share')} ties"
        figures.append(Figure(f"{model} label ceiling", labels["ceiling"], "share", note))
    return figures


def _judges_in_a_plane(audit: Json) -> Iterator[Block]:
    """One point for each judge and axis: how often it flips, and how often it is right."""
    figures = [(judge, axis, own) for judge in audit["judges"] for axis, own in judge["axes"].items()]
    gold = any(_rate(own["gold_choice"]) is not None for _, _, own in figures)
    points = []
    for judge, axis, own in figures:
        x = _rate(own["flips"])
        y = _rate(own["gold_choice" if gold else "retest_choice"])
        if x is not None and y is not None:
            points.append(Point(x, y, f"{judge['name']}, {axis}", None if judge["usable"] else "alarm"))
    if points:
        y_axis = "agreement with gold items" if gold else "the same choice when asked again"
        caption = "Judges and axes; good ones are at the upper left, those with alarms are marked"
        yield Scatter(caption, "share of pairs where the order changes the choice", y_axis, points)


def _rate(rate: Json | None) -> float | None:
    """The number of a rate, ``None`` if nothing was counted."""
    return rate["rate"] if rate else None


def _judge(judge: Json, alarms: Sequence[Json]) -> Card:
    marks = [] if judge["independent"] else ["not independent"]
    findings = [_alarm(alarm) for alarm in alarms if alarm["judge"] == judge["name"]]
    if not judge["independent"]:
        findings.append(_dependence(judge))
    families = ", ".join(judge["families"]) or "a family of its own"
    blocks: list[Block] = [
        Text(f"{explain(name).title}: {reason}.") for name, reason in judge.get("not_tested", {}).items()
    ]
    blocks.append(Bars("Replies that gave no label", list(_rates(judge["faults"], judge["faults"]))))
    for axis, figures in judge["axes"].items():
        blocks += _axis(axis, figures)
    return Card(judge["name"], f"{judge['class']}; family: {families}", marks, findings, blocks)


def _axis(axis: str, figures: Json) -> Iterator[Block]:
    """Charts of a judge on one axis."""
    rates = {**figures, **{f"picture_{name}": rate for name, rate in (figures["picture"] or {}).items()}}
    bars = list(_rates(rates, [name for name in MEASURES if name in rates]))
    if bars:
        yield Bars(f"On {axis}", bars)
    for name, caption in (
        ("both_orders", "Pairs shown in both orders"),
        ("identical", "One response, shown as two"),
        ("padded", "A response against itself with a repeated sentence"),
    ):
        counts = figures[name] or {}
        if any(counts.values()):
            yield _histogram(f"{caption} ({axis})", counts, "what the judge preferred")
    if figures["ratings"]:
        yield _histogram(f"Ratings ({axis})", figures["ratings"], "rating")


def _rates(rates: Json, names: Sequence[str] | Mapping[str, Any]) -> Iterator[Bar]:
    """Bars of the rates that are known."""
    for name in names:
        rate = rates[name]
        if rate and rate["of"]:
            label, note = MEASURES.get(name, (name.replace("_", " "), ""))
            counts = f"{number(rate['count'])} of {number(rate['of'])}"
            yield Bar(label, rate["rate"], rate["low"], rate["high"], f"{note} ({counts})" if note else counts)


def _histogram(caption: str, counts: Mapping[str, float], axis: str) -> Histogram:
    return Histogram(caption, [name.replace("_", " ") for name in counts], list(counts.values()), axis)


def _agreement(agreement: Json) -> Iterator[Block]:
    for axis, values in agreement.items():
        bars = [
            Bar("all judges", values["alpha"], values["low"], values["high"], f"raters: {_names(values['raters'])}")
        ]
        if usable := values["usable"]:
            note = f"raters: {_names(usable['raters'])}"
            bars.append(Bar("without judges with alarms", usable["alpha"], usable["low"], usable["high"], note))
        bars += [
            Bar(f"within {family}", alpha, note="one family: not counted as confirmation", severity="warning")
            for family, alpha in values["within_families"].items()
        ]
        yield Bars(
            f"Alpha on {axis}, {number(values['units'])} responses",
            bars,
            "",
            reference=0.8,
            reference_label="0.8: reliable",
        )
        if values["by_level"]:
            levels = [Bar(f"level {level}", alpha) for level, alpha in values["by_level"].items()]
            yield Bars(f"Each level of {axis} against all others", levels, "")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _gold(confusion: Json) -> Iterator[Block]:
    """One matrix for each judge, and its categories, those with the most mistakes first."""
    judged = {judge: categories for judge, categories in confusion.items() if categories}
    for judge, categories in judged.items():
        total = {name: sum(counts[name] for counts in categories.values()) for name in CONFUSION}
        counts = [[total["harmful_harmful"], total["harmful_safe"]], [total["safe_harmful"], total["safe_safe"]]]
        labels = ["harmful", "safe"]
        yield Confusion(judge, "gold", "judge", labels, labels, counts)
    for judge, categories in judged.items():
        worst = sorted(
            categories, key=lambda name: -categories[name]["harmful_safe"] - categories[name]["safe_harmful"]
        )
        rows = [[name, *(categories[name][cell] for cell in CONFUSION)] for name in worst]
        header = ["category", "harmful, found", "harmful, missed", "safe, called harmful", "safe, found"]
        yield Table(f"{judge} by category", header, rows, "count", folded=True)


CONFUSION = ("harmful_harmful", "harmful_safe", "safe_harmful", "safe_safe")


def _grounding(grounding: Json | None) -> Iterator[Block]:
    if grounding is None:
        yield Text("This was not asked: the construction had no grounding stage.")
        return
    names = ("leak", "answer_leak", "verdict_leak")
    yield Bars("Questions that can be answered without seeing", list(_rates(grounding, names)))
    pictures = {
        "true": "its own picture",
        "other": "another one of its category",
        "blank": "a blank one",
        "none": "none",
    }
    rows = [
        [label, grounding["helpfulness"].get(name), number(grounding["harmful"].get(name), "share")]
        for name, label in pictures.items()
    ]
    header = ["answered and judged with", "mean helpfulness", "judged harmful"]
    yield Table("What the picture changes", header, rows)


def _labels(labels: Json) -> Iterator[Block]:
    for name in ("reward", "cost"):
        part = labels[name]
        yield Figures(
            [
                Figure(f"Pairs for a {name} model", part["pairs"], "count"),
                Figure("Ties", part["ties"]["rate"], "share", _bounds(part["ties"])),
                Figure("Ceiling of accuracy", part["ceiling"], "share", f"{number(part['ceiling_raters'])} raters"),
                *([Figure("Harmful responses", part["harmful"]["rate"], "share")] if "harmful" in part else []),
            ]
        )
    yield _histogram("Responses by safety level", labels["cost"]["levels"], "safety level")


def _bounds(rate: Json) -> str:
    """Bounds of a rate as text."""
    if not rate["of"]:
        return "nothing was counted"
    return f"{number(rate['low'], 'share')} to {number(rate['high'], 'share')}; {number(rate['count'])} of {number(rate['of'])}"


def _items(items: Json) -> Iterator[Block]:
    names = [name for name, value in items.items() if not isinstance(value, Mapping)]
    yield Figures([Figure(name.replace("_", " ").capitalize(), items[name], "count") for name in names])
    for name, caption in (
        ("by_kind", "Questions by kind"),
        ("by_source", "Responses by source"),
        ("by_category", "Questions by category"),
    ):
        counts = sorted(items[name].items(), key=lambda pair: -pair[1])
        yield Bars(caption, [Bar(key, count) for key, count in counts], "count", end=None)


def _tests(audit: Json) -> Table:
    rows = [
        [
            explain(test["name"]).title,
            test["judge"] or "the data",
            test["axis"] or "both",
            test["count"],
            test["of"],
            test["null"],
            test["p"],
            "alarm" if test["alarm"] else "passed",
        ]
        for test in sorted(
            audit["tests"], key=lambda test: (not test["alarm"], 1.0 if test["p"] is None else test["p"])
        )
    ]
    rows += [
        [explain(name).title, judge["name"], "both", None, None, None, None, reason]
        for judge in audit["judges"]
        for name, reason in judge.get("not_tested", {}).items()
    ]
    header = ["tested for", "judge", "axis", "count", "of", "tolerated rate", "p", "result"]
    return Table("Alarms first, then by p", header, rows)


def _examples(audit: Json, folder: Path) -> Iterator[Block]:
    """Examples in the order of the alarms, then leaks."""
    groups: dict[str, list[Example]] = {alarm["name"]: [] for alarm in audit["alarms"]}
    unique = {(e["alarm"], e["judge"], e["axis"], e["key"]): e for e in audit["examples"]}
    for example in unique.values():
        groups.setdefault(example["alarm"], []).append(_example(example, folder))
    for name, examples in groups.items():
        if examples:
            yield Examples(explain(name).title, examples)


def _example(example: Json, folder: Path) -> Example:
    category = example["category"]
    categories = "unknown" if category is None else ", ".join(category) or "none"
    facts = [("judge", example["judge"]), ("axis", example["axis"]), ("category", categories)]
    sides = [
        Side(f"Response {'AB'[i] if i < 2 else i + 1}", response["text"], [("source", response["source"])])
        for i, response in enumerate(example["responses"])
    ]
    replies = [reply for reply in example["replies"] if reply]
    if replies:
        sides.append(Side("The judge's words", "\n\n".join(replies)))
    pictures = [_picture(name, folder, categories) for name in example["pictures"]]
    return Example(
        example["key"],
        example["note"],
        example["question"],
        pictures,
        sides,
        [(name, value) for name, value in facts if value],
    )


def _picture(name: str, folder: Path, category: str) -> Picture:
    """A picture inside the working folder; a name that leads outside is treated as a broken file."""
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a NUL, or a loop of links
        inside = False
    return Picture(folder / name if inside else b"", f"picture of the example; category: {category}")
