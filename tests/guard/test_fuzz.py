"""Whatever stands in a JSON-lines file or a picture folder: one verdict each, no crash, and no pass of something unchecked."""

import json
import random
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from safe_rlhf_v.commands.moderate import moderate_entries
from safe_rlhf_v.guard.entries import open_entries
from safe_rlhf_v.shards import ShardedSplit

FIELDS = ("key", "image", "question", "response")
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PART = st.sampled_from(["", "ok.jpg", "cut.jpg", "gone.jpg", "../ok.jpg", "/etc/passwd", ".", "\0", "text.txt"])
OBJECT = st.dictionaries(st.sampled_from([*FIELDS, "reply"]), PART | VALUE, max_size=4)
TEXT = st.none() | st.text(max_size=12) | st.sampled_from(["what is it ?", "yes\u200b", " ", "a\0b", "\ud800"])
NEARLY = st.fixed_dictionaries(
    {}, optional={"key": TEXT, "image": PART | st.just("ok.jpg"), "question": TEXT, "response": TEXT}
)
LINE = (
    NEARLY.map(json.dumps).map(str.encode)
    | NEARLY.map(json.dumps).map(str.encode)
    | OBJECT.map(json.dumps).map(str.encode)
    | VALUE.map(json.dumps).map(str.encode)
    | st.binary(max_size=40).filter(lambda data: b"\n" not in data and b"\r" not in data)
    | OBJECT.map(lambda row: json.dumps(row)[:-1].encode())
)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A good picture, one cut off, and text that is none; the same picture outside."""
    root = tmp_path_factory.mktemp("fuzz") / "inside"
    root.mkdir()
    picture = ShardedSplit(world, "test")[0].images[0].data
    (root / "ok.jpg").write_bytes(picture)
    (root.parent / "ok.jpg").write_bytes(picture)
    (root / "cut.jpg").write_bytes(picture[: len(picture) // 2])
    (root / "text.txt").write_text("hello")
    return root


def may_be_judged(line: bytes) -> bool:
    """What the command promises to read, written down a second time."""
    try:
        pairs = json.loads(line.decode(), object_pairs_hook=list)
        row = dict(pairs)
    except (ValueError, TypeError, RecursionError):
        return False
    if not line.strip().startswith(b"{") or len(row) < len(pairs) or not set(row) <= set(FIELDS):
        return False
    image, question, response = (row.get(name) for name in FIELDS[1:])
    if not all(isinstance(part, (str, type(None))) for part in (image, question, response)):
        return False
    texts = (question or "") + (response or "")
    visible = "".join(c for c in response or "" if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc"))
    return (
        (image, question, response) != (None, None, None)
        and image in (None, "ok.jpg")
        and "\0" not in texts
        and not any("\ud800" <= c <= "\udfff" for c in texts)
        and (response is None or bool(visible))
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(LINE, min_size=1, max_size=6))
def test_json_lines(lines):
    guard, folder = FUZZED["guard"], FUZZED["folder"]
    source, output = folder / "lines.jsonl", folder / "verdicts.out"
    source.write_bytes(b"\n".join(lines) + b"\n")
    lines = [line for line in lines if line.strip()]
    if not lines:
        return
    output.unlink(missing_ok=True)
    moderate_entries(guard, open_entries(source, None), output, batch_size=4)
    verdicts = [json.loads(row) for row in output.read_text().splitlines()]
    assert len(verdicts) == len(lines)
    for line, verdict in zip(lines, verdicts, strict=True):
        assert may_be_judged(line) or verdict["status"] == "error", line
        if verdict["status"] == "error":
            assert (verdict["decision"], verdict["harm"], verdict["level"]) == ("block", 1.0, None)
            assert verdict["reasons"][0].startswith("unsafe: could not be checked")


def test_a_folder_of_damaged_pictures(guard, world, tmp_path):
    """120 files of one to ten damaged bytes, cuts, insertions and foreign headers."""
    rng = random.Random(0)
    data = ShardedSplit(world, "test")[1].images[0].data
    heads = (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP", b"%PDF-1.7", b"\xff\xd8\xff")
    for i in range(120):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 10)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        damaged = damaged[: rng.randrange(len(data))] if i % 3 == 0 else damaged
        head = rng.choice(heads) if i % 4 == 0 else b""
        (tmp_path / f"{i:03d}.{rng.choice(['jpg', 'png', 'webp'])}").write_bytes(head + damaged)
    output = tmp_path / "verdicts.jsonl"
    moderate_entries(guard, open_entries(tmp_path, None), output)
    verdicts = [json.loads(row) for row in output.read_text().splitlines()]
    assert len(verdicts) == 120
    unread = 0
    for verdict in verdicts:
        if verdict["status"] == "error":
            unread += 1
            assert verdict["decision"] == "block" and verdict["harm"] == 1.0
        else:  # what was judged, another decoder can read, too
            with Image.open(tmp_path / verdict["key"]) as picture:
                picture.load()
    assert 20 < unread < 120


FUZZED: dict = {}


@pytest.fixture(autouse=True)
def _fuzzed(guard, folder):
    FUZZED.update(guard=guard, folder=folder)
