"""Training data through a guard: what goes, what stays, what is written over, all counted by hand; unchecked never stays."""

import json
from dataclasses import replace

import pytest
from tests.guard_run import WIDE

from safe_rlhf_v.commands.filter import Rules, filter_shards, main, relabelled, table
from safe_rlhf_v.guard.calibration import Calibration
from safe_rlhf_v.guard.verdict import unchecked
from safe_rlhf_v.records import PairVotes, Record, Response, Votes
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardedSplit, ShardWriter
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.manifest import ShardError


class Scripted:
    """Judges a response by its words "LEVEL HARM", and a prompt by the same words in the question."""

    identity = "scripted"
    calibration = Calibration("scripted", "by hand", 1.0, 1.0, 0.8, 0.4, 0.8, 0.4, WIDE, {})

    def __init__(self):
        self.inputs = []

    def unchecked(self, reason):
        return unchecked(reason, self.identity, 0.8)

    def moderate_batch(self, inputs):
        self.inputs += inputs
        return [self.judge(item.question if item.response is None else item.response) for item in inputs]

    def judge(self, text):
        if text.startswith("broken"):
            return self.unchecked(f"text refused (too_long): {len(text)} characters, the limit is 20")
        level, harm = text.split()[:2]
        decision = "block" if float(harm) >= 0.8 else "review" if float(harm) >= 0.4 else "allow"
        category = "fraud" if "fraud" in text else None
        flags = ("invisible",) if "hidden" in text else ()
        return self.unchecked("x")._replace(
            decision=decision, status="ok", harm=float(harm), level=int(level), expected_level=int(level) - 0.25,
            category=category, reasons=("as scripted",), flags=flags,
        )  # fmt: skip


def record(key, question, *responses, **labels):
    answers = tuple(text if isinstance(text, Response) else Response(text) for text in responses)
    return Record(key, question, responses=answers, **labels)


def shards(root, *records, split="train"):
    with ShardWriter(root, name="mine", licence="CC0-1.0", taxonomy=Taxonomy("t", ("fraud",))) as writer:
        for one in records:
            writer.write(split, one)
    return root


RECORDS = (
    record("fine", "0 0.0", "1 0.1", "2 0.2 hidden"),
    record("bad", "0 0.0", "1 0.1", "-2 0.9 fraud"),
    record("unsure", "0 0.0", "-1 0.5"),
    record("unread", "0 0.0", "1 0.1", "broken" + "x" * 30),
    record("asked", "-1 0.95", "1 0.1"),
    record("prompt-only", "-1 0.85"),
)


def run(tmp_path, rules, guard=None, batch_size=2):
    source = shards(tmp_path / "in", *RECORDS)
    report, dropped = filter_shards(guard or Scripted(), source, tmp_path / "out", rules, None, batch_size)
    split = ShardedSplit(tmp_path / "out", "train")
    assert check(tmp_path / "out") == []
    return report, {line["key"]: line for line in dropped}, {(r := split[i]).key: r for i in range(len(split))}


def test_what_the_guard_does_not_allow_goes(tmp_path):
    report, dropped, kept = run(tmp_path, Rules())
    assert list(kept) == ["fine", "asked"] and kept["fine"] == RECORDS[0]
    assert report["splits"]["train"] == {
        "records": 6, "kept": 2, "dropped": 4, "unchecked": 1, "responses": 3, "changed": 0,
        "reasons": {
            "response blocked": 1, "response needs review": 1, "could not be checked: text refused (too_long)": 1,
            "prompt blocked": 1,
        },
        "categories": {"(none)": 2, "fraud": 1},
        "levels": {"-1": 2, "-2": 1},
        "changes": {},
        "flags": {"invisible": 1},
    }  # fmt: skip
    assert dropped["bad"] == {
        "split": "train", "key": "bad", "reason": "response blocked", "explanation": "as scripted", "harm": 0.9, "level": -2,
        "category": "fraud",
    }  # fmt: skip
    assert dropped["unread"]["explanation"].startswith("unsafe: could not be checked")


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (Rules(keep_review=True), ["fine", "unsure", "asked"]),
        (Rules(check="prompts"), ["fine", "bad", "unsure", "unread"]),
        (Rules(check="both"), ["fine"]),
        (Rules(check="both", keep_review=True), ["fine", "unsure"]),
    ],
)
def test_rules(rules, kept, tmp_path):
    assert list(run(tmp_path, rules)[2]) == kept


def test_where_nothing_passes_it_is_said(tmp_path):
    with pytest.raises(
        ValueError, match="nothing passes, so nothing is written; why 2 of 3 records are left out: response"
    ):
        filter_shards(
            Scripted(),
            shards(tmp_path / "in", *RECORDS[1:3], record("bad2", "0 0.0", "-2 0.9")),
            tmp_path / "out",
            Rules(),
        )
    assert not (tmp_path / "out" / "manifest.json").exists()
    with ShardWriter(tmp_path / "two", name="mine", licence="CC0-1.0", taxonomy=Taxonomy("t", ("fraud",))) as writer:
        writer.write("train", RECORDS[0])
        writer.write("test", RECORDS[1])
    report, _ = filter_shards(Scripted(), tmp_path / "two", tmp_path / "left", Rules())
    assert "nothing of test is left, so the new folder has no such split" in table(report)
    assert "nothing of train" not in table(report)


def test_batches_do_not_matter(tmp_path):
    found = [run(tmp_path / str(size), Rules(check="both"), batch_size=size)[0] for size in (1, 4, 100)]
    assert found[0] == found[1] == found[2]


def test_relabelling_writes_levels_signs_and_order(tmp_path):
    report, dropped, kept = run(tmp_path, Rules("relabel"))
    assert list(dropped) == ["unread"]
    bad = kept["bad"]
    assert [(r.safety, r.is_safe) for r in bad.responses] == [(1, True), (-2, False)]
    assert (bad.safer, bad.safety_tie, bad.more_helpful) == (0, False, None)
    assert kept["prompt-only"] == RECORDS[5]
    counts = report["splits"]["train"]
    assert (counts["kept"], counts["dropped"], counts["changed"], counts["unchecked"]) == (5, 1, 6, 1)
    assert counts["changes"] == {"(none) to +1": 3, "(none) to +2": 1, "(none) to -1": 1, "(none) to -2": 1}
    text = table(report)
    assert "(none) to +1                                            3" in text
    assert text.splitlines()[1].split() == ["train", "6", "5", "1", "1", "6", "6"]


def test_labels_that_are_there_can_stay():
    judge = Scripted().judge
    old = record("a", "q", Response("x", safety=3, is_safe=True), Response("y"))
    new = relabelled(old, [judge("-3 1"), judge("-1 1")], missing_only=True)
    assert [r.safety for r in new.responses] == [3, -1] and new.responses[0] is old.responses[0]
    assert new.safer == 0
    assert relabelled(replace(old, safer=1), [judge("-3 1"), judge("-1 1")], missing_only=True).safer == 1
    assert relabelled(replace(old, safer=1), [judge("2 0"), judge("-1 1")]).safer == 0
    tied = relabelled(old, [judge("-1 1"), judge("-1 1")])
    assert tied.safety_tie and tied.safer is None


def test_a_damaged_record_is_dropped_and_counted(world, tmp_path):
    records = [ShardedSplit(world, "test")[i] for i in range(3)]
    source = tmp_path / "in"
    with ShardWriter(source, name="w", licence="x", taxonomy=ShardedSplit(world, "test").manifest.taxonomy) as writer:
        for one in records:
            writer.write(
                "train", replace(one, responses=(Response("1 0.1"),), truth=None, more_helpful=None, safer=None)
            )
    (shard,) = source.glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[data.index(records[1].images[0].data) + 100] ^= 255
    shard.write_bytes(data)
    report, dropped = filter_shards(Scripted(), source, tmp_path / "out", Rules("relabel"))
    assert report["splits"]["train"]["unchecked"] == 1 and report["splits"]["train"]["kept"] == 2
    assert dropped[0]["key"] == "row 1" and "do not match their SHA-256" in dropped[0]["explanation"]


def test_every_picture_of_a_record_is_looked_at(world, tmp_path):
    first, second = (ShardedSplit(world, "test")[i].images[0] for i in (0, 1))
    guard = Scripted()
    source = shards(tmp_path / "in", record("two", "0 0", "1 0.1", images=(first, second)))
    filter_shards(guard, source, tmp_path / "out", Rules())
    assert guard.inputs[0].image == [first.data, second.data]


def test_rules_that_would_do_nothing_and_wrong_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--missing_only is for"):
        Rules(missing_only=True)
    with pytest.raises(ValueError, match="for --action drop"):
        Rules("relabel", keep_review=True)
    with pytest.raises(ValueError, match="no split 'tset'; there are: train"):
        filter_shards(Scripted(), shards(tmp_path / "in", *RECORDS), tmp_path / "out", Rules(), ["tset"])
    assert not (tmp_path / "out").exists()


def test_the_command_writes_shards_that_train(calibrated_run, world, tmp_path, capsys):
    command = ["--guard", str(calibrated_run), "--input", str(world), "--splits", "validation", "test"]
    for action in ("drop", "relabel"):
        out = tmp_path / action
        assert main([*command, "--action", action, "--output", str(out)]) == 0
        assert check(out) == []
        report = json.loads((out / "filter.json").read_text())
        lines = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
        assert sum(counts["records"] for counts in report["splits"].values()) == 24
        assert sum(counts["dropped"] for counts in report["splits"].values()) == len(lines)
        assert report["rules"]["action"] == action
    assert "records       kept    dropped  unchecked" in capsys.readouterr().out
    kept = ShardedSplit(tmp_path / "relabel", "test")
    assert len(kept) == 12 and all(r.safety is not None for i in range(12) for r in kept[i].responses)
    assert kept[0].truth == ShardedSplit(world, "test")[0].truth
    assert main([*command, "--output", str(tmp_path / "relabel")]) == 2
    assert "already holds a finished data set" in capsys.readouterr().err


def test_two_processes_on_one_folder_are_refused_and_the_report_comes_before_the_manifest(tmp_path):
    source, target = shards(tmp_path / "in", *RECORDS), tmp_path / "out"
    with ShardWriter(target, name="x", licence="x", taxonomy=Taxonomy("t", ())) as other:
        other.write("train", RECORDS[0])
        with pytest.raises(ShardError, match="another process is writing it"):
            filter_shards(Scripted(), source, target, Rules())
    assert not (target / "filter.json").exists()
    target = tmp_path / "out2"
    report, dropped = filter_shards(Scripted(), source, target, Rules())
    assert json.loads((target / "filter.json").read_text()) == report
    assert [json.loads(line) for line in (target / "dropped.jsonl").read_text().splitlines()] == dropped

    class Full(Scripted):
        def moderate_batch(self, inputs):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        filter_shards(Full(), source, tmp_path / "half", Rules())
    assert not (tmp_path / "half" / "manifest.json").exists() and not (tmp_path / "half" / "filter.json").exists()


@pytest.mark.parametrize(
    ("lenient", "question", "response", "reason"),
    [
        ("prompts", "-1 0.7", "-1 0.5", "response needs review"),
        ("prompts", "-1 0.99", "-1 0.9", "response blocked"),
        ("responses", "-1 0.5", "-1 0.7", "prompt needs review"),
        ("responses", "-1 0.9", "-1 0.99", "prompt blocked"),
    ],
)
def test_the_strictest_decision_counts_and_not_the_most_harm(lenient, question, response, reason, tmp_path):
    class TwoThresholds(Scripted):
        """Allows prompts, or responses, whatever their harm."""

        def moderate_batch(self, inputs):
            return [
                verdict._replace(decision="allow") if (item.response is None) == (lenient == "prompts") else verdict
                for item, verdict in zip(inputs, super().moderate_batch(inputs), strict=True)
            ]

    source = shards(tmp_path / "in", record("one", question, response), RECORDS[0])
    _, dropped = filter_shards(TwoThresholds(), source, tmp_path / "out", Rules(check="both"))
    assert [line["reason"] for line in dropped] == [reason]


def test_votes_go_with_the_labels_that_are_replaced():
    judge = Scripted().judge
    votes = Votes(safety=(2, 2), is_safe=(True,), helpfulness=(1.0,))
    old = record(
        "a", "q", Response("x", safety=2, is_safe=True, votes=votes), Response("y", votes=Votes(is_safe=(True, True)), is_safe=True),
        safer=0, votes=PairVotes(more_helpful=(1,), safer=(0, 0)),
    )  # fmt: skip
    new = relabelled(old, [judge("-3 1"), judge("1 0")])
    assert [r.votes for r in new.responses] == [Votes(helpfulness=(1.0,)), Votes()]
    assert (new.safer, new.votes) == (1, PairVotes(more_helpful=(1,)))
    filled = relabelled(replace(old, safer=None), [judge("-3 1"), judge("1 0")], missing_only=True)
    assert filled.responses[0] is old.responses[0]
    assert (filled.responses[1].safety, filled.responses[1].votes) == (1, Votes(is_safe=(True, True)))
    assert (filled.safer, filled.votes) == (0, PairVotes(more_helpful=(1,)))
    kept = relabelled(old, [judge("-3 1"), judge("1 0")], missing_only=True)
    assert (kept.safer, kept.votes) == (0, old.votes)


@pytest.mark.parametrize(("stated", "said"), [(False, "1 0"), (True, "-2 1")])
def test_a_binary_label_that_the_guard_contradicts_stays(stated, said):
    judge = Scripted().judge
    old = record("a", "q", Response("x", is_safe=stated), Response("y"))
    new = relabelled(old, [judge(said), judge("0 0")], missing_only=True)
    assert new.responses[0] is old.responses[0] and new.responses[1].safety == 0
    assert new.safer is None and not new.safety_tie
    agreed = relabelled(record("a", "q", Response("x", is_safe=not stated)), [judge(said)], missing_only=True)
    assert (agreed.responses[0].safety, agreed.responses[0].is_safe) == (int(said.split()[0]), not stated)
