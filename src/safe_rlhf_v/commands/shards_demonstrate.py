"""``python -m safe_rlhf_v shards demonstrate``: responses from a file as demonstrations."""

from collections.abc import Sequence
from pathlib import Path

from safe_rlhf_v.commands.options import AnyPath
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.ingest.demonstrations import Demonstrations, write_demonstrations
from safe_rlhf_v.records.user_files import printable

EXAMPLES = (
    "shards demonstrate --data data/world --split supervised --responses runs/best/responses.jsonl --out data/best",
    "shards demonstrate --data data/world --split train --responses mine.jsonl --policy best --at_most {cost:0} --out data/safe",
)


def main(args: Sequence[str]) -> int:
    """Run ``shards demonstrate``; returns the exit status."""
    return run(demonstrate, args, name="shards demonstrate", show=_as_text, examples=EXAMPLES)


def demonstrate(
    data: AnyPath,
    split: str,
    responses: AnyPath,
    out: AnyPath,
    policy: str | None = None,
    mode: str | None = None,
    at_most: dict[str, float] | None = None,
) -> Demonstrations:
    """Write the prompts of a split with the one response each that a file has for them, as shards to be imitated.

    The file may be the responses.jsonl of an evaluation, or any JSONL or CSV file with the columns key and response. Prompts
    without a response, with a fault in its place or with an empty one are left out and counted. Labels stay behind: they are
    those of other responses.

    Args:
        data: Shard folder with the prompts.
        split: Its split, which is also the only split that is written.
        responses: File of the responses.
        out: Folder to create.
        policy: Whose responses are taken, where the file has several policies.
        mode: Which responses are taken, where the file has several of a policy: sampled or greedy.
        at_most: Largest values with which a response is taken, as in {cost: 0}; they are read from a line's entry values, and a
            response without them is left out.

    Raises:
        ShardError: If there are no such prompts, or ``out`` cannot be written.
        TableError: If the file cannot be read, a line fits no prompt, or two lines fit one.
    """
    chosen = {name: value for name, value in (("policy", policy), ("mode", mode)) if value is not None}
    return write_demonstrations(Path(data), split, Path(responses), Path(out), chosen, at_most or {})


def _as_text(result: Demonstrations) -> str:
    lines = [f"{printable(str(result.folder))}: {result.written} demonstrations in split {printable(result.split)}"]
    return "\n".join([*lines, *(f"  left out: {count} {reason}" for reason, count in sorted(result.left_out.items()))])
