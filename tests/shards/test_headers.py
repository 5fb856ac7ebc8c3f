"""The header of a member is read as tarfile reads it, and what the writer does not make is refused."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from safe_rlhf_v.shards import ShardError
from safe_rlhf_v.shards.images import load_frames
from safe_rlhf_v.shards.index import MAX_MEMBER_BYTES, Member


def header(name="k-1.jpg", size=5, **changes):
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in changes.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


@given(st.from_regex(r"[A-Za-z0-9_\-]{1,90}", fullmatch=True), st.integers(0, MAX_MEMBER_BYTES), st.booleans())
def test_a_header_of_the_writer_is_read_as_tarfile_reads_it(key, size, verified):
    block = header(f"{key}.2.png", size)
    member = Member.at(b"x" * 512 + block, 512, "shard", verified=verified)
    info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    assert (member.key, member.number, member.suffix) == (key, 2, "png")
    assert (member.size, member.header, member.offset) == (info.size, 512, 1024)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (header(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a plain"),
        (header(type=tarfile.DIRTYPE), "not a plain"),
        (header(type=tarfile.GNUTYPE_LONGNAME), "not a plain"),
        (header("../k.jpg"), "not a plain"),
        (header("k.pkl"), "not a plain"),
        (header()[:345] + b"prefix" + header()[351:], "not a plain"),
        (header(size=MAX_MEMBER_BYTES + 1), "claims 50000001 bytes"),
        (header(size=1 << 40), "damaged member header"),  # not octal
        (header()[:124] + b"-0000000005\0" + header()[136:], "claims -5 bytes"),
        (header()[:124] + b"00000000009\0" + header()[136:], "damaged member header"),
        (b"\xff\xfe" + header()[2:], "damaged member header"),
        (b"\0" * 512, "not a plain"),
    ],
)
def test_another_header_is_refused(block, message):
    with pytest.raises(ShardError, match=message):
        Member.at(block, 0, "shard", verified=True)
    with pytest.raises(ShardError, match="shard: "):
        Member.at(block, 0, "shard", verified=False)


def test_without_a_verified_hash_the_checksum_counts():
    block = bytearray(header())
    block[0] ^= 1  # another key
    assert Member.at(bytes(block), 0, "shard", verified=True).key == "j-1"
    with pytest.raises(ShardError, match="bad checksum"):
        Member.at(bytes(block), 0, "shard", verified=False)


def test_frames_are_never_the_picture_of_the_caller():
    picture = PILImage.new("RGB", (4, 4))
    (frame,) = load_frames(picture)
    frame.putpixel((0, 0), (9, 9, 9))
    assert picture.getpixel((0, 0)) == (0, 0, 0)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", save_all=True, append_images=[PILImage.new("RGB", (4, 4), (5, 5, 5))])
    assert [frame.getpixel((1, 1)) for frame in load_frames(buffer.getvalue())] == [(0, 0, 0), (5, 5, 5)]
