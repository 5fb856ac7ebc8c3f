"""Parts of the report about judges: trust against the truth, corrected rates, agreement, and a card for each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safe_rlhf_v.evaluation.report_policies import PICTURES, asked, interval, mode_words, on, splits_of
from safe_rlhf_v.evaluation.verdicts import select
from safe_rlhf_v.reports.blocks import Bar, Bars, Block, Card, Confusion, Finding, Histogram, Table, worst_cards_first
from safe_rlhf_v.reports.charts import number

Json = Mapping[str, Any]
HABITS = {
    "position_flips": ("the order changes the choice", "lower is better"),
    "retest": ("the same choice when asked again", "higher is better"),
    "ties": ("ties", ""),
    "longer_preferred": ("the longer one is preferred", "0.5 without bias, if length says nothing"),
    "parse_failures": ("replies that cannot be read", "lower is better"),
    "no_opinion": ("no opinion at all", "lower is better"),
}
TITLES = {
    "position_bias": "Prefers a response for its place",
    "length_bias": "Prefers longer responses",
    "unparsable": "Gives replies that cannot be read",
    "unstable": "Says something else when asked again",
    "errors": "Errs too often",
    "errors_differ": "Its errors differ between policies",
    "wrong_choices": "Prefers the worse response",
    "not_independent": "Not independent",
    "family_of_labels": "Of the family that labelled the data",
}
"""What the findings are called."""
PROBES = {
    "both_orders": "Pairs shown in both orders",
    "identical": "One response, shown as two",
    "padded": "A response against itself with a repeated sentence",
}
CELLS = (("harmful_harmful", "harmful_safe", "harmful_unjudged"), ("safe_harmful", "safe_safe", "safe_unjudged"))


def trust(summary: Json) -> Iterator[Block]:
    """One table: each judge on each policy."""
    rows = [
        [
            judge["name"],
            f"{row['policy']}{on(row['split'], summary)}",
            mode_words(row["mode"]),
            *_quality(row),
            number(row["n"], "count"),
        ]
        for judge in summary["judges"]
        for row in select(judge["against_truth"] or (), by="all")
        if not row["mode"].startswith("matched:")
    ]
    if rows:
        header = [
            "judge",
            "policy",
            "mode",
            "sensitivity",
            "specificity",
            "AUROC",
            "rank correlation of helpfulness",
            "responses",
        ]
        yield Table("Judges against the truth, before and after training against them", header, rows)
    pictures = summary["grounding"]["judges"]
    if pictures:
        cells = [
            [
                row["judge"],
                f"{row['policy']}{on(row['split'], summary)}",
                PICTURES.get(row["picture"], row["picture"]),
                interval(row["changed"], "share"),
                *_quality(row),
                number(row["n"]),
            ]
            for row in pictures
        ]
        header = ["judge", "responses of", "the judge saw", "verdicts changed", "sensitivity", "specificity", "AUROC"]
        yield Table(
            "Do the judges look at the picture?", [*header, "rank correlation of helpfulness", "responses"], cells
        )


def _quality(row: Json) -> list[str]:
    shares = [interval(row[name], "share") for name in ("sensitivity", "specificity")]
    return [*shares, number(row["auroc"]), number(row["rank_correlation"])]


def correction(summary: Json) -> Iterator[Block]:
    """Harm rates after correction by the audit, each with what the judge alone says: bars of one judge, all in a table."""
    for split in splits_of(summary["corrected"]):
        rows = select(summary["corrected"], split=split, name="harmful")
        if not rows:
            continue
        judge = rows[0]["judge"]
        bars = [
            Bar(
                asked(row),
                row["value"],
                row["low"],
                row["high"],
                f"{judge} alone: {number(row['naive'], 'share')}; {number(row['audited'])} of {number(row['n'])} audited"
                + (f", {row['no_verdict']} more without a verdict" if row.get("no_verdict") else ""),
            )
            for row in select(rows, judge=judge)
        ]
        title = f"corrected by an audit by {rows[0]['audited_by'] or 'others'}{on(split, summary)}"
        yield Bars(f"Harmful responses by {judge}, {title}", bars)
        cells = [
            [
                row["judge"],
                asked(row),
                row["name"],
                number(row["naive"], "share"),
                interval(row, "share"),
                number(row["audited"], "count"),
                number(row.get("no_verdict"), "count"),
                number(row["n"], "count"),
            ]
            for row in select(summary["corrected"], split=split)
        ]
        header = [
            "judge",
            "policy",
            "value",
            "the judge alone",
            "corrected, 95 % interval",
            "audited",
            "no verdict",
            "responses",
        ]
        yield Table(f"Rates of every judge, {title}", header, cells, folded=True)


def agreement(summary: Json) -> Iterator[Block]:
    """Agreement of judges where no truth is needed."""
    bars = [
        Bar(row["name"], row["alpha"], row["low"], row["high"], f"raters: {', '.join(row['raters'])}")
        for row in summary["agreement"]
        if row["alpha"] is not None
    ]
    if bars:
        caption = "Krippendorff's alpha between judges (judges of one family are one rater)"
        yield Bars(caption, bars, "", reference=0.8, reference_label="0.8: reliable")
    rows = [
        [
            " and ".join(pair["judges"]),
            row["name"],
            interval({**pair, "value": pair["rate"]}, "share"),
            number(pair["of"], "count"),
        ]
        for row in summary["agreement"]
        for pair in row["pairs"]
    ]
    if rows:
        yield Table(
            "Equal verdicts of every two judges", ["judges", "on", "equal verdicts", "responses"], rows, folded=True
        )


def judge_cards(summary: Json) -> list[Card]:
    """A card for each judge, the worst first."""
    return worst_cards_first([_card(summary, judge) for judge in summary["judges"]])


def _card(summary: Json, judge: Json) -> Card:
    name = judge["name"]
    alarms = [test for test in select(summary["findings"]["tests"], judge=name) if test["alarm"]]
    findings = [Finding("alarm", TITLES[test["name"]], test["text"]) for test in alarms]
    hints = select(summary["findings"]["hints"], judge=name)
    findings += [Finding("warning", TITLES[hint["name"]], hint["text"]) for hint in hints]
    families = ", ".join(judge.get("families") or ()) or "a family of its own"
    kind = " · ".join(part for part in (judge.get("class"), judge.get("about")) if part)
    marks = ["ground truth"] if judge["truth"] else ["not independent"] if hints else []
    blocks: list[Block] = [
        Bars(
            "Responses without a verdict",
            [_bar({"any": "all together"}.get(reason, reason), rate) for reason, rate in judge["faults"].items()],
        )
    ]
    for axis, habits in judge["axes"].items():
        blocks += _habits(axis, habits)
    blocks += _against_truth(judge, summary)
    return Card(name, f"{kind}; family: {families}", marks, findings, blocks)


def _bar(label: str, rate: Json, note: str = "") -> Bar:
    counts = f"{number(rate['count'], 'count')} of {number(rate['of'], 'count')}"
    return Bar(label, rate["rate"], rate["low"], rate["high"], f"{note} ({counts})" if note else counts)


def _habits(axis: str, habits: Json) -> Iterator[Block]:
    bars = [_bar(label, habits[name], note) for name, (label, note) in HABITS.items() if habits[name]]
    if bars:
        yield Bars(f"On {axis}", bars)
    for name, caption in PROBES.items():
        counts = habits[name] or {}
        if any(counts.values()):
            words = [key.replace("_", " ") for key in counts]
            yield Histogram(f"{caption} ({axis})", words, list(counts.values()), "what the judge preferred")


def _against_truth(judge: Json, summary: Json) -> Iterator[Block]:
    rows: Sequence[Json] = judge["against_truth"] or ()
    for row in select(rows, by="all"):
        if row["confusion"]:
            counts = [[row["confusion"][cell] for cell in cells] for cells in CELLS]
            caption = f"{asked(row)}{on(row['split'], summary)}"
            yield Confusion(caption, "truth", "judge", ["harmful", "safe"], ["harmful", "safe", "no verdict"], counts)
    for by in ("category", "intent"):
        cells = [
            [row["group"], f"{asked(row)}{on(row['split'], summary)}", *_quality(row), number(row["n"], "count")]
            for row in select(rows, by=by)
        ]
        if cells:
            header = [
                by,
                "policy",
                "sensitivity",
                "specificity",
                "AUROC",
                "rank correlation of helpfulness",
                "responses",
            ]
            yield Table(f"{judge['name']} by {by}", header, cells, folded=True)
