"""A manifest is a stranger's file: whatever it holds, the response is a manifest or one line that names the file."""

import copy
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardError
from tests.shards.conftest import write


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shared") / "shards")


@pytest.fixture(scope="module")
def body(shared):
    return json.loads((shared / "manifest.json").read_text())


def places(value, path=()):
    """Every place of a nested JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in inner:
        yield from places(child, (*path, name))


def replaced(body, path, value):
    body = copy.deepcopy(body)
    if not path:
        return value
    parent = body
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    return body


def load(folder, raw):
    (folder / "manifest.json").write_bytes(raw)
    try:
        return Manifest.load(folder)
    except ShardError as error:
        assert "\n" not in str(error) and len(str(error)) < 700 and "manifest.json" in str(error)
        return error


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_value_in_any_place_gives_a_manifest_or_one_line(tmp_path_factory, body, data):
    path = data.draw(st.sampled_from(list(places(body))))
    made = replaced(body, path, data.draw(json_values))
    found = load(tmp_path_factory.mktemp("m"), json.dumps(made).encode())
    if isinstance(found, Manifest):
        found.to_json()
        hash(found.name + found.licence)  # texts, whatever the file says


def test_wrong_types_are_refused_wherever_they_stand(tmp_path, body):
    count = 0
    for path in places(body):
        value = body
        for name in path:
            value = value[name]
        for wrong in (None, 3.5, [1], {"a": 1}, True, -1):
            if (path[-1:] == ("harm_boundary",) and wrong == -1) or (
                path[-2:-1] == ("histograms",) and wrong == {"a": 1}
            ):
                continue
            assert isinstance(load(tmp_path, json.dumps(replaced(body, path, wrong)).encode()), ShardError), (
                path,
                wrong,
            )
            count += 1
    assert count > 300


def test_missing_and_unknown_fields_are_named(tmp_path, body):
    for path in places(body):
        if (
            not path
            or isinstance(path[-1], int)
            or path[0] == "origin"
            or "histograms" in path[:-1]
            or path[0] == "level_names"
        ):
            continue
        made = copy.deepcopy(body)
        parent = made
        for name in path[:-1]:
            parent = parent[name]
        value = parent.pop(path[-1])
        if path[0] != "splits" or len(path) > 2:
            assert "is missing" in str(load(tmp_path, json.dumps(made).encode())), path
        parent[path[-1]] = value
        if path[-1] not in ("splits", "histograms") and isinstance(value, dict) and path[0] != "level_names":
            value["surprise"] = 1
            assert "surprise" in str(load(tmp_path, json.dumps(made).encode())), path


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"3", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"{}", b"\xff\xfe\x00", b"\x00" * 100, b'{"format": NaN}',
     b'{"version": 1, "version": 1}', b'{"version": ' + b"9" * 5000 + b"}", b'{"format": "\\ud800"}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_what_is_no_manifest_is_one_line(tmp_path, capsys, raw):
    assert isinstance(load(tmp_path, raw), ShardError)
    for command in (["inspect"], ["check"]):
        assert main([*command, str(tmp_path)]) in (1, 2)
        captured = capsys.readouterr()
        assert "manifest.json" in captured.out + captured.err and "Traceback" not in captured.err
    with pytest.raises(ShardError):
        ShardedSplit(tmp_path, "train")


def test_a_huge_manifest_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(3_000_000_000)
    with pytest.raises(ShardError, match="3000000000 bytes, the limit is"):
        Manifest.load(tmp_path)


def test_a_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ShardError, match="named pipe"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "..", ".", "", "a/b.tar", "x\0.tar", "x\n.tar"])
def test_names_outside_the_folder_are_refused(tmp_path, body, name):
    for path in (("splits", "train", "shards", 0, "file"), ("splits", "test", "index", "file")):
        assert "outside the shard folder" in str(load(tmp_path, json.dumps(replaced(body, path, name)).encode()))


def test_a_file_named_twice_is_refused(tmp_path, body):
    made = replaced(body, ("splits", "train", "shards", 0, "file"), "test-000000.tar")
    assert "'test-000000.tar' occurs twice" in str(load(tmp_path, json.dumps(made).encode()))


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("harm_boundary",), 1, "harm_boundary"),
        (("harm_boundary",), -1, "harm_boundary"),
        (("level_names",), {}, "level_names"),
        (("level_names", "7"), "worse", "level_names"),
        (("taxonomy", "categories"), ["fire", "fire"], "taxonomy.categories"),
        (("taxonomy", "categories"), ["fire", " "], "taxonomy.categories"),
        (("splits", "train", "category_sets"), [["fire", "fire"]], "category_sets"),
        (("splits", "train", "shards", 0, "file"), "x" * 5000, "too long"),
    ],
)
def test_what_this_version_would_read_otherwise_is_refused(tmp_path, body, path, value, field):
    if "category_sets" in path:
        body = replaced(body, ("taxonomy", "categories"), ["fire"])
    found = load(tmp_path, json.dumps(replaced(body, path, value)).encode())
    assert isinstance(found, ShardError)
    assert field in str(found)


def test_a_strangers_words_are_printed_as_one_line_and_empty_counts_do_no_harm(tmp_path, body, capsys):
    body = replaced(replaced(body, ("name",), "x\x1b[2J\ny"), ("splits", "train", "histograms"), {"safety": {"1": 0}})
    assert isinstance(load(tmp_path, json.dumps(body).encode()), Manifest)
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"'x\x1b[2J\ny'" in out and "1: 0 (0.0%)" in out


def test_a_path_that_is_no_folder_is_a_wrong_command(tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        assert main(["check", str(path)]) == 2
        assert "no such folder" in capsys.readouterr().err
