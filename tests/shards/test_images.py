"""One decode function for every kind of picture, and none for what is no picture."""

import contextlib
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from safe_rlhf_v.shards import ImageError, decode, probe
from tests.shards.conftest import picture


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_plain_pictures_come_back_exactly():
    data = picture(3)
    assert np.array_equal(decode(data), np.asarray(PILImage.open(io.BytesIO(data))))
    found = probe(data)
    assert (found.format, found.width, found.height) == ("png", 12, 8)


def test_equal_pixels_have_one_id_whatever_the_file():
    image = PILImage.open(io.BytesIO(picture(3)))
    first, second = probe(saved(image, compress_level=1)), probe(saved(image, "WEBP", lossless=True))
    assert first.id == second.id and first.sha256 != second.sha256
    assert probe(picture(4)).id != first.id


def test_exif_rotation_is_applied():
    image = PILImage.new("RGB", (4, 2), "red")
    exif = PILImage.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    data = saved(image, "JPEG", exif=exif)
    assert decode(data).shape == (4, 2, 3)
    assert (probe(data).width, probe(data).height) == (2, 4)


def test_transparency_lies_on_white():
    hidden = PILImage.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (decode(saved(hidden)) == 255).all()
    palette = PILImage.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0] * 256)
    assert (decode(saved(palette, transparency=0)) == 255).all()


def test_deep_grey_is_scaled_not_clipped():
    ramp = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert decode(saved(PILImage.fromarray(ramp)))[0, :, 0].tolist() == [0, 100, 255]


def test_cmyk_and_grey_become_rgb():
    assert decode(picture(1, "JPEG", mode="CMYK")).shape == (8, 12, 3)
    grey = decode(picture(1, "PNG", mode="L"))
    assert (grey[..., 0] == grey[..., 2]).all()


def test_sizes():
    data = picture(1, size=(40, 20))
    assert decode(data, size=10).shape == (5, 10, 3)
    assert decode(data, size=10, fit="squash").shape == (10, 10, 3)
    assert decode(data, size=40).shape == (20, 40, 3)


@pytest.mark.parametrize("data", [b"", b"nothing", picture(1, "GIF"), picture(1, "BMP"), picture(1, "TIFF"),
                                  picture(1, "JPEG", size=(64, 64))[:600], picture(1, "PNG", size=(64, 64))[:900]])  # fmt: skip
def test_what_is_no_whole_picture_is_refused(data):
    with pytest.raises(ImageError):
        decode(data)


@given(st.binary(max_size=300), st.integers(0, 200), st.sampled_from(["PNG", "JPEG", "WEBP"]))
@settings(max_examples=150, deadline=None)
def test_damage_never_raises_anything_else(noise, position, format):
    whole = picture(2, format)
    damaged = whole[:position] + noise + whole[position + len(noise) :]
    with contextlib.suppress(ImageError):
        assert decode(damaged, max_pixels=10_000).dtype == np.uint8


def test_a_pixel_bomb_is_refused_from_its_header_in_bounded_memory():
    code = """
import io, resource, zlib, struct
from safe_rlhf_v.shards.images import ImageError, decode
def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
z = zlib.compressobj(9)
rows = b''.join([z.compress(b'\\0' * (13001 * 100)) for _ in range(130)] + [z.flush()])
bomb = b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 13000, 13000, 8, 0, 0, 0, 0)) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
assert len(bomb) < 400_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: decode(bomb)
except ImageError as error: assert '13000 x 13000 pixels' in str(error)
else: raise SystemExit('decoded')
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
"""
    subprocess.run([sys.executable, "-c", code], check=True)
