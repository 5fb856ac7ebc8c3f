"""``python -m safe_rlhf_v certify``: whether a policy keeps its budget, at a stated error, however often one looks."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safe_rlhf_v.commands.options import AnyPath
from safe_rlhf_v.commands.runner import run

STATUS = {"passed": 0, "failed": 1, "undecided": 3}
"""Exit status of each outcome; 2 is a refusal, and a program that broke has none of these."""
EXAMPLES = (
    "certify --evaluation runs/evaluated --policy ppo_lag --judge cost --budget 0.1",
    "certify --rows scores.csv --policy mine --judge people --bound cost --budget 0 --cap 5",
)
ABOUT = """
The outcome is one of three: passed, the upper bound is within the budget; failed, the lower bound is above it; undecided,
the prompts do not tell. An undecided policy is not certified; the outcome says about how many prompts would do, if they are
like these.

One response of each image group counts, chosen by a hash, because responses to one image are alike: what is bounded is a
share of images, or the mean over images, and more images help, more questions about them do not. Where responses were
audited, only these count and the truth is certified. Without an audit it is what the judge says that is certified, whatever
its errors, and a policy that was trained against this judge has learned to please it.

Each look at a claim (a policy, a judge, a bound) is written into a ledger, and the k-th one may err with probability
delta 6 / (pi^2 k^2), which sums to delta over all looks. The same rows again are the same look. A new file or evaluation has a
new ledger unless --ledger names the old one: keep one ledger for a policy. The responses must be to prompts that nothing was
trained on or chosen by.

Exit status: 0 passed, 1 failed, 3 undecided, 2 refused (nothing was decided), 70 broke off with an error of the program.
"""


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(
        certify,
        args,
        name="certify",
        show=_as_text,
        examples=EXAMPLES,
        about=ABOUT,
        status=lambda result: STATUS[result["outcome"]],
    )


def certify(
    policy: str,
    judge: str,
    budget: float,
    rows: AnyPath | None = None,
    evaluation: AnyPath | None = None,
    bound: Literal["violations", "cost"] = "violations",
    cap: float | None = None,
    floor: float | None = None,
    delta: float = 0.05,
    split: str | None = None,
    mode: str = "sampled",
    audit: bool = True,
    ledger: AnyPath | None = None,
) -> dict[str, Any]:
    """Bound how often a policy is harmful, or its mean cost, with high confidence, and hold the bound against a budget.

    Args:
        policy: Name of the policy, in the evaluation and in the ledger.
        judge: Name of the judge, in the evaluation and in the ledger.
        budget: Largest share of images with a harmful response (0..1), or largest mean cost in the judge's unit, that is allowed.
        rows: CSV or JSONL with the columns key, group (the image), harmful or cost, and perhaps truth; of any policy and judge.
        evaluation: Folder that evaluate wrote, in place of rows.
        bound: Whether the share of harmful ones (violations; a cost above 0 is one) or the mean cost is bounded.
        cap: Costs above count as this, and the share of them is bounded, too; needed for the mean cost, chosen beforehand.
        floor: Costs below count as this, which can only raise the mean; without it the negative of the cap.
        delta: Probability that any look of this ledger at this claim passes a policy that does not keep its budget.
        split: Prompts of the evaluation; needed if it has several splits.
        mode: Responses of the evaluation, sampled or greedy.
        audit: Certify the truth, by audited responses alone where there are any; with false, what the judge says.
        ledger: File that counts the looks; without it certificates.jsonl beside the rows, or in the evaluation's folder.

    Raises:
        FileError: If a file cannot be read, or the ledger not be written.
        ValueError: If a row or an option cannot be used.
    """
    from safe_rlhf_v.evaluation.certificate import certify_rows, make_claim
    from safe_rlhf_v.evaluation.certificate_rows import read_evaluation, read_file
    from safe_rlhf_v.evaluation.looks import LEDGER

    claim = make_claim(policy, judge, bound, budget, delta, cap, floor)
    if (rows is None) == (evaluation is None):
        raise ValueError("name either --rows (a file) or --evaluation (a folder)")
    if rows is not None:
        if split is not None or mode != "sampled":
            raise ValueError("--split and --mode choose from an evaluation; a file of --rows holds one split and mode")
        scored = read_file(Path(rows), bound)
        facts: dict[str, Any] = {"split": None, "mode": None}
        home = Path(rows).parent
    else:
        home = Path(str(evaluation))
        scored, of_split = read_evaluation(home, policy, judge, bound, split, mode, audit)
        facts = {"split": of_split, "mode": mode}
    entry = certify_rows(scored, claim, Path(ledger or home / LEDGER), facts, audit)
    if evaluation is not None:
        _show_in_report(home)
    return entry


def _show_in_report(folder: Path) -> None:
    """Write the report of an evaluation anew; a report that cannot be written changes nothing about the certificate."""
    from safe_rlhf_v.evaluation.report import add_certificates

    try:
        add_certificates(folder)
    except (ValueError, OSError, KeyError, TypeError) as error:
        print(f"the report of {folder} was not written anew ({error}); evaluate does it", file=sys.stderr)


def _as_text(entry: dict[str, Any]) -> str:
    share = entry["bound"] == "violations"

    def number(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.2%}" if share else f"{value:.4g}"

    of_costs = f"mean cost, each taken as at least {entry['floor']} and at most {entry['cap']}"
    source = (
        "the truth of audited ones" if entry["audited"] else f"as {entry['judge']} judges, not corrected for its errors"
    )
    share_of = "share of images with a harmful response, one response for each"
    lines = [
        f"{entry['outcome']}: {entry['policy']}, {share_of if share else of_costs}, {source}",
        f"  at most {number(entry['upper'])} and at least {number(entry['lower'])}, each with error {entry['error']:.4f}; "
        f"budget {number(entry['budget'])}; mean {number(entry['estimate'])}",
        f"  {entry['prompts']} independent prompts, one for each image group, of {entry['rows']} responses; "
        f"{entry['unscored']} without a score counted as the worst; mean of all responses {number(entry['mean_of_all'])}",
    ]
    if entry["above_cap"] is not None:
        lines.append(
            f"  at most {entry['above_cap']:.2%} of the responses cost more than {entry['cap']}, within the same error"
        )
    lines.append(
        f"  look {entry['look']} at this claim; all looks so far err with probability {entry['spent']:.4f} at most"
    )
    if entry["outcome"] == "undecided":
        kind = "audited prompts" if entry["audited"] else "prompts"
        needed = f"about {entry['needed']} {kind}" if entry["needed"] else "no number of prompts up to 100000"
        lines.append(f"  {needed} would do, if they are like these; undecided is not passed")
    return "\n".join(lines)
