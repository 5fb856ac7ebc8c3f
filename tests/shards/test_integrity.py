"""Every byte of a sample is covered by a hash, labels included; shard folders of the first releases are still read."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.records import Record, RecordError, Response
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V
from safe_rlhf_v.shards import ShardedSplit, ShardError, ShardWriter, probe
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.index import WITHOUT_DIGEST
from safe_rlhf_v.shards.writer import encoded
from tests.shards.conftest import picture, record, write


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shared") / "shards")


def mend(root, **changes):
    """Change the manifest, and keep its hashes true where asked to."""
    body = json.loads((root / "manifest.json").read_text())
    changes.get("change", lambda body: None)(body)
    for split in body["splits"].values():
        split["index"]["sha256"] = hashlib.sha256((root / split["index"]["file"]).read_bytes()).hexdigest()
        for shard in split["shards"]:
            shard["sha256"] = hashlib.sha256((root / shard["file"]).read_bytes()).hexdigest()
    (root / "manifest.json").write_text(json.dumps(body))


def as_first_released(root):
    """The folder as the first releases wrote it: no hash of the samples in the index."""
    for path in root.glob("*.index.npy"):
        index = np.load(path)
        old = np.zeros(len(index), WITHOUT_DIGEST)
        for name in WITHOUT_DIGEST.names:
            old[name] = index[name]
        np.save(path, old)
    mend(root)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_in_a_sample_is_found_when_it_is_read(shared, data):
    file = shared / "train-000000.tar"
    whole = file.read_bytes()
    split = ShardedSplit(shared, "train")
    row = data.draw(st.integers(0, 2))
    start, length = int(split.index["offset"][row]), int(split.index["length"][row])
    position = data.draw(st.integers(start, start + length - 1))
    bit = data.draw(st.integers(0, 7))
    try:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        file.write_bytes(damaged)
        with pytest.raises(
            ShardError, match=rf"train-000000\.tar: record '?k-{row}|train-000000\.tar: record \?"
        ) as caught:
            ShardedSplit(shared, "train")[row]
        assert f"'k-{row}'" in str(caught.value)
        for other in {0, 1, 2} - {row}:
            assert ShardedSplit(shared, "train")[other].key == f"k-{other}"
    finally:
        file.write_bytes(whole)


def test_a_changed_label_is_found_by_check_too_and_named(tmp_path):
    root = write(tmp_path)
    path = root / "train-000000.tar"
    data = path.read_bytes()
    assert data.count(b'"safety":-1') == 3
    path.write_bytes(data.replace(b'"safety":-1', b'"safety":+1'.replace(b"+", b" "), 1))
    with pytest.raises(ShardError, match=r"train-000000\.tar: record 'k-0': its bytes do not match"):
        ShardedSplit(root, "train")[0]
    assert any("train-000000.tar: record 'k-0'" in problem for problem in check(root))
    mend(root)  # a forger who mends the file's hash is caught by the index
    assert check(root) == ["train-000000.tar: record 'k-0': its bytes do not match their SHA-256: damaged or changed"]


@pytest.mark.parametrize("where", ["first header", "last header", "json", "image", "padding", "end"])
def test_check_finds_a_flip_wherever_it_is(tmp_path, where):
    root = write(tmp_path)
    path = root / "train-000000.tar"
    data = bytearray(path.read_bytes())
    index = ShardedSplit(root, "train").index
    second = int(index["offset"][1])
    last = data.rindex(b"k-2.json")
    places = {"first header": 3, "last header": last + 2, "json": data.index(b'"question"') + 3, "image": second + 600,
              "padding": second - 1, "end": len(data) - 1}  # fmt: skip
    data[places[where]] ^= 4
    path.write_bytes(data)
    problems = check(root)
    assert any("train-000000.tar: its SHA-256" in problem for problem in problems)
    named = {"first header": "k-0", "last header": "k-2", "json": "k-0", "image": "k-1"}
    if where in named:
        assert any(f"record '{named[where]}'" in problem for problem in problems)


def test_folders_of_the_first_releases_are_read_and_their_images_checked(tmp_path):
    root = write(tmp_path)
    new = [ShardedSplit(root, "train")[i] for i in range(7)]
    as_first_released(root)
    assert [ShardedSplit(root, "train")[i] for i in range(7)] == new
    assert check(root) == []
    path = root / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(new[1].images[0].data) + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"'k-1', field 'images': the bytes do not match"):
        ShardedSplit(root, "train")[1]


def test_a_lone_surrogate_in_a_shard_is_named_by_shard_key_and_field(tmp_path):
    root = write(tmp_path)
    as_first_released(root)
    path = root / "train-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"question 1 ?", b"questi\\ud83d"))
    mend(root)
    with pytest.raises(
        ShardError, match=r"train-000000\.tar: record 'k-1', field 'question': holds the lone surrogate U\+D83D"
    ):
        ShardedSplit(root, "train")[1]
    assert [problem for problem in check(root) if "record 'k-1', field 'question': holds the lone surrogate" in problem]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("offset", 1 << 63, "beyond the end"), ("length", 1 << 62, "beyond the end"), ("shard", 99, "refers to shard 99"),
     ("length", 0, "record"), ("offset", 512, "record"), ("members", 9, "cut off"), ("digest", b"", "do not match")],
)  # fmt: skip
def test_an_index_that_points_elsewhere_is_refused(tmp_path, column, value, message):
    root = write(tmp_path)
    path = root / "train.index.npy"
    index = np.load(path)
    index[column][0] = value
    np.save(path, index)
    mend(root)
    with pytest.raises(ShardError, match=message):
        ShardedSplit(root, "train")[0]
    assert check(root)


@pytest.mark.parametrize("raw", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x10\x00" + b"{" * 16])
def test_an_index_that_is_none_is_refused(tmp_path, raw):
    root = write(tmp_path)
    (root / "train.index.npy").write_bytes(raw)
    mend(root)
    with pytest.raises(ShardError, match=r"train\.index\.npy"):
        ShardedSplit(root, "train")
    assert check(root)


@pytest.mark.parametrize(("column", "value"), [("category", -2), ("category", 7), ("group", 5), ("responses", 1)])
def test_what_the_index_says_about_a_record_is_compared_with_it(tmp_path, column, value):
    root = write(tmp_path)
    index = np.load(root / "train.index.npy")
    index[column][1] = value
    np.save(root / "train.index.npy", index)
    mend(root)
    assert [problem for problem in check(root) if "record 'k-1'" in problem and "the index states another" in problem]


def test_stated_counts_are_recounted(tmp_path):
    root = write(tmp_path)
    mend(root, change=lambda body: body["splits"]["train"]["histograms"]["safety"].update({"1": 3}))
    assert any("histograms" in problem for problem in check(root))


def image(**changes):
    from dataclasses import replace

    return replace(probe(picture(1)), **changes)


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (Record("k" * 96, "q"), "key"),
        (Record("k" * 95, "q", tuple(probe(picture(i)) for i in range(2))), "key"),  # KEY.1.png is too long for a tar header
        (Record("a.b", "q"), "key"),
        (Record("k", "x" * 1_000_001), "json"),
        (Record("k", "\ud800"), "question"),
        (Record("k", "q", responses=(Response("a\udfff"),)), "responses[0].text"),
        (Record("k", "q", responses=(Response("a", source="\ud800"),)), "responses[0].source"),
        (Record("k", "q", origin={"a": "\ud83d"}), "origin"),
        (Record("k", "q", image_severity=1 << 63), "image_severity"),
        (Record("k", "q", responses=(Response("a", 1.5),)), "responses[0].safety"),
        (Record("k", "q", responses=(Response(["a"]),)), "responses[0].text"),
        (Record("k", "q", responses=(Response("a", helpfulness=float("nan")),)), "responses[0].helpfulness"),
        (Record("k", "q", responses=(Response("a", helpfulness=10**400),)), "responses[0].helpfulness"),
        (Record("k", "q", more_helpful=True, responses=(Response("a"), Response("b"))), "more_helpful"),
        (Record("k", "q", images=(image(sha256="0" * 64),)), "images[0].sha256"),
        (Record("k", "q", images=(probe(picture(1)),) * 101), "images"),
    ],
)  # fmt: skip
def test_what_a_reader_would_refuse_is_refused_when_it_is_written(tmp_path, broken, field):
    with ShardWriter(tmp_path, name="x", licence="MIT", taxonomy=BEAVERTAILS_V) as writer:
        with pytest.raises(RecordError) as caught:
            writer.write("train", broken)
        assert caught.value.field == field and len(str(caught.value)) < 500
        writer.write("train", record(1))
    assert check(tmp_path) == [] and len(ShardedSplit(tmp_path, "train")) == 1


text = st.text(st.characters(), max_size=20)  # lone surrogates, too


@settings(max_examples=40, deadline=None)
@given(st.text("ab_-9", min_size=1, max_size=100), text, st.lists(text, max_size=3), st.floats() | st.integers())
def test_what_is_written_can_be_read(tmp_path_factory, key, question, answers, score):
    answers = tuple(Response(answer, 1, True, score) for answer in answers)
    made = Record(key, question, (probe(picture(1)),), answers)
    try:
        encoded(made, BEAVERTAILS_V)
    except RecordError:
        return
    root = tmp_path_factory.mktemp("any") / "out"
    with ShardWriter(root, name="x", licence="MIT", taxonomy=BEAVERTAILS_V) as writer:
        writer.write("train", made)
    assert ShardedSplit(root, "train")[0] == made


def test_a_category_that_the_manifest_does_not_state_names_the_record(tmp_path):
    root = write(tmp_path)

    def rename(body):
        body["taxonomy"]["categories"] = ["another"]
        body["splits"]["train"]["category_sets"] = [["another"]]

    mend(root, change=rename)
    with pytest.raises(ShardError, match=r"train-000000\.tar: record 'k-1', field 'category'"):
        ShardedSplit(root, "train")[1]


@pytest.mark.parametrize("raw", [None, b"", b"{}", b"[]", b"{", b'{"train-000000.tar": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_list_of_sizes_is_found(tmp_path, raw):
    root = write(tmp_path / "shards")
    assert check(root) == []
    (root / "sizes.json").unlink()
    if raw is not None:
        (root / "sizes.json").write_bytes(raw)
    (found,) = check(root)
    assert found.startswith("sizes.json: ") and len(found) < 300
