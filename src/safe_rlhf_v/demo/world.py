"""``python -m safe_rlhf_v world``: the embedded world as shards."""

import argparse
import sys

from safe_rlhf_v.commands.argument_types import path, said, whole

EXAMPLES = """examples:
  python -m safe_rlhf_v world --out data/world                     # 17,600 records; the same bytes every time
  python -m safe_rlhf_v world --out data/tiny --size small --seed 1 --sizes train=200,test=40
"""


def main(argv: list[str]) -> int:
    """Write the shards; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v world",
        description="Write the embedded world: synthetic pictures, questions and responses with exact ground truth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=path, required=True, help="folder to create")
    parser.add_argument("--seed", type=whole(0), default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--size", choices=("default", "small"), default="default", help="small is a tenth")
    parser.add_argument("--sizes", default="", metavar="SPLIT=N,...", help="records of single splits")
    options = parser.parse_args(argv)
    from safe_rlhf_v.world import SMALL_SIZES, write_world  # pillow and the shard writer: only now

    try:
        sizes = dict(SMALL_SIZES) if options.size == "small" else {}
        for item in filter(None, options.sizes.split(",")):
            name, _, number = item.partition("=")
            if not number.isascii() or not number.isdigit():
                raise ValueError(f"--sizes takes SPLIT=N,..., not {item!r}")
            sizes[name] = int(number)
        write_world(options.out, seed=options.seed, sizes=sizes)
    except (OSError, ValueError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    print(f"written to {options.out}; look at it with: python -m safe_rlhf_v shards inspect {options.out}")
    return 0
