"""A word-level tokenizer built from a corpus, for models trained from scratch on a small closed vocabulary."""

from collections.abc import Iterable
from typing import Any

IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
ANSWER_TOKEN = "<answer>"


def build_tokenizer(texts: Iterable[str]) -> Any:
    """A ``PreTrainedTokenizerFast`` with one token per whitespace-separated word of ``texts``.

    The vocabulary is sorted, so it does not depend on the order of the texts. Special tokens are ``<pad> <bos> <eos>
    <unk> <image> <answer>``.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    specials = [*SPECIAL_TOKENS.values(), IMAGE_TOKEN, ANSWER_TOKEN]
    words = sorted({word for text in texts for word in text.split()} - set(specials))
    vocabulary = {word: i for i, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=[IMAGE_TOKEN, ANSWER_TOKEN], **SPECIAL_TOKENS
    )


def main(argv: list[str]) -> int:
    """``python -m safe_rlhf_v tokenizer``: build a tokenizer from every text of a shard folder."""
    import argparse
    import sys

    from tqdm import tqdm

    from safe_rlhf_v.argument_types import path
    from safe_rlhf_v.shards import Manifest, ShardedSplit

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
    except OSError as error:
        print(f"error: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(tokenizer)} tokens written to {options.out}")
    return 0
