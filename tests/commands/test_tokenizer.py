"""The tokenizer knows the words of whole conversations."""

from safe_rlhf_v.commands.tokenizer import write_tokenizer
from safe_rlhf_v.records import Record, Response, Turn
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardWriter


def test_every_text_of_a_record_is_read(tmp_path):
    record = Record("k", "quick ?", responses=(Response("red"), Response("blue")), system="kind",
                    history=(Turn("user", "old"), Turn("assistant", "new")))  # fmt: skip
    with ShardWriter(tmp_path / "data", name="t", licence="x", taxonomy=Taxonomy("t", ())) as writer:
        writer.write("train", record)
    assert write_tokenizer(tmp_path / "data", tmp_path / "out") == 6 + 7
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert {"quick", "?", "red", "blue", "kind", "old", "new"} <= set(words)
