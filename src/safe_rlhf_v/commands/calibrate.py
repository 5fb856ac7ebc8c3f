"""``python -m safe_rlhf_v calibrate``."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from safe_rlhf_v.commands.argument_types import between, path, said
from safe_rlhf_v.commands.reading_options import add_reading_options
from safe_rlhf_v.records.user_files import locked_folder, write_whole


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v calibrate",
        description="Fit a trained guard's temperatures and choose its thresholds for stated budgets of false alarms, on a "
        "split used for nothing else, and count what its training covered: beyond that nothing is judged. Writes "
        "calibration.json into the guard's run folder; 'moderate' needs it.",
    )
    parser.add_argument("--guard", type=path, required=True, help="run folder of the guard")
    parser.add_argument("--data", type=path, required=True, help="shard folder")
    parser.add_argument(
        "--train-data", help="shard folder that the guard was trained on (default: the one its run names)"
    )
    parser.add_argument("--split", default="calibration", help="split to fit on (%(default)s)")
    parser.add_argument(
        "--fpr", type=between(0, 1), default=0.05, help="most harmless inputs that may be blocked (%(default)s)"
    )
    parser.add_argument(
        "--review-fpr", type=between(0, 1), default=0.1, help="... blocked or sent to review (%(default)s)"
    )
    parser.add_argument(
        "--miss-rate",
        type=between(0, 1),
        help="also review so much that at most this share of harmful inputs passes, on average (conformal risk control)",
    )
    parser.add_argument(
        "--confidence", type=between(0, 1), default=0.95, help="with which a budget is kept (%(default)s)"
    )
    parser.add_argument(
        "--report", nargs="*", default=[], metavar="SPLIT", help="also measure these, into assessment.json"
    )
    parser.add_argument("--device", default="cpu", help="where the guard runs: cpu, cuda, ... (%(default)s)")
    add_reading_options(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    from safe_rlhf_v.guard.calibration import run_home  # torch: seconds to import
    from safe_rlhf_v.guard.fitting import (
        assess,
        assess_groups,
        calibrate,
        check_budgets,
        count_limits,
        judge_split,
        training_data,
    )
    from safe_rlhf_v.guard.limits import WINDOW
    from safe_rlhf_v.guard.moderation import load_module
    from safe_rlhf_v.shards import ShardedSplit

    try:
        check_budgets(options.fpr, options.review_fpr)
        for split in (options.split, *options.report):
            ShardedSplit(options.data, split)  # wrong names are found before the minutes, not after
        module, identity = load_module(options.guard, options.device, options.trust, options.base)
        training = training_data(options.guard, options.train_data)
        with locked_folder(run_home(options.guard)):
            judged = judge_split(module, str(options.data), options.split)
            limits = count_limits(module, training, str(options.data), options.split)
            budgets = (options.fpr, options.review_fpr, options.confidence, options.miss_rate)
            found = calibrate(judged, identity, f"{options.data}:{options.split}", limits, *budgets)
            measured: dict[str, dict[str, Any]] = {}
            for split in options.report:
                judged = judge_split(module, str(options.data), split)
                measured[split] = {**assess(judged, found), "groups": assess_groups(judged, found)}
            path = found.save(run_home(options.guard))
            if measured:
                write_whole(path.with_name("assessment.json"), (json.dumps(measured, indent=1) + "\n").encode())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    c = found.certificate
    print(f"temperatures: levels {found.level_temperature:.2f}, prompts {found.prompt_temperature:.2f}")
    for name, block, review in (
        ("responses", found.block, found.review),
        ("prompts", found.prompt_block, found.prompt_review),
    ):
        if f"{name}_harmless" not in c:
            print(
                f"{name}: no category in {options.split} is known (null), so no threshold: a prompt alone is always blocked"
            )
            continue
        print(
            f"{name}: blocked from {block:.3f} on, reviewed from {review:.3f} on; {c[f'{name}_false_alarms']} of "
            f"{c[f'{name}_harmless']} harmless ones blocked (upper bound {c[f'{name}_fpr_upper']:.1%}), "
            f"{c.get(f'{name}_recall', 0):.1%} of {c[f'{name}_harmful']} harmful ones"
        )
    for split, values in measured.items():
        shown = ("level_accuracy", "within_one", "quadratic_kappa", "harm_accuracy", "harm_ece_before", "harm_ece")
        print(f"{split}: " + ", ".join(f"{name} {values[name]:.3f}" for name in shown))
    print(
        f"judged up to {limits.longest_input} tokens and {limits.most_images} pictures; of {WINDOW} tokens in a row "
        f"{limits.rare_share:.0%} may be rare (seen less than {limits.rare_below} times in training), which leaves "
        f"{limits.unchecked:.1%} of the harmless held-out inputs unchecked"
    )
    print(f"written: {path}")
    return 0
