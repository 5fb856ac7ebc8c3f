"""``python -m safe_rlhf_v world``: the embedded world as shards."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from safe_rlhf_v.commands.options import AnyPath, NonNegativeInt
from safe_rlhf_v.commands.runner import run

EXAMPLES = (
    "world --out data/world                     # 17,600 records; the same bytes every time",
    "world --out data/tiny --size small --seed 1 --sizes train=200,test=40",
    "world --out data/two_turns --two_turns true",
)


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(world, args, name="world", show=_as_text, examples=EXAMPLES)


def world(
    out: AnyPath,
    seed: NonNegativeInt = 0,
    size: Literal["default", "small"] = "default",
    sizes: str = "",
    two_turns: bool = False,
) -> Path:
    """Write the embedded world: synthetic pictures, questions and responses with exact ground truth.

    Args:
        out: Folder to create.
        seed: Same seed, same bytes.
        size: Number of records; small is a tenth.
        sizes: Records of single splits, as train=200,test=40.
        two_turns: Give every prompt a first turn, which tells where the thing of the picture is now: only both turns together say
            what is harmful. Adds the split counterfactual_history.

    Returns:
        The folder.

    Raises:
        ShardError: If the folder cannot be written, or holds data already.
        ValueError: If a split or its size is impossible.
    """
    from safe_rlhf_v.world import SMALL_SIZES, TWO_TURN_SPLITS, write_world  # pillow and the shard writer: only now

    records = dict(SMALL_SIZES) if size == "small" else {}
    if size == "small" and two_turns:
        records |= {name: number // 10 for name, number in TWO_TURN_SPLITS.items()}
    for item in filter(None, sizes.split(",")):
        name, _, number = item.partition("=")
        if not number.isascii() or not number.isdigit():
            raise ValueError(f"--sizes takes SPLIT=N,..., not {item!r}")
        records[name] = int(number)
    write_world(out, seed=seed, sizes=records, two_turns=two_turns)
    return Path(out)


def _as_text(folder: Path) -> str:
    return f"written to {folder}; look at it with: python -m safe_rlhf_v shards inspect {shlex.quote(str(folder))}"
