"""``python -m safe_rlhf_v tokenizer``."""

import argparse
import sys

from tqdm import tqdm

from safe_rlhf_v.commands.argument_types import path, said
from safe_rlhf_v.models.corpus_tokenizer import build_tokenizer
from safe_rlhf_v.shards import Manifest, ShardedSplit


def main(argv: list[str]) -> int:
    """Build a tokenizer from every text of a shard folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v tokenizer",
        description="Build a word-level tokenizer from the questions and responses of shards (for tiny models).",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the example on one line
        epilog="example: python -m safe_rlhf_v tokenizer --shards data/world --out data/world/tokenizer",
    )
    parser.add_argument("--shards", type=path, required=True, help="shard folder")
    parser.add_argument("--out", type=path, required=True, help="folder to write (a Hugging Face tokenizer)")
    parser.add_argument("--splits", nargs="+", help="splits to read (default: all)")
    options = parser.parse_args(argv)
    texts: set[str] = set()
    try:
        names = options.splits or Manifest.load(options.shards).splits
        for name, split in [(name, ShardedSplit(options.shards, name)) for name in names]:
            for record in tqdm(split, desc=f"reading {name}"):
                texts.update([record.question, *(response.text for response in record.responses)])
        tokenizer = build_tokenizer(texts)
        options.out.mkdir(parents=True, exist_ok=True)  # the tokenizer's own writer goes on where it could not
        tokenizer.save_pretrained(options.out)
    except (OSError, ValueError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    print(f"{len(tokenizer)} tokens written to {options.out}")
    return 0
