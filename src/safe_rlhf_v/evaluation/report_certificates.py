"""Certificates of an evaluated policy: read from the ledgers of the evaluation and of the policies' runs, shown in its report."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.evidence import number as finite
from safe_rlhf_v.evaluation.looks import CLAIM, LEDGER, read_looks
from safe_rlhf_v.records.user_files import printable
from safe_rlhf_v.reports.blocks import Block, Finding, Findings, Table, Unit
from safe_rlhf_v.reports.charts import UNKNOWN, number

LEAD = (
    "What certify found: bounds that are wrong with a stated probability only, for prompts like these, shared by all looks at a "
    "claim. The intervals of this report are no certificates. The verdict is about the budget of its row; the same responses at "
    "another budget are the same look, and have no row of their own."
)
MOST = 100
"""Looks that are shown, the latest."""
OUTCOMES = {"passed": "✓ passed", "failed": "✗ failed", "undecided": "? undecided"}
HEADER = ["policy", "of what", "by", "on", "budget", "at least", "at most", "prompts", "look", "delta", "verdict"]


def read_certificates(folder: Path, policies: list[Row]) -> Row:
    """The looks in the ledgers of an evaluation and of the runs of its policies, and what is wrong with those ledgers.

    Args:
        folder: Of the evaluation.
        policies: What is known of each policy.
    """
    runs = [Path(policy["about"]) for policy in policies if policy.get("class") == "ModelPolicy" and policy["about"]]
    files = {(home / LEDGER).resolve(): home / LEDGER for home in (folder, *runs)}
    looks: list[Row] = []
    problems: list[str] = []
    for path in files.values():
        try:
            looks += [{**look, "ledger": printable(path)} for look in read_looks(path)] if path.exists() else []
        except (OSError, ValueError) as error:  # the evaluation is none the worse for it
            problems.append(str(error))
    return {"looks": looks, "problems": problems}


def certificates(summary: Mapping[str, Any]) -> Iterator[Block]:
    """Every look, claim by claim, and ledgers that cannot be read."""
    looks = summary["certificates"]["looks"]
    if problems := summary["certificates"]["problems"]:
        yield Findings([Finding("warning", "A ledger of certificates cannot be read", text) for text in problems])
    of_claims: dict[tuple[str, ...], list[Row]] = {}
    for look in looks[-MOST:]:
        of_claims.setdefault(tuple(look[name] for name in ("ledger", *CLAIM)), []).append(look)
    rows = [_row(look, max(one["look"] for one in own)) for own in of_claims.values() for look in own]
    if rows:
        left = f", the latest {MOST} of {number(len(looks), 'count')}" if len(looks) > MOST else ""
        yield Table(f"Certificates, one row for each look{left}", HEADER, rows)


def _row(look: Row, of: int) -> list[str]:
    share = look["bound"] == "violations"
    unit: Unit = "share" if share else ""
    limits = f" within {_number(look, 'floor')} and {_number(look, 'cap')}"
    judge = "audited truth" if look.get("audited") is True else f"{look['judge']}, not corrected"
    return [
        look["policy"],
        "share of images with a harmful response, one for each" if share else f"mean cost{limits}",
        judge,
        ", ".join(str(look[name]) for name in ("split", "mode") if look.get(name)) or "a file of rows",
        *(_number(look, name, unit) for name in ("budget", "lower", "upper")),
        _number(look, "prompts", "count"),
        f"{look['look']} of {of}",
        _number(look, "delta"),
        OUTCOMES.get(str(look.get("outcome")), UNKNOWN),
    ]


def _number(look: Row, name: str, unit: Unit = "") -> str:
    """A number of a line that somebody may have written by hand; a dash for anything else."""
    return number(finite(look.get(name)), unit)
