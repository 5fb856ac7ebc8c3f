"""Records that contradict themselves are named by shard, key and field; noise in labels is no error."""

import json
from dataclasses import replace

import pytest

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.records import PairVotes, Record, Response, Truth, Turn, Votes
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V
from safe_rlhf_v.shards import ShardWriter
from safe_rlhf_v.shards.check import check, examine
from safe_rlhf_v.shards.contradictions import KINDS, contradictions
from tests.shards.conftest import write

GOOD = Record("k", "q ?", (), (Response("a", 2, True, 3.0), Response("b", -1, False, 0.5)), more_helpful=0, safer=0)
TIED = Record("k", "q ?", (), (Response("a", 1, True), Response("b", 1, True)), safer=1, safety_tie=True)


def responses(*changes):
    return tuple(replace(r, **change) for r, change in zip(GOOD.responses, changes, strict=True))


@pytest.mark.parametrize("record", [
    GOOD, TIED, Record("k", "q"), replace(GOOD, safer=None, more_helpful=None), replace(TIED, safer=None, safety_tie=False),
    replace(GOOD, responses=(Response("a"), Response("b"))),
    replace(GOOD, responses=(Response("a", -3), Response("b"))),
    replace(GOOD, responses=(Response("a", 0, True), Response("b", 0, True)), safety_tie=True),
    replace(GOOD, responses=(Response("a"), Response("a")), more_helpful=None, safer=None),
    replace(GOOD, responses=(Response("a", None, True), Response("b", 2)), safer=1), replace(TIED, safer=None),
    replace(GOOD, responses=(Response("a", helpfulness=1), Response("b", helpfulness=1.0))),
    replace(GOOD, responses=(Response("a", helpfulness=1), Response("b", helpfulness=1.0)), helpfulness_tie=True),
    replace(GOOD, votes=PairVotes((0, 1), (-1, -1))), replace(GOOD, history=(Turn("user", "a"), Turn("assistant", "b"))),
])  # fmt: skip
def test_what_agrees_is_not_reported(record):
    assert list(contradictions(record)) == []


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (replace(GOOD, safer=1), [("safer", "safer")]),
        (replace(GOOD, safer=1, responses=responses({"safety": None}, {"safety": None})), [("safer", "safer")]),
        (replace(GOOD, safer=1, responses=responses({"safety": None}, {})), [("safer", "safer")]),
        (replace(GOOD, more_helpful=1), [("helpful", "more_helpful")]),
        (replace(GOOD, responses=responses({"is_safe": False}, {})), [("level", "responses[0].is_safe")]),
        (replace(GOOD, responses=responses({}, {"is_safe": True})), [("level", "responses[1].is_safe")]),
        (replace(GOOD, responses=responses({"safety": 0}, {"safety": 0, "is_safe": False})),
         [("level", "responses[1].is_safe"), ("tie", "safety_tie")]),
        (replace(GOOD, safety_tie=True), [("tie", "safety_tie")]),
        (replace(TIED, safety_tie=False), [("tie", "safety_tie")]),
        (replace(TIED, responses=(Response("a", 1), Response("a", 1))), [("identical", "safer")]),
        (replace(TIED, safer=None, more_helpful=0, responses=(Response("a"), Response("a"))), [("identical", "more_helpful")]),
        (Record("k", "q", (), (Response("a", 1), Response("a", 2))), [("identical", "responses[1]")]),
        (Record("k", "q", (), (Response("a"), Response("b"), Response("a")), more_helpful=2), [("identical", "more_helpful")]),
        (Record("k", "q", (), (Response("a", None, True), Response("b", -2)), safer=1), [("safer", "safer")]),
        (Record("k", "q", (), (Response("a", 2), Response("b", None, False)), safer=1), [("safer", "safer")]),
        (Record("k", "q", (), (Response("a", None, True), Response("b", None, False)), safety_tie=True), [("tie", "safety_tie")]),
        (Record("k", "q", (), (Response("a", 2), Response("b", None, False)), safety_tie=True), [("tie", "safety_tie")]),
        (Record("k", "q", (), (Response("a"), Response(" a\n")), safer=1), [("identical", "safer")]),
        (Record("k", " \n"), [("empty", "question")]),
        (Record("k", "q", history=(Turn("user", ""), Turn("assistant", " "))),
         [("empty", "history[0].text"), ("empty", "history[1].text")]),
        (replace(GOOD, helpfulness_tie=True), [("tie", "helpfulness_tie")]),
        (replace(GOOD, votes=PairVotes((1, -1), (0,))), [("votes", "more_helpful")]),
        (replace(GOOD, responses=responses({"votes": Votes((0, 1), (True,), (3,))}, {"votes": Votes((-2, 1), (True,))})),
         [("votes", "responses[0].safety"), ("votes", "responses[1].is_safe")]),
        (Record("k", "q", (), (Response(""),)), [("empty", "responses[0].text")]),
    ],
)  # fmt: skip
def test_each_contradiction_is_named_by_field(record, found):
    assert [(kind, field) for kind, field, _ in contradictions(record)] == found
    assert {kind for kind, _ in found} <= set(KINDS)


def folder(root, *records):
    with ShardWriter(root, name="x", licence="MIT", taxonomy=BEAVERTAILS_V) as writer:
        for record in records:
            writer.write("train", record)
    return root


def test_the_command_names_shard_key_and_field_and_writes_all_of_them(tmp_path, capsys):
    bad = [replace(GOOD, key=f"k-{i}", safer=1) for i in range(20)] + [replace(GOOD, key="level", more_helpful=1)]
    root = folder(tmp_path / "data", GOOD, *bad)
    assert check(root) == []
    assert main(["check", str(root), "--report", str(tmp_path / "report.jsonl")]) == 0
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert "train-000000.tar: record 'k-0', field 'safer': is 1 at level -1; 0 is at level 2" in printed
    assert (
        "record 'level', field 'more_helpful'" in printed
        and "20 x 'safer' contradicts" in printed
        and "no error" in printed
    )
    assert printed.count("warning: ") == 4  # three of a kind
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [record.key for record in bad]
    assert main(["check", str(root), "--report", str(tmp_path / "report.jsonl")]) == 2  # never overwritten
    assert "report.jsonl: file exists" in capsys.readouterr().err


def test_many_errors_are_counted_and_bounded(tmp_path, capsys):
    root = write(tmp_path / "data", n=70, per_shard=70)
    path = root / "train-000000.tar"
    path.write_bytes(path.read_bytes().replace(b'"safety":-1', b'"safety":-2'))
    assert main(["check", str(root)]) == 1
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("error: ") == 50 and "... and 21 more errors" in captured.out
    assert "71 error(s)" in captured.out  # 70 records and the file


def test_twins_must_exist_and_name_each_other(tmp_path):
    def twin(key, other):
        return Record(key, f"q {key}", truth=Truth((), (), {}, other))

    records = [twin("a", "b"), twin("b", "a"), twin("c", "nobody"), twin("d", "a"), Record("e", "q e"), twin("f", "e")]
    findings = list(examine(folder(tmp_path / "data", *records)))
    assert [(f.key, f.field, f.kind) for f in findings] == [(key, "truth.twin", "twin") for key in ("c", "d", "f")]


def test_foreign_tar_files_are_named_and_only_those_that_look_like_shards_are_errors(tmp_path):
    root = folder(tmp_path / "data", GOOD)
    (root / "photos.tar").write_bytes(b"")
    (root / "train-000001.tar").write_bytes(b"")
    assert {f.file: f.severity for f in examine(root)} == {"photos.tar": "warning", "train-000001.tar": "error"}


def test_the_world_contradicts_itself_only_by_the_noise_of_its_labels(tmp_path):
    from safe_rlhf_v.world import write_world
    from safe_rlhf_v.world.write import SIZES

    sizes = {name: 16 for name in SIZES}
    write_world(tmp_path / "world", sizes=sizes, progress=False)
    found = list(examine(tmp_path / "world"))
    assert {finding.severity for finding in found} <= {"warning"}
    assert {finding.kind for finding in found} <= {"safer", "level", "helpful"}  # nothing structural
    assert main(["check", str(tmp_path / "world")]) == 0
