"""Tar files that grow by one sample are, byte for byte, those that WebDataset's own writer makes."""

import hashlib
import io

import pytest

from safe_rlhf_v.shards.tar import GrowingTar

SAMPLES = [
    [("a.jpg", b"x" * 700), ("a.json", b"{}")],
    [("b.1.png", b""), ("b.jpg", b"y" * 512), ("b.json", b"z" * 513)],
    [(f"{'k' * 95}.json", b"q" * 20_000)],
]


@pytest.mark.parametrize("count", range(len(SAMPLES) + 1))
def test_the_bytes_are_those_of_webdataset(tmp_path, count):
    import webdataset

    theirs = io.BytesIO()
    with webdataset.TarWriter(theirs, mtime=0, user="", group="", encoder=False) as writer:
        for members in SAMPLES[:count]:
            key = members[0][0].partition(".")[0]
            writer.write({"__key__": key, **{name.partition(".")[2]: data for name, data in members}})
    with (tmp_path / "x.tar").open("x+b") as file:
        tar = GrowingTar(file, 0)
        places = [tar.add(members) for members in SAMPLES[:count]]
        assert tar.end() == hashlib.sha256(theirs.getvalue()).hexdigest()
    data = (tmp_path / "x.tar").read_bytes()
    assert data == theirs.getvalue() and tar.size == len(data)
    for place in places:
        assert hashlib.sha256(data[place.offset : place.offset + place.length]).hexdigest().startswith(place.digest)


@pytest.mark.parametrize("cut", range(len(SAMPLES) + 1))
def test_a_file_that_is_opened_again_ends_the_same(tmp_path, cut):
    with (tmp_path / "whole").open("x+b") as file:
        whole = GrowingTar(file, 0)
        places = [whole.add(members) for members in SAMPLES]
        digest = whole.end()
    (tmp_path / "again").write_bytes((tmp_path / "whole").read_bytes())
    with (tmp_path / "again").open("r+b") as file:
        again = GrowingTar.reopened(file, 0, places[:cut])
        assert [again.add(members) for members in SAMPLES[cut:]] == places[cut:] and again.end() == digest
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()
