"""Parts of the report about policies: the reward-cost plane, wins, harm, grounding, capability, over-optimisation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safe_rlhf_v.evaluation.verdicts import select
from safe_rlhf_v.reports.blocks import Bar, Bars, Block, Card, Curve, Point, Scatter, Severity, Table, Text, Unit
from safe_rlhf_v.reports.charts import UNKNOWN, number

Json = Mapping[str, Any]
PICTURES = {
    "real": "its own picture",
    "other": "another picture",
    "blank": "a blank picture",
    "none": "no picture",
    "typographic": "the question written into the picture",
    "harmless_prefix": "a harmless text before the question",
}
SHARES = ("harmful", "severe", "refused", "over_refused", "joint", "unjudged", "garbled", "unfinished", "no_response")
"""Values that are written in per cent."""
CAPABILITY = (
    "description",
    "harmless_helpfulness",
    "over_refused",
    "refused",
    "garbled",
    "kl",
    "entropy",
    "length",
    "unfinished",
)
HEADLINES = ("harmful", "severe", "joint", "helpfulness", "reward", "cost", "level", *CAPABILITY)


def unit(name: str) -> Unit:
    """How a value is written."""
    return "share" if name in SHARES else ""


def interval(row: Json | None, written_as: Unit) -> str:
    """A figure with its interval as text."""
    if not row or row["value"] is None:
        return UNKNOWN
    low, high = (number(row[name], written_as).removesuffix(" %") for name in ("low", "high"))
    return number(row["value"], written_as) + (f" ({low} to {high})" if row["low"] is not None else "")


def asked(row: Json) -> str:
    """Policy and mode in words."""
    return f"{row['policy']}, {mode_words(row['mode'])}"


def mode_words(mode: str) -> str:
    """A mode in words."""
    return f"at the entropy of {mode.removeprefix('matched:')}" if mode.startswith("matched:") else mode


def splits_of(rows: Sequence[Json]) -> list[str]:
    """Splits in their order."""
    return list(dict.fromkeys(row["split"] for row in rows))


def on(split: str, summary: Json) -> str:
    """`` on SPLIT``, where there is more than one."""
    return f" on {split}" if len(splits_of(summary["figures"])) > 1 else ""


def judges_with(summary: Json, *names: str) -> list[str]:
    """Judges that give one of these values; the ground truth first, then independent ones."""
    able = {row["judge"] for row in summary["figures"] if row["name"] in names and row["n"]}
    judges = [judge for judge in summary["judges"] if judge["name"] in able]
    judges.sort(key=lambda judge: (not judge["truth"], not all(judge["independent_of"].values())))
    return [judge["name"] for judge in judges]


def plane(summary: Json) -> Iterator[Block]:
    """Learned reward against learned cost, and true helpfulness against true harm, with the budget and the series of policies."""
    budget = summary["budget"]
    rewards = judges_with(summary, "reward")
    costs = judges_with(summary, "cost")
    pairs = [(reward, "reward", cost, "cost") for reward in rewards[:1] for cost in costs[:1]]
    harm = set(judges_with(summary, "harmful"))
    pairs += [
        (judge, "helpfulness", judge, "harmful") for judge in judges_with(summary, "helpfulness") if judge in harm
    ][:1]
    for split in splits_of(summary["figures"]):
        for reward, up, cost, right in pairs:
            limit = budget["limit"] if budget and budget["judge"] == cost and right == "cost" else None
            points, curves = _points(summary, split, (cost, right), (reward, up))
            label = "" if limit is None else f"budget {number(limit)}"
            x_axis = _words(right) if right == cost else f"{_words(right)}, by {cost}"
            y_axis = up if up == reward else f"{up}, by {reward}"
            caption = f"{'Learned' if right == 'cost' else 'Judged'} values{on(split, summary)}"
            yield Scatter(caption, x_axis, y_axis, points, curves, limit, label)
    if budget:
        rows = [
            [r["policy"], r["split"], r["mode"], interval(r, ""), r["verdict"]]
            for r in budget["policies"]
            if not r["mode"].startswith("matched:")
        ]
        caption = f"The budget of {number(budget['limit'])} on the mean cost by {budget['judge']}"
        yield Table(caption, ["policy", "split", "mode", "mean cost, 95 % interval", "budget"], rows)


def _words(name: str) -> str:
    return "share of harmful responses" if name == "harmful" else name


Axis = tuple[str, str]
"""Judge and name of a value."""


def _points(summary: Json, split: str, x_axis: Axis, y_axis: Axis) -> tuple[list[Point], list[Curve]]:
    points: list[Point] = []
    curves: list[Curve] = []
    series: dict[str, list[tuple[float, float, float]]] = {}
    for policy in summary["policies"]:
        places = {}
        for mode in ("sampled", "greedy"):
            x, y = (_value(summary, policy["name"], split, mode, axis) for axis in (x_axis, y_axis))
            if x is not None and y is not None:
                places[mode] = (x, y)
        labelled = "sampled" if "sampled" in places else "greedy"
        for mode, (x, y) in places.items():
            hollow = mode != labelled
            points.append(Point(x, y, f"{policy['name']}, greedy" if hollow else policy["name"], hollow=hollow))
        if len(places) == 2:
            curves.append(Curve([places["sampled"], places["greedy"]], dashed=True))
        if policy.get("series") and labelled in places:
            step = policy.get("step")
            order = float(step) if step is not None else places[labelled][0]
            series.setdefault(policy["series"], []).append((order, *places[labelled]))
    curves += [Curve([(x, y) for _, x, y in sorted(several)]) for several in series.values()]
    return points, curves


def _value(summary: Json, policy: str, split: str, mode: str, axis: Axis) -> float | None:
    judge, name = axis
    rows = select(summary["figures"], policy=policy, split=split, mode=mode, picture="real", judge=judge, name=name)
    return rows[0]["value"] if rows else None


def win_bars(summary: Json) -> Iterator[Block]:
    """Win rates by the leading judge of each axis; those by the others in a card."""
    comparisons = summary["comparisons"]
    truth = {judge["name"] for judge in summary["judges"] if judge["truth"]}
    for axis in dict.fromkeys(row["axis"] for row in comparisons):
        of_axis = select(comparisons, axis=axis)
        judges = sorted(dict.fromkeys(row["judge"] for row in of_axis), key=lambda judge: judge not in truth)
        first, *others = [_win_bars(summary, select(of_axis, judge=judge), judge, axis) for judge in judges]
        yield first
        if others:
            yield Card(f"{axis.capitalize()} by other judges", blocks=others)


def _win_bars(summary: Json, rows: Sequence[Json], judge: str, axis: str) -> Bars:
    bars = []
    for row in rows:
        controlled = row["length_controlled"]
        counts = f"{number(row['wins'])} won, {number(row['ties'])} ties, {number(row['losses'])} lost"
        missing = (
            f"; {number(row['missing'])} without a response, a loss where it is the policy's" if row["missing"] else ""
        )
        note = f"{counts}{missing}; at equal length {interval(controlled, 'share')}"
        matched = row["mode"].startswith("matched:")
        mode = "sampled, the start at the same entropy" if matched else row["mode"]
        severity: Severity | None = (
            None if row["low"] is None else "good" if row["low"] > 0.5 else "alarm" if row["high"] < 0.5 else None
        )
        label = f"{row['policy']}, {mode}{on(row['split'], summary)}"
        bars.append(Bar(label, row["value"], row["low"], row["high"], note, severity))
    return Bars(
        f"Wins on {axis} by {judge}", bars, reference=0.5, reference_label=f"50 %: as good as {summary['start']}"
    )


def harm(summary: Json) -> Iterator[Block]:
    """Harm, severe harm and joint success of every policy by every judge, then by category and by level."""
    for split in splits_of(summary["figures"]):
        judges = judges_with(summary, "harmful")
        for name, caption in (
            ("harmful", "Harmful responses"),
            ("severe", "Severe harm"),
            ("joint", "Harmless and helpful"),
        ):
            bars = [
                Bar(
                    asked(row),
                    row["value"],
                    row["low"],
                    row["high"],
                    f"{number(row['n'])} responses",
                )
                for judge in judges[:1]
                for row in select(summary["figures"], split=split, picture="real", judge=judge, name=name)
            ]
            if bars:
                yield Bars(f"{caption} by {judges[0]}{on(split, summary)}", bars)
        more: list[Block] = []
        for judge in judges:
            for table, bounds in _by_groups(summary, split, judge):
                if judge == judges[0]:
                    yield table
                    more.append(bounds)
                else:
                    more += [table, bounds]
        rows = [
            [asked(row), row["judge"], *_harm_cells(summary, row)]
            for judge in judges
            for row in select(summary["figures"], split=split, picture="real", judge=judge, name="harmful")
        ]
        header = ["policy", "judge", "harmful", "severe", "joint success", "without a verdict"]
        more.insert(0, Table("Harm by every judge", header, rows))
        if rows:
            yield Card(f"Harm: intervals, and other judges{on(split, summary)}", blocks=more)


def _harm_cells(summary: Json, row: Json) -> Iterator[str]:
    at = {name: row[name] for name in ("policy", "split", "mode", "picture", "judge")}
    for name in ("harmful", "severe", "joint", "unjudged"):
        yield interval(next(iter(select(summary["figures"], **at, name=name)), None), "share")


def _by_groups(summary: Json, split: str, judge: str) -> Iterator[tuple[Table, Table]]:
    """Tables with one column for each policy, sampled if it was, each without and with intervals."""
    for by, name, caption in (
        ("category", "harmful", "Harmful responses by category"),
        ("intent", "harmful", "Harmful responses by intent"),
        ("intent", "severe", "Severe harm by intent"),
        ("level", "share", "Responses by safety level"),
    ):
        rows = select(summary["groups"], split=split, judge=judge, by=by, name=name)
        columns = _columns(rows)
        groups = list(dict.fromkeys(row["group"] for row in rows))
        table = {(row["policy"], row["mode"], row["group"]): row for row in rows}
        if rows and groups != ["(unknown)"]:
            values = [[table.get((*column, group)) for column in columns] for group in groups]
            sizes = [number(max((row["n"] for row in line if row), default=0), "count") for line in values]
            header = [
                by,
                *(f"{policy}, {mode}" if mode != "sampled" else policy for policy, mode in columns),
                "responses",
            ]
            title = f"{caption}, by {judge}{on(split, summary)}"
            lines = list(zip(groups, values, sizes, strict=True))
            cells = [[group, *(row and row["value"] for row in line), size] for group, line, size in lines]
            bounds = [[group, *(interval(row, "share") for row in line), size] for group, line, size in lines]
            yield (
                Table(title, header, cells, "share", shaded=True),
                Table(f"{title}: 95 % intervals", header, bounds, folded=True),
            )


def _columns(rows: Sequence[Json]) -> list[tuple[str, str]]:
    """One mode of each policy: sampled, else the first."""
    modes: dict[str, str] = {}
    for row in rows:
        if row["policy"] not in modes or row["mode"] == "sampled":
            modes[row["policy"]] = row["mode"]
    return list(modes.items())


def grounding(summary: Json) -> Iterator[Block]:
    """Bars for the real and another picture and transformed prompts, sampled; every picture and mode in a table."""
    rows = summary["grounding"]["policies"]
    for split in splits_of(rows):
        tables: list[Block] = []
        for name in ("helpfulness", "reward", "harmful"):
            for judge in judges_with(summary, name)[:1]:
                own = select(rows, split=split, judge=judge, name=name)
                caption = f"{_words(name).capitalize()} by {judge}{on(split, summary)}"
                if own and (name != "reward" or not judges_with(summary, "helpfulness")):
                    yield _picture_bars(own, caption, unit(name))
                if own:
                    tables.append(_picture_table(own, f"{caption}: every picture and mode", unit(name)))
        yield from tables
    for form, count in (summary["facts"].get("left_out") or {}).items():
        of = number(summary["facts"]["grounding_prompts"], "count")
        yield Text(
            f"{PICTURES[form].capitalize()}: {count} of {of} prompts are left out, because they cannot be put so. A change is "
            "between the same prompts in both forms."
        )


def _picture_bars(rows: Sequence[Json], caption: str, written_as: Unit) -> Bars:
    columns = _columns(rows)
    several = [
        row for row in rows if (row["policy"], row["mode"]) in columns and row["picture"] not in ("blank", "none")
    ]
    bars = []
    for row in several or rows:
        change = row["change"]
        note = f"change {interval(change, written_as)}" if change else ""
        label = f"{row['policy']}: {PICTURES.get(row['picture'], row['picture'])}"
        bars.append(Bar(label, row["value"], row["low"], row["high"], note, None if change else "good"))
    lowest = min((row["low"] for row in rows if row["low"] is not None), default=0.0)
    share = written_as == "share"
    return Bars(caption, bars, written_as, 0.0 if share else min(0.0, lowest), 1.0 if share else None)


def _picture_table(rows: Sequence[Json], caption: str, written_as: Unit) -> Table:
    values = {(row["policy"], row["mode"], row["picture"]): row for row in rows}
    asked = list(dict.fromkeys((row["policy"], row["mode"]) for row in rows))
    pictures = [picture for picture in PICTURES if any(row["picture"] == picture for row in rows)]
    cells = [
        [f"{policy}, {mode}", *(interval(values.get((policy, mode, picture)), written_as) for picture in pictures)]
        for policy, mode in asked
    ]
    return Table(caption, ["policy", *(PICTURES[picture] for picture in pictures)], cells, folded=True)


def capability(summary: Json) -> Iterator[Block]:
    """What alignment may not cost: one column for each policy and mode, and the differences to the start in a second table."""
    for split in splits_of(summary["figures"]):
        for rows, caption, folded in (
            (summary["figures"], "Capability, refusals and distance", False),
            (
                [row for row in summary["differences"] if row["against_mode"] == row["mode"]],
                "Differences to the start",
                True,
            ),
        ):
            own = [row for row in select(rows, split=split, picture="real") if row["n"] and row["name"] in CAPABILITY]
            columns = [
                column for column in dict.fromkeys((r["policy"], r["mode"]) for r in own) if ":" not in column[1]
            ]
            table = {(row["name"], row["judge"], row["policy"], row["mode"]): row for row in own}
            names = sorted(
                dict.fromkeys((r["name"], r["judge"]) for r in own), key=lambda one: CAPABILITY.index(one[0])
            )
            cells = [
                [name.replace("_", " "), judge or "measured"]
                + [interval(table.get((name, judge, *column)), unit(name)) for column in columns]
                for name, judge in names
            ]
            if cells:
                header = ["value", "judge", *(f"{policy}, {mode}" for policy, mode in columns)]
                yield Table(f"{caption}{on(split, summary)}", header, cells, folded=folded)
    measured = {row["policy"] for row in summary["figures"] if row["name"] in ("kl", "kl_bound") and row["n"]}
    unknown = [policy["name"] for policy in summary["policies"] if policy["name"] not in measured]
    if unknown and (summary["start"] is not None or measured):
        yield Text(
            f"The divergence from the start was not measured of {', '.join(unknown)}: that needs a sampled response, and a "
            "network of the same kind as the start's with the same tokenizer."
        )


def overoptimisation(summary: Json) -> Iterator[Block]:
    """One plot for each learned value beside an independent one."""
    for row in summary["overoptimisation"]:
        learned, independent = (_by(row[side]) for side in ("learned", "independent"))
        points: list[Point] = []
        curves: list[Curve] = []
        for side, label in (("learned", learned), ("independent", independent)):
            scaled = _scaled(row["points"], side, row[side]["better"])
            points += [Point(x, y, label, hollow=i < len(scaled) - 1) for i, (x, y) in enumerate(scaled)]
            curves.append(Curve(scaled, dashed=side == "learned"))
        parting = row["parting"]
        words = f"they part at step {number(parting['step'])}" if parting else ""
        where = f"{row['series'] or 'training'}, {row['mode']}{on(row['split'], summary)}"
        caption = f"Learned {learned} (dashed) and independent {independent}: {where}"
        limit = parting["step"] if parting else None
        yield Scatter(
            caption, "training step", "scaled: the best checkpoint of each curve is 1", points, curves, limit, words
        )
        cells = [
            [p["step"], p["policy"], interval(p["learned"], ""), interval(p["independent"], "")] for p in row["points"]
        ]
        yield Table("Figures of the plot", ["step", "policy", learned, independent], cells, folded=True)


def _by(curve: Json) -> str:
    """A value and its judge."""
    return curve["name"] if curve["name"] == curve["judge"] else f"{curve['name']} by {curve['judge']}"


def _scaled(points: Sequence[Json], side: str, better: int) -> list[tuple[float, float]]:
    """(step, value), the worst value 0 and the best 1."""
    known = [(point["step"], better * point[side]["value"]) for point in points if point[side]["value"] is not None]
    low = min((value for _, value in known), default=0.0)
    span = max((value for _, value in known), default=0.0) - low
    return [(float(step), (value - low) / span if span > 0 else 0.5) for step, value in known]


def figure_table(summary: Json) -> Iterator[Block]:
    """The headline figures with the real picture, as a folded table."""
    rows = [
        [
            *(row["policy"], row["split"], row["mode"], row["judge"] or "measured", row["name"].replace("_", " ")),
            interval(row, unit(row["name"])),
            number(row["n"], "count"),
            number(row["clusters"], "count"),
        ]
        for row in summary["figures"]
        if row["picture"] == "real" and row["name"] in HEADLINES
    ]
    header = ["policy", "split", "mode", "judge", "value", "figure, 95 % interval", "responses", "image groups"]
    yield Table("Headline figures with the real picture", header, rows, folded=True)
