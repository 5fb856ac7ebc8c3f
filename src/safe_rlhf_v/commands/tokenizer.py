"""``python -m safe_rlhf_v tokenizer``: a word-level tokenizer from the texts of shards."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from safe_rlhf_v.commands.options import AnyPath, check_splits
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.models.corpus_tokenizer import build_tokenizer
from safe_rlhf_v.shards import Manifest, ShardedSplit


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    examples = ("tokenizer --shards data/world --out data/world/tokenizer",)
    return run(write_tokenizer, args, name="tokenizer", show=lambda size: f"{size} tokens written", examples=examples)


def write_tokenizer(shards: AnyPath, out: AnyPath, splits: Sequence[str] | None = None) -> int:
    """Build a word-level tokenizer from the texts of shards, for tiny models.

    Args:
        shards: Shard folder.
        out: Folder to write, a Hugging Face tokenizer.
        splits: Splits to read; without it all.

    Returns:
        The number of tokens.

    Raises:
        ShardError: If the shards cannot be read.
        ValueError: If the list of splits is empty, or names one twice.
    """
    if splits is not None:
        check_splits(splits)
    texts: set[str] = set()
    names = splits or Manifest.load(Path(shards)).splits
    for name, split in [(name, ShardedSplit(Path(shards), name)) for name in names]:
        for record in tqdm(split, desc=f"reading {name}", disable=None):
            texts.add(record.system)
            texts.update(part.text for part in (*record.turns, *record.responses))
    tokenizer = build_tokenizer(texts)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)  # the tokenizer's own writer goes on where it could not
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
