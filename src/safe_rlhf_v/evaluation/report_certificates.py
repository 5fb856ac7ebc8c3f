"""Certificates of an evaluated policy: read from the ledgers of the evaluation and of the policies' runs, shown in its report."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.certificate import Claim, content_of
from safe_rlhf_v.evaluation.certificate_rows import Bounded, ScoredRow, read_evaluation
from safe_rlhf_v.evaluation.evidence import number as finite
from safe_rlhf_v.evaluation.looks import CLAIM, LEDGER, read_looks
from safe_rlhf_v.records.user_files import printable
from safe_rlhf_v.reports.blocks import Block, Finding, Findings, Table, Unit
from safe_rlhf_v.reports.charts import UNKNOWN, number

LEAD = (
    "What certify found: bounds that are wrong with a stated probability only, for prompts like these, shared by all looks at a "
    "claim. The intervals of this report are no certificates. The verdict is about the budget of its row; the same responses at "
    "another budget are the same look, and have no row of their own. *Spent* is the error of all looks at the claim so far. "
    "*Other responses*: the look was at a file of rows, or at responses that this evaluation does not hold."
)
MOST = 100
"""Looks that are shown, the latest."""
OUTCOMES = {"passed": "✓ passed", "failed": "✗ failed", "undecided": "? undecided"}
_BOUNDS = ["budget", "at least", "at most", "prompts"]
HEADER = ["policy", "of what", "by", "on", *_BOUNDS, "look", "delta", "spent", "verdict"]


def read_certificates(folder: Path, policies: list[Row]) -> Row:
    """The looks in the ledgers of an evaluation and of the runs of its policies, and what is wrong with those ledgers.

    A look at responses that do not stand in the folder is marked ``elsewhere``: the policy of its name was another one then.

    Args:
        folder: Of the evaluation.
        policies: What is known of each policy.
    """
    runs = [Path(policy["about"]) for policy in policies if policy.get("class") == "ModelPolicy" and policy["about"]]
    files = {(home / LEDGER).resolve(): home / LEDGER for home in (folder, *runs)}
    rows_of = cache(partial(_rows, folder))  # many looks are at the same responses, which are large files
    looks: list[Row] = []
    problems: list[str] = []
    for path in files.values():
        try:
            own = read_looks(path) if path.exists() else []
            looks += [{**look, "ledger": printable(path), "elsewhere": not _stands(look, rows_of)} for look in own]
        except (OSError, ValueError) as error:  # the evaluation is none the worse for it
            problems.append(str(error))
    return {"looks": looks, "problems": problems}


def _rows(
    folder: Path, policy: str, judge: str, bound: Bounded, split: str, mode: str, audited: bool
) -> list[ScoredRow]:
    """What a look at responses of this evaluation would count now; nothing where there are none."""
    try:
        return read_evaluation(folder, policy, judge, bound, split, mode, audited)[0]
    except ValueError:
        return []


def _stands(look: Row, rows_of: Callable[..., list[ScoredRow]]) -> bool:
    """Whether a look is at responses of this evaluation as they stand there now."""
    facts = {"split": look.get("split"), "mode": look.get("mode")}
    if not all(isinstance(place, str) for place in facts.values()):
        return False  # a file of rows
    limits: Any = (0.0, 1.0) if look["bound"] == "violations" else (look.get("floor"), look.get("cap"))
    audited = look.get("audited") is True
    rows = rows_of(look["policy"], look["judge"], look["bound"], *facts.values(), audited)
    claim = Claim(look["policy"], look["judge"], look["bound"], 0.0, limits[0], limits[1], look.get("delta", 0.0))
    return bool(rows) and bool(look["digest"] == content_of(rows, claim, facts, audited))


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
        _number(look, "spent"),
        _verdict(look),
    ]


def _verdict(look: Row) -> str:
    """In words; without its mark where it says nothing about the responses of this page."""
    outcome = str(look.get("outcome"))
    words = OUTCOMES.get(outcome, UNKNOWN)
    return f"{outcome}, other responses" if look.get("elsewhere") and outcome in OUTCOMES else words


def _number(look: Row, name: str, unit: Unit = "") -> str:
    """A number of a line that somebody may have written by hand; a dash for anything else."""
    return number(finite(look.get(name)), unit)
