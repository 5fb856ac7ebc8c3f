"""``python -m safe_rlhf_v shards``: write, look at and check shard folders."""

import argparse
import sys
from pathlib import Path

from safe_rlhf_v.shards.manifest import Manifest, ShardError

EXAMPLES = """examples:
  python -m safe_rlhf_v shards world --out data/world              # the embedded world, synthetic, 17,800 records
  python -m safe_rlhf_v shards world --out data/tiny --size small --seed 1 --sizes train=200,test=40
  python -m safe_rlhf_v shards inspect data/world                  # counts and label histograms
  python -m safe_rlhf_v shards check data/world                    # recompute everything, list every problem
"""


def main(argv: list[str]) -> int:
    """Run one of the ``shards`` commands; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v shards",
        description="Image-text shards: plain WebDataset tar files with a manifest.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("inspect", "print counts and label histograms"), ("check", "list every problem")):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("path", type=Path, help="shard folder")
    world = commands.add_parser("world", help="write the embedded world", description="Write the embedded world (synthetic).")
    world.add_argument("--out", type=Path, required=True, help="folder to create")
    world.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    world.add_argument("--size", choices=("default", "small"), default="default", help="small is a tenth")
    world.add_argument("--sizes", default="", metavar="SPLIT=N,...", help="records of single splits")
    options = parser.parse_args(argv)
    try:
        return {"inspect": _inspect, "check": _check, "world": _world}[options.command](options)
    except (ShardError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _inspect(options: argparse.Namespace) -> int:
    manifest = Manifest.load(options.path)
    print(f"{manifest.name}   licence {manifest.licence}   {manifest.taxonomy.name}: {len(manifest.taxonomy.categories)} categories")
    for name, value in manifest.origin.items():
        print(f"  {name}: {value}")
    print(f"\n{'split':<28}{'records':>9}{'images':>9}{'shards':>8}{'MB':>9}")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        print(f"{name:<28}{split.samples:>9}{split.groups:>9}{len(split.shards):>8}{size:>9.1f}")
    for name, split in manifest.splits.items():
        print(f"\n{name}")
        for field, counts in split.histograms.items():
            total = sum(counts.values())
            cells = "  ".join(f"{value}: {count} ({count / total:.1%})" for value, count in counts.items())
            print(f"  {field:<16}{cells}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from safe_rlhf_v.shards.check import check

    problems = check(options.path, progress=True)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problem(s) in {options.path}" if problems else f"{options.path}: no problem found")
    return int(bool(problems))


def _world(options: argparse.Namespace) -> int:
    from safe_rlhf_v.world import SMALL_SIZES, write_world

    sizes = dict(SMALL_SIZES) if options.size == "small" else {}
    for item in filter(None, options.sizes.split(",")):
        name, _, number = item.partition("=")
        if not number.isdigit():
            raise ValueError(f"--sizes takes SPLIT=N,..., not {item!r}")
        sizes[name] = int(number)
    write_world(options.out, seed=options.seed, sizes=sizes)
    print(f"written to {options.out}; look at it with: python -m safe_rlhf_v shards inspect {options.out}")
    return 0
