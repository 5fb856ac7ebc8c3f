"""``python -m safe_rlhf_v moderate``."""

import argparse
import sys

from safe_rlhf_v.commands.argument_types import path, said, whole
from safe_rlhf_v.commands.reading_options import add_reading_options


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v moderate",
        description="Judge shards, a JSON-lines file or a folder of pictures with a trained, calibrated guard. Writes one "
        "line per input, in order. Interrupted, the same command goes on where it stopped, if every input is still the "
        "one that was judged. What cannot be checked is blocked and says why.",
        epilog='JSON lines: {"key": "a1", "image": "photo.jpg", "question": "...", "response": "..."}; leave out what '
        "there is not. Blank lines are no inputs; a line without a key is named by its number. Of a folder every file "
        "named like a picture is judged. Exit status 0, also where inputs were blocked; 2 for a wrong command.",
    )
    parser.add_argument("--guard", type=path, required=True, help="a guard's run folder, calibrated")
    parser.add_argument("--input", type=path, required=True, help="shard folder, .jsonl file or folder of pictures")
    parser.add_argument("--split", help="split of a shard folder")
    parser.add_argument("--output", type=path, required=True, help="file to write: verdicts.jsonl")
    parser.add_argument("--format", choices=("full", "openai"), default="full", help="shape of a line (%(default)s)")
    parser.add_argument("--batch-size", type=whole(1), default=32, help="inputs per pass of the model (%(default)s)")
    parser.add_argument(
        "--balanced-levels", action="store_true", help="name levels as if all were equally frequent; decisions stay"
    )
    parser.add_argument("--device", default="cpu", help="where the guard runs: cpu, cuda, ... (%(default)s)")
    add_reading_options(parser)
    options = parser.parse_args(argv)
    from safe_rlhf_v.guard.files import moderate_file  # torch: seconds to import
    from safe_rlhf_v.guard.inputs import open_entries
    from safe_rlhf_v.guard.moderation import Guard

    try:
        if options.output.exists():
            raise ValueError(f"{options.output} exists; name another file or remove it")
        entries = open_entries(options.input, options.split)
        guard = Guard.from_pretrained(
            options.guard, options.device, options.balanced_levels, trust=options.trust, base=options.base
        )
        counts = moderate_file(guard, entries, options.output, options.format, options.batch_size)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    total = sum(counts.values())
    shares = ", ".join(f"{name} {count} ({count / total:.1%})" for name, count in sorted(counts.items()))
    print(f"{total} verdicts in {options.output}: {shares}")
    return 0
