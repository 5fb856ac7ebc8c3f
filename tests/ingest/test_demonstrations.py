"""Responses from a file become demonstrations: what is taken, what is left out and counted, and what is refused."""

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.shards.conftest import write

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.data_modules import SupervisedDataModule
from safe_rlhf_v.ingest.demonstrations import write_demonstrations
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.shards.check import check


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven prompts k-0 .. k-6 with two labelled responses each."""
    return Path(write(tmp_path / "source"))


def line(key: str, text: object = "a response", **fields: object) -> dict[str, object]:
    return {"key": key, "response": text, **fields}


def jsonl(folder: Path, lines: list[dict[str, object]]) -> Path:
    file = folder / "responses.jsonl"
    file.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8")
    return file


def test_what_is_written_and_what_is_left_out(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        line("k-0", "bésser 好", policy="best", mode="sampled", values={"cost": -0.5}),
        line("k-1", "too costly", policy="best", mode="sampled", values={"cost": 0.1}),
        line("k-2", "cost unknown", policy="best", mode="sampled", values={"cost": None}),
        line("k-3", "no values", policy="best", mode="sampled"),
        line("k-4", "", policy="best", mode="sampled", fault="unreadable"),
        line("k-5", "  ", policy="best", mode="sampled", values={"cost": -1}),
        line("k-0", "another policy", policy="start", mode="sampled", values={"cost": -2.0}),
        line("k-0", "another mode", policy="best", mode="greedy", values={"cost": -2.0}),
        line("k-0", "another picture", policy="best", mode="sampled", picture="blank", values={"cost": -2.0}),
        line("k-100", "another split", split="test"),
    ]
    target = tmp_path / "out"
    options = ["--split", "train", "--responses", str(jsonl(tmp_path, lines)), "--policy=best", "--mode=sampled"]
    assert main(["demonstrate", "--data", str(source), *options, "--at_most", "{cost: 0}", "--out", str(target)]) == 0
    text = capsys.readouterr().out
    assert "1 demonstrations in split train" in text and "left out: 1 with cost above 0" in text
    assert "2 without a value 'cost'" in text and "1 with a fault" in text and "1 without a response" in text
    assert "1 with an empty response" in text

    assert check(target) == []
    (record,) = list(ShardedSplit(target, "train"))
    (response,) = record.responses
    before = ShardedSplit(source, "train")[0]
    assert (response.text, response.source, response.safety) == ("bésser 好", "best", None)
    assert (record.key, record.question, record.images) == (before.key, before.question, before.images)
    (batch,) = SupervisedDataModule(str(target), batch_size=1).train_dataloader()
    assert batch.responses == ("bésser 好",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line("k-0"), line("k-0")], "a second response to 'k-0'; the first is in line 1; keep one of them"),
        ([line("k-0", policy="a"), line("k-0", policy="b")], "choose one with --policy: 'a' or 'b'"),
        ([line("k-0", mode="greedy"), line("k-0", mode="sampled")], "choose one with --mode: 'greedy' or 'sampled'"),
        ([line("k-0"), line("elsewhere")], "line 2, column 'key': .* has no 'elsewhere' in split 'train'"),
        ([line("k-0", 7)], "line 1, column 'response': must be text"),
        ([{"response": "a"}], "line 1, column 'key': is missing"),
        ([line(3)], "line 1, column 'key': must be text"),
        ([line("k-0", "\ud800")], "line 1, column 'response'"),
        ([line("k-0", "")], "no response to a prompt of split 'train' can be used"),
        ([], "no response to a prompt of split 'train' can be used"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    lines: list[dict[str, object]], message: str, source: Path, tmp_path: Path
) -> None:
    file = tmp_path / "responses.jsonl"
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    with pytest.raises(TableError, match=message):
        write_demonstrations(source, "train", file, tmp_path / "out", {}, {})
    assert not list((tmp_path / "out").glob("*.tar")) and not (tmp_path / "out" / "manifest.json").exists()


def test_damaged_files_are_refused(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "responses.jsonl"
    file.write_bytes(b'{"key": "k-0", "response": "a"}\n{"key": "k-1", "resp')
    with pytest.raises(TableError, match="line 2"):
        write_demonstrations(source, "train", file, tmp_path / "out", {}, {})


def test_a_csv_file_will_do(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "responses.csv"
    file.write_text("key,response\nk-0,one\nk-1,two\n")
    result = write_demonstrations(source, "train", file, tmp_path / "out", {}, {})
    assert result.written == 2 and Counter(result.left_out) == {"without a response": 5}
