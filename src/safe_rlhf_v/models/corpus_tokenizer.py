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
