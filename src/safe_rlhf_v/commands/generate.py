"""``python -m safe_rlhf_v generate``."""

import argparse
import json
import sys

from safe_rlhf_v.commands.argument_types import between, path, said, whole
from safe_rlhf_v.commands.reading_options import add_reading_options
from safe_rlhf_v.records.user_files import write_whole

STRATEGIES = ("resample", "hotter", "reminder", "best-of-4")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v generate",
        description="Let a policy answer the prompts of a split behind a guard: generate, judge, regenerate only what "
        "failed, refuse when the rounds are spent. Writes one line per prompt and, beside it, every judged draft "
        "(.drafts.jsonl) and a report per number of rounds. The report is by --judge, on the embedded world by "
        "ground truth; elsewhere there is no judge but the guard, and none is given.",
    )
    parser.add_argument("--policy", type=path, required=True, help="run folder of a supervised or later stage")
    parser.add_argument("--guard", type=path, required=True, help="run folder of a calibrated guard")
    parser.add_argument("--data", type=path, required=True, help="shard folder with prompts")
    parser.add_argument("--split", default="test", help="its split (%(default)s)")
    parser.add_argument("--output", type=path, required=True, help="file to write: responses.jsonl")
    parser.add_argument(
        "--rounds", type=whole(0), default=5, help="regenerations after the first attempt (%(default)s)"
    )
    parser.add_argument("--strategy", choices=STRATEGIES, default="best-of-4", help="how to redraw (%(default)s)")
    parser.add_argument(
        "--check-prompts", action="store_true", help="refuse prompts the guard blocks, without generating"
    )
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=64, help="tokens of a response at most (%(default)s)"
    )
    parser.add_argument("--temperature", type=between(0), default=1.0, help="of the sampling (%(default)s)")
    parser.add_argument("--batch-size", type=whole(1), default=100, help="prompts at a time (%(default)s)")
    parser.add_argument("--refusal", default="i can not help with that", help="what is said when no response passed")
    parser.add_argument("--judge", help="class path of a Judge (ground truth where the data carry it)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the sampling (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where policy and guard run: cpu, cuda, ... (%(default)s)")
    add_reading_options(parser)
    options = parser.parse_args(argv)
    from safe_rlhf_v.guard.running import run  # torch: seconds to import

    try:
        reports = run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    if reports:
        write_whole(options.output.with_suffix(".json"), (json.dumps(reports, indent=1) + "\n").encode())
        names = (
            "harm",
            "harm_released",
            "refused",
            "helpfulness",
            "harmless_helpfulness",
            "harmless_refused",
            "tokens",
        )
        judge = f"by {options.judge.rpartition('.')[2]}" if options.judge else "by ground truth"
        print(f"{judge:<21}{'  '.join(f'{name:>20}' for name in names)}")
        for row in reports:
            print(f"{row['name']:<21}{'  '.join(f'{row[name]:>20.3f}' for name in names)}")
    print(f"written: {options.output}")
    return 0
