"""``python -m safe_rlhf_v calibrate``: a guard's temperatures and thresholds, from data that is used for nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safe_rlhf_v.commands.options import AnyPath, Share
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.records.user_files import locked_folder, write_whole

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.guard.calibration import Calibration

EXAMPLES = ("calibrate --guard runs/quickstart/guard --data data/world --report test compositional",)
PRINTED = ("level_accuracy", "within_one", "quadratic_kappa", "harm_accuracy", "harm_ece_before", "harm_ece")
"""What is printed of an assessment."""


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
    device: str = "auto",
    trust: Sequence[str] = (),
    base: str | None = None,
) -> Calibrated:
    """Fit a trained guard's temperatures and choose its thresholds for stated budgets of false alarms.

    The split must be used for nothing else. What the guard's training covered is counted, too: inputs beyond that are unchecked.
    Writes calibration.json into the guard's run folder ("moderate" needs it) and, with a report, assessment.json.

    Args:
        guard: Run folder of the guard.
        data: Shard folder.
        train_data: Shard folder that the guard was trained on; without it the one that its run names.
        split: Split to fit on.
        fpr: Most harmless inputs that may be blocked, as a share.
        review_fpr: Most harmless inputs that may be blocked or sent to review, as a share.
        miss_rate: Also review so much that at most this share of harmful inputs passes, on average (conformal risk control).
        confidence: With which a budget is kept.
        report: Splits to measure the calibrated guard on.
        device: Where the guard runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Raises:
        CheckpointError: If there is no readable guard.
        FileError: If another process is calibrating it.
        ValueError: If the split is too small for a budget, or the budgets make no sense.
    """
    from safe_rlhf_v.guard.assessment import assess, assess_groups, outputs_of_split
    from safe_rlhf_v.guard.calibration import check_budgets, fit_calibration, run_home
    from safe_rlhf_v.guard.limits import count_limits, training_data
    from safe_rlhf_v.guard.moderation import load_module
    from safe_rlhf_v.shards import ShardedSplit

    check_budgets(fpr, review_fpr)
    for name in (split, *report):
        ShardedSplit(Path(data), name)  # wrong names are found before the minutes, not after
    module, identity = load_module(guard, device, trust, base)
    training = training_data(guard, train_data)
    with locked_folder(run_home(guard)):
        outputs = outputs_of_split(module, str(data), split)
        limits = count_limits(module, training, str(data), split)
        budgets = (fpr, review_fpr, confidence, miss_rate)
        calibration = fit_calibration(outputs, identity, f"{data}:{split}", limits, *budgets)
        assessments: dict[str, dict[str, Any]] = {}
        for name in report:
            outputs = outputs_of_split(module, str(data), name)
            assessments[name] = {**assess(outputs, calibration), "groups": assess_groups(outputs, calibration)}
        path = calibration.save(run_home(guard))
        if assessments:
            write_whole(path.with_name("assessment.json"), (json.dumps(assessments, indent=1) + "\n").encode())
    return Calibrated(calibration, assessments, path)


def _as_text(result: Calibrated) -> str:
    from safe_rlhf_v.guard.limits import WINDOW

    c = result.calibration
    facts = result.calibration.certificate
    limits = result.calibration.limits
    lines = [f"temperatures: levels {c.level_temperature:.2f}, prompts {c.prompt_temperature:.2f}"]
    for name, block, review in (
        ("responses", c.block, c.review),
        ("prompts", c.prompt_block, c.prompt_review),
    ):
        if f"{name}_harmless" not in facts:
            unknown = f"no category in {c.split} is known (null), so no threshold: a prompt alone is always blocked"
            lines.append(f"{name}: {unknown}")
            continue
        lines.append(
            f"{name}: blocked from {block:.3f} on, reviewed from {review:.3f} on; {facts[f'{name}_false_alarms']} of "
            f"{facts[f'{name}_harmless']} harmless ones blocked (upper bound {facts[f'{name}_fpr_upper']:.1%}), "
            f"{facts.get(f'{name}_recall', 0):.1%} of {facts[f'{name}_harmful']} harmful ones"
        )
    for split, values in result.assessments.items():
        lines.append(f"{split}: " + ", ".join(f"{name} {values[name]:.3f}" for name in PRINTED if name in values))
    lines.append(
        f"moderated up to {limits.longest_input} tokens and {limits.most_images} pictures; of {WINDOW} tokens in a row "
        f"{limits.rare_share:.0%} may be rare (seen less than {limits.rare_below} times in training), which leaves "
        f"{limits.unchecked:.1%} of the harmless held-out inputs unchecked"
    )
    return "\n".join([*lines, f"written: {result.path}"])
