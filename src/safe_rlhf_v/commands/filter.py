"""``python -m safe_rlhf_v filter``."""

import argparse
import sys
from typing import Any

from safe_rlhf_v.commands.argument_types import path, said, whole
from safe_rlhf_v.commands.reading_options import add_reading_options


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v filter",
        description="Filter or relabel training shards with a trained, calibrated guard, into a new shard folder. 'drop' "
        "leaves out every record with something the guard does not allow; 'relabel' writes the guard's levels over the "
        "annotators'. A record with anything that could not be checked is left out either way, and counted.",
        epilog="Beside the shards: filter.json, what was dropped or changed and why; dropped.jsonl, one line per dropped record.",
    )
    parser.add_argument("--guard", type=path, required=True, help="run folder of a calibrated guard")
    parser.add_argument("--input", type=path, required=True, help="shard folder")
    parser.add_argument("--output", type=path, required=True, help="shard folder to create")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="splits to take (default: all)")
    parser.add_argument(
        "--action",
        choices=("drop", "relabel"),
        default="drop",
        help="leave records out, or write the guard's labels into them (%(default)s)",
    )
    parser.add_argument(
        "--judge",
        choices=("responses", "prompts", "both"),
        default="responses",
        help="drop for the responses, the prompt, or either; records without responses are judged as prompts (%(default)s)",
    )
    parser.add_argument("--keep-review", action="store_true", help="drop what is blocked only, not what needs review")
    parser.add_argument("--missing-only", action="store_true", help="relabel only responses without a level")
    parser.add_argument("--batch-size", type=whole(1), default=32, help="records per pass of the model (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where the guard runs: cpu, cuda, ... (%(default)s)")
    add_reading_options(parser)
    options = parser.parse_args(argv)
    from safe_rlhf_v.guard.filtering import Rules, filter_shards  # torch: seconds to import
    from safe_rlhf_v.guard.moderation import Guard
    from safe_rlhf_v.shards import Manifest, ShardedSplit

    try:
        rules = Rules(options.action, options.judge, options.keep_review, options.missing_only)
        for split in options.split or Manifest.load(options.input).splits:
            ShardedSplit(options.input, split)  # before the guard is built
        guard = Guard.from_pretrained(options.guard, options.device, trust=options.trust, base=options.base)
        report, _ = filter_shards(guard, options.input, options.output, rules, options.split, options.batch_size)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    print(table(report))
    print(f"written: {options.output} (filter.json, dropped.jsonl)")
    return 0


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    columns = ("records", "kept", "dropped", "unchecked", "responses", "changed")
    lines = [f"{'split':<28}" + "".join(f"{name:>11}" for name in columns)]
    for split, counts in report["splits"].items():
        lines.append(f"{split:<28}" + "".join(f"{counts[name]:>11}" for name in columns))
    for heading, name in (
        ("dropped, by reason", "reasons"),
        ("dropped, by the guard's category", "categories"),
        ("dropped, by the guard's level", "levels"),
        ("changed levels", "changes"),
        ("tricks undone in texts", "flags"),
    ):
        total: dict[str, int] = {}
        for counts in report["splits"].values():
            for key, count in counts[name].items():
                total[key] = total.get(key, 0) + count
        if total:
            lines += ["", f"{heading}"]
            lines += [f"  {key:<48}{total[key]:>9}" for key in sorted(total, key=lambda k: (-total[k], k))]
    return "\n".join(lines)
