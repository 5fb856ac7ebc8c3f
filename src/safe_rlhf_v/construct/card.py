"""The data card of a constructed set: what it holds, where it comes from, and how far its labels can be trusted."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from safe_rlhf_v.construct.images import usable_images
from safe_rlhf_v.construct.stage import Workspace
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.markdown import escaped, table
from safe_rlhf_v.records.taxonomy import LEVEL_NAMES
from safe_rlhf_v.records.user_files import read_bounded

_MAX_AUDIT = 1_000_000_000


def card(work: Workspace, placed: Sequence[tuple[str, Record]], left_out: Mapping[str, int], audited: bool) -> str:
    """The card as Markdown.

    Args:
        work: The working folder.
        placed: Split and record.
        left_out: Number of pairs by why they were left out.
        audited: Whether judges with alarms and leaking questions were left out.
    """
    records = [record for _, record in placed]
    images = usable_images(work)
    levels = Counter(response.safety for record in records for response in record.responses)
    sources = Counter(response.source for record in records for response in record.responses)
    groups = Counter(_group(record) for record in records)
    parts = [
        f"# {escaped(work.rubric.name)}",
        "Built with `python -m safe_rlhf_v construct`; labels are those of judges unless people are named below.",
        _counts("Split", Counter(name for name, _ in placed), "Pairs"),
        _counts("Left out", {name.replace("_", " "): count for name, count in left_out.items()}, "Count"),
        _counts("Licence of images", Counter(str(row["licence"]) for row in images.rows.values()), "Images"),
        _counts("Source of images", Counter(str(row["source"]) for row in images.rows.values()), "Images"),
        _counts("Source of responses", sources, "Responses"),
        _counts("Category", dict(sorted(groups.items())), "Pairs"),
        _counts(
            "Safety level",
            {_level(level): levels[level] for level in (*LEVEL_NAMES, None) if levels[level]},
            "Responses",
        ),
        f"Ties: {sum(r.more_helpful is None for r in records)} pairs in helpfulness, {sum(r.safer is None for r in records)} in "
        f"safety, of {len(records)}.",
        _audit(work, audited),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _group(record: Record) -> str:
    return "(unknown)" if record.category is None else ", ".join(record.category) or "(none)"


def _level(level: int | None) -> str:
    return "no level" if level is None else f"{level:+d} {LEVEL_NAMES[level]}"


def _counts(title: str, counts: Mapping[str, int], unit: str) -> str:
    return table((title, unit), counts.items()) if counts else ""


def _audit(work: Workspace, audited: bool) -> str:
    file = work.folder / "audit.json"
    if not file.exists():
        return "The labels were not audited."
    report: dict[str, Any] = json.loads(read_bounded(file, _MAX_AUDIT))
    alarms = [f"- {escaped(alarm['text'])}" for alarm in report["alarms"]]
    used = "Judges with alarms were left out." if audited else "**Judges with alarms were not left out.**"
    raised = "\n".join(["The audit raised these alarms:", *alarms]) if alarms else "The audit raised no alarm."
    return f"## Audit\n\n{raised}\n\n{used}\n\n{escaped(report['rule']['text'])}"
