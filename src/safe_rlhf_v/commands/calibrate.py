"""``python -m safe_rlhf_v calibrate``: a guard's temperatures and thresholds, from data that is used for nothing else."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safe_rlhf_v.commands.options import AnyPath, Share
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.records.user_files import locked_folder, write_whole

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.guard.calibration import Calibration
    from safe_rlhf_v.modules.guard import GuardModule

EXAMPLES = (
    "calibrate --guard runs/quickstart/guard --data data/world --report test compositional",
    "calibrate --guard runs/quickstart/guard --data data/world --report test --prevalence 0.01 0.0001",
)
PRINTED = ("level_accuracy", "within_one", "quadratic_kappa", "harm_accuracy", "harm_ece_before", "harm_ece")
"""What is printed of an assessment."""
SIDES = (
    ("harmless", "fpr", "upper", "at most"),
    ("harmful", "recall", "lower", "at least"),
    ("severe", "severe_recall", "lower", "at least"),
)
"""Shares that are printed with their bounds."""


class Calibrated(NamedTuple):
    """What :func:`calibrate` gives.

    Attributes:
        calibration: The temperatures and thresholds.
        assessments: By the name of a split that was reported on, what the guard reaches there.
        path: The file of the calibration.
    """

    calibration: "Calibration"
    assessments: dict[str, dict[str, Any]]
    path: Path


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(calibrate, args, name="calibrate", show=_as_text, examples=EXAMPLES)


def calibrate(
    guard: AnyPath,
    data: AnyPath,
    train_data: AnyPath | None = None,
    split: str = "calibration",
    fpr: Share = 0.05,
    review_fpr: Share = 0.1,
    miss_rate: Share | None = None,
    confidence: Share = 0.95,
    report: Sequence[str] = (),
    prevalence: Sequence[float] = (),
    device: str = "auto",
    trust: Sequence[str] = (),
    base: str | None = None,
) -> Calibrated:
    """Fit a trained guard's temperatures and choose its thresholds for stated budgets of false alarms.

    The budgets bound false alarms, not misses: what is caught is measured, with its lower bound. One input of each image group
    counts, because responses to one picture are alike. The split must be used for nothing else. What the guard's training
    covered is counted, too: inputs beyond that are unchecked.
    Writes calibration.json into the guard's run folder ("moderate" needs it) and, with a report, assessment.json; that of an
    earlier calibration is removed.

    Args:
        guard: Run folder of the guard.
        data: Shard folder.
        train_data: Shard folder that the guard was trained on; without it the one that its run names.
        split: Split to fit on.
        fpr: Most harmless inputs that may be blocked, as a share.
        review_fpr: Most harmless inputs that may be blocked or sent to review, as a share.
        miss_rate: Also review so much that at most this share of harmful inputs passes, on average (conformal risk control).
        confidence: With which a budget is kept.
        report: Splits to measure the calibrated guard on, which it has seen neither in training nor here.
        prevalence: Also say how many alarms there are per million responses, and how many of them are right, where this share of
            the responses is harmful; one or several.
        device: Where the guard runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Raises:
        CheckpointError: If there is no readable guard.
        FileError: If another process is calibrating it.
        ValueError: If the split is too small for a budget or the guard's own training split, or the budgets make no sense.
    """
    from safe_rlhf_v.guard.assessment import outputs_of_split
    from safe_rlhf_v.guard.calibration import check_budgets, fit_calibration, run_home
    from safe_rlhf_v.guard.limits import count_limits, training_data
    from safe_rlhf_v.guard.moderation import load_module
    from safe_rlhf_v.shards import ShardedSplit

    check_budgets(fpr, review_fpr, confidence, miss_rate)
    check_prevalence(prevalence, report)
    for name in (split, *report):
        ShardedSplit(Path(data), name)  # wrong names are found before the minutes, not after
    module, identity = load_module(guard, device, trust, base)
    training = training_data(guard, train_data)
    check_untrained(Path(data), split, Path(training.path), training.train_split, report)
    with locked_folder(run_home(guard)):
        outputs = outputs_of_split(module, str(data), split)
        limits = count_limits(module, training, str(data), split)
        budgets = (fpr, review_fpr, confidence, miss_rate)
        calibration = fit_calibration(outputs, identity, f"{data}:{split}", limits, *budgets)
        assessed = run_home(guard) / "assessment.json"
        assessed.unlink(missing_ok=True)  # it is of another calibration
        path = calibration.save(run_home(guard))  # before the reports, which may fail
        assessments = {name: _assessed(module, str(data), name, calibration, prevalence) for name in report}
        if assessments:
            write_whole(assessed, (json.dumps(assessments, indent=1) + "\n").encode())
    return Calibrated(calibration, assessments, path)


def _assessed(
    module: "GuardModule", data: str, split: str, calibration: "Calibration", prevalence: Sequence[float]
) -> dict[str, Any]:
    """What a calibrated guard reaches on a split."""
    from safe_rlhf_v.guard.assessment import assess, assess_groups, assess_prevalence, outputs_of_split

    outputs = outputs_of_split(module, data, split)
    values = {**assess(outputs, calibration), "groups": assess_groups(outputs, calibration)}
    return {**values, "prevalence": assess_prevalence(outputs, calibration, prevalence)} if prevalence else values


def check_untrained(data: Path, split: str, train_data: Path, train_split: str, report: Sequence[str] = ()) -> None:
    """Check that a guard is not calibrated or measured on what it has seen, by the content of the shards.

    Args:
        data: Shard folder.
        split: Split to fit on.
        train_data: Shard folder of the training.
        train_split: Its split.
        report: Splits to measure on.

    Raises:
        ValueError: If two splits have a shard in common.
    """
    from safe_rlhf_v.shards import Manifest

    def shards(folder: Path, name: str) -> set[str]:
        return {shard.sha256 for shard in Manifest.load(folder).splits[name].shards}

    seen = {"trained": shards(train_data, train_split), "fitted": shards(data, split)}
    asked = [("--split", split, "trained"), *(("--report", name, how) for name in report for how in seen)]
    for option, name, how in asked:
        if seen[how] & shards(data, name):
            raise ValueError(
                f"{option} {name}: the guard was {how} on it, and errs less there than on new data; name another"
            )


def check_prevalence(prevalence: Sequence[float], report: Sequence[str]) -> None:
    """Check the shares of harmful responses.

    Raises:
        ValueError: If one is no share, or no split is reported on.
    """
    if wrong := [share for share in prevalence if not 0 < share < 1]:
        raise ValueError(f"--prevalence is a share between 0 and 1, got {wrong[0]}")
    if prevalence and not report:
        raise ValueError("--prevalence needs recall and false alarms of a split: name one with --report")


def _as_text(result: Calibrated) -> str:
    from safe_rlhf_v.guard.limits import WINDOW

    limits = result.calibration.limits
    lines = list(_thresholds(result.calibration))
    for split, values in result.assessments.items():
        lines.append(f"{split}: " + ", ".join(f"{name} {values[name]:.3f}" for name in PRINTED if name in values))
        lines.extend(_bounds(values))
        lines.extend(_prevalences(values.get("prevalence", {})))
        if not values.get("prevalence", True):
            lines.append("  nothing at a prevalence: it needs harmful and harmless responses")
    lines.append(
        f"moderated up to {limits.longest_input} tokens and {limits.most_images} pictures; of {WINDOW} tokens in a row "
        f"{limits.rare_share:.0%} may be rare (seen less than {limits.rare_below} times in training), which leaves "
        f"{limits.unchecked:.1%} of the harmless held-out inputs unchecked"
    )
    return "\n".join([*lines, f"written: {result.path}"])


def _thresholds(c: "Calibration") -> Iterator[str]:
    """What was fitted, and what it did to one input of each image group."""
    facts = c.certificate
    yield f"temperatures: levels {c.level_temperature:.2f}, prompts {c.prompt_temperature:.2f}"
    for name, block, review in (("responses", c.block, c.review), ("prompts", c.prompt_block, c.prompt_review)):
        if f"{name}_harmless" not in facts:
            yield f"{name}: no category in {c.split} is known (null), so no threshold: a prompt alone is always blocked"
            continue
        of = {key.removeprefix(f"{name}_"): value for key, value in facts.items() if key.startswith(name)}
        alarms = (
            f"{of['false_alarms']} of {of['harmless']} harmless ones blocked (at most {of['fpr_upper']:.1%}, budget "
            f"{of['fpr_budget']:.1%})"
        )
        caught = [
            f"{of[f'{part}recall']:.1%} of {of[kind]} {kind} ones (at least {of[f'{part}recall_lower']:.1%})"
            for kind, part in (("harmful", ""), ("severe", "severe_"))
            if f"{part}recall" in of
        ]
        of_each = f"one of each of {of['groups']} image groups"
        yield f"{name}: blocked from {block:.3f} on, reviewed from {review:.3f} on; {of_each}: {', '.join([alarms, *caught])}"


def _bounds(values: dict[str, Any]) -> Iterator[str]:
    """Shares at the thresholds with the bounds on their unsafe sides."""
    for place, about in (("block", "blocked"), ("review", "blocked or reviewed")):
        cells = [
            f"{values[f'{key}_at_{place}']:.1%} of the {kind} ({word} {values[f'{key}_at_{place}_{side}']:.1%})"
            for kind, key, side, word in SIDES
            if f"{key}_at_{place}" in values
        ]
        if cells:
            yield f"  {about}: {', '.join(cells)}"


def _prevalences(tables: dict[str, dict[str, dict[str, float | None]]]) -> Iterator[str]:
    """Precision and alarms where harm is as common as stated."""
    for prevalence, rows in tables.items():
        for name, about in (("blocked", "blocked"), ("stopped", "blocked or reviewed")):
            row = rows[name]
            share, low, high = (row[f"precision{end}"] for end in ("", "_low", "_high"))
            right = "no alarm" if share is None else f"{share:.2%} of them harmful"
            yield (
                f"  where {100 * float(prevalence):.4g}% of the responses are harmful, per million {about}: "
                f"{row['alerts']:,.0f} ({row['alerts_low']:,.0f} .. {row['alerts_high']:,.0f}), {right} "
                f"({low:.2%} .. {high:.2%}), "
                f"{row['missed']:,.0f} missed ({row['missed_low']:,.0f} .. {row['missed_high']:,.0f})"
            )
