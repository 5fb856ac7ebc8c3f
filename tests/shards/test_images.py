"""One decode function for every kind of picture, and none for what is no picture."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageFile

from safe_rlhf_v.shards import ImageError, decode, probe
from safe_rlhf_v.shards.images import MAX_FRAMES, load_frames
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


# --- orientation --------------------------------------------------------------------------------------------------------

ARROW = np.zeros((16, 24, 3), dtype=np.uint8)
ARROW[:8, :8], ARROW[:8, 8:] = (250, 0, 0), (0, 0, 250)  # no symmetry: every orientation looks different
UPRIGHT = {1: ARROW, 2: ARROW[:, ::-1], 3: ARROW[::-1, ::-1], 4: ARROW[::-1], 5: ARROW.transpose(1, 0, 2),
           6: ARROW.transpose(1, 0, 2)[:, ::-1], 7: ARROW.transpose(1, 0, 2)[::-1, ::-1],
           8: ARROW.transpose(1, 0, 2)[::-1]}  # fmt: skip


def exif_of(orientation: int, order: str = "<", before: bytes = b"", entries: int | None = None) -> bytes:
    """Minimal EXIF by hand: ``before`` are entries of 12 bytes that stand before the orientation."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    own = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    count = len(before) // 12 + 1 if entries is None else entries
    return head + struct.pack(f"{order}IH", 8, count) + before + own + bytes(4)


def with_exif(format: str, exif: bytes) -> bytes:
    image = PILImage.fromarray(ARROW)
    if format == "JPEG":  # by hand: Pillow would read it
        data, body = saved(image, "JPEG", quality=95, subsampling=0), b"Exif\0\0" + exif
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    return saved(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_upright(orientation, order, format):
    data = with_exif(format, exif_of(orientation, order))
    found, expected = decode(data).astype(int), UPRIGHT[orientation]
    assert found.shape == expected.shape and (probe(data).height, probe(data).width) == expected.shape[:2]
    assert np.abs(found - expected).max() <= (0 if format != "JPEG" else 60)
    assert np.abs(found - expected).mean() < 4


ENTRY = st.builds(
    lambda tag, kind, count, value: struct.pack("<HHII", tag, kind, count, value),
    st.sampled_from([0x0100, 0x010F, 0x011A, 0x0128, 0x8769, 0x8825, 0x927C, 0xA005, 0xFFFF]),
    st.sampled_from([0, 1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 99, 65535]),
    st.sampled_from([0, 1, 2, 1000, 2**32 - 1]),
    st.sampled_from([0, 8, 20, 26, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1),
)


@given(st.lists(ENTRY, max_size=5), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_no_other_tag_matters(entries, format, orientation):
    data = with_exif(format, exif_of(orientation, before=b"".join(entries)))
    assert probe(data).id == probe(with_exif(format, exif_of(orientation))).id


@given(st.binary(max_size=80), st.sampled_from(["JPEG", "PNG", "WEBP"]))
@settings(max_examples=150, deadline=None)
def test_exif_that_is_none_is_no_orientation(noise, format):
    for exif in (
        noise,
        b"II*\0" + noise,
        b"MM\0*" + noise,
        exif_of(6)[: len(noise) % 22],
        exif_of(6, entries=0),
        exif_of(0),
    ):
        assert decode(with_exif(format, exif)).shape == ARROW.shape or b"\x12\x01" in exif or b"\x01\x12" in exif


def test_orientation_outside_its_type_is_none():
    wrong = struct.pack("<HHII", 0x0112, 4, 1, 6)
    assert decode(with_exif("PNG", exif_of(9))).shape == ARROW.shape
    assert decode(with_exif("PNG", exif_of(6, before=wrong))).shape == ARROW.shape  # the first one counts


def test_transparency_lies_on_white():
    hidden = PILImage.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (decode(saved(hidden)) == 255).all()
    palette = PILImage.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0] * 256)
    assert (decode(saved(palette, transparency=0)) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_transparent_colour_lies_on_white(mode):
    data = saved(PILImage.new(mode, (2, 2), 0), transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (decode(data) == 255).all() and (
        load_frames(PILImage.open(io.BytesIO(data)))[0].getpixel((0, 0)) == (255,) * 3
    )


def test_deep_grey_is_scaled_not_clipped():
    ramp = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert decode(saved(PILImage.fromarray(ramp)))[0, :, 0].tolist() == [0, 100, 255]
    clear = decode(saved(PILImage.fromarray(ramp), transparency=257 * 100))
    assert clear[0, :, 0].tolist() == [0, 255, 255]


# --- pictures in memory -------------------------------------------------------------------------------------------------


def in_memory(picture):
    return np.asarray(load_frames(picture)[0])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_picture_in_memory_is_that_of_its_bytes(orientation, format):
    data = with_exif(format, exif_of(orientation))
    opened, loaded = PILImage.open(io.BytesIO(data)), PILImage.open(io.BytesIO(data))
    loaded.load()
    assert np.array_equal(in_memory(opened), decode(data)) and np.array_equal(in_memory(loaded), decode(data))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "La", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
                                  "LAB", "I", "F", "I;16", "I;16B"])  # fmt: skip
def test_every_mode_shows_the_same_picture(mode):
    """A grey ramp in every mode that Pillow has, against the ramp itself."""
    ramp = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None], 4, axis=0)
    plain = PILImage.fromarray(ramp)
    if mode == "1":
        ramp = np.where(ramp > 127, 255, 0).astype(np.uint8)
        image = PILImage.fromarray(ramp).convert("1")
    elif mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(plain.convert("RGB"), *profiles, outputMode="LAB")
    elif mode.startswith("I;16"):
        image = PILImage.fromarray(ramp.astype(np.uint16) * 257)
        image = (
            image if mode == "I;16" else PILImage.frombytes("I;16B", image.size, (ramp.astype(">u2") * 257).tobytes())
        )
    elif mode in ("La", "RGBa"):
        image = plain.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode in ("HSV", "YCbCr", "CMYK", "RGBX"):
        image = plain.convert("RGB").convert(mode)
    elif mode == "PA":
        image = plain.convert("P").convert(mode)
    else:
        image = plain.convert(mode)
    assert image.mode == mode
    found = in_memory(image).astype(int)
    loose = {"LAB": 4, "YCbCr": 1, "HSV": 1}.get(mode, 0)  # CIELAB has 256 lightnesses that are not those of sRGB
    assert found.shape == (4, 52, 3) and np.abs(found - ramp[..., None]).max() <= loose


@pytest.mark.parametrize(
    ("mode", "values", "shown"),
    [
        ("F", [0, 0.5, 1], [0, 128, 255]),
        ("F", [0, 100, 255], [0, 100, 255]),
        ("F", [0, 25700, 65535], [0, 100, 255]),
        ("I", [0, 100, 255], [0, 100, 255]),
        ("I", [0, 25700, 65535], [0, 100, 255]),
        ("F", [0, 1, float("nan")], None),
        ("F", [0, 1, float("inf")], None),
        ("F", [-1, 0, 1], None),
        ("I", [0, 0, 65536], None),
        ("I", [-5, 0, 9], None),
    ],
)
def test_values_without_a_fixed_range_are_scaled_by_what_they_are(mode, values, shown):
    image = PILImage.fromarray(np.array([values], dtype=np.float32 if mode == "F" else np.int32))
    assert image.mode == mode
    if shown is None:
        with pytest.raises(ImageError, match=r"neither 0\.\.1 nor 8 nor 16 bits"):
            in_memory(image)
    else:
        assert in_memory(image)[0, :, 0].tolist() == shown


# --- several pictures in one file -----------------------------------------------------------------------------------------

COLOURS = ("red", "blue", "lime")


def stills(*colours, size=(12, 8)):
    return [PILImage.new("RGB", size, colour) for colour in colours]


def animated(format, *colours, size=(12, 8), **options):
    first, *rest = stills(*colours, size=size)
    return saved(first, format, save_all=True, append_images=rest, **options)


def seen(source):
    return [frame.getpixel((5, 5)) for frame in load_frames(source)]


RGB = [(255, 0, 0), (0, 0, 255), (0, 255, 0)]


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
def test_every_frame_of_an_animation_is_seen_and_a_record_has_none(format, options):
    data = animated(format, *COLOURS, **options)
    assert seen(PILImage.open(io.BytesIO(data))) == RGB
    if format != "GIF":
        assert seen(data) == RGB
        with pytest.raises(ImageError, match="an animation of 3 pictures; a record holds still pictures"):
            probe(data)


def test_the_hidden_default_picture_of_an_animated_png_is_a_frame():
    data = animated("PNG", *COLOURS, default_image=True)
    assert PILImage.open(io.BytesIO(data)).default_image and seen(data) == RGB
    data = animated("PNG", "red", "blue", default_image=True)  # an animation of one frame
    assert seen(data) == RGB[:2]
    with pytest.raises(ImageError, match="animation"):
        probe(data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_an_animated_png_that_contradicts_itself_is_refused():
    """Readers that believe the stated count, and readers that count, would show different pictures."""
    data = animated("PNG", *COLOURS)
    at = data.index(b"acTL") - 4
    stated = data[at : at + 20]
    fewer = chunk(b"acTL", struct.pack(">II", 1, 0))
    for changed in (fewer, stated + stated, chunk(b"acTL", struct.pack(">II", 0, 0)), b""):
        with pytest.raises(ImageError, match="states another number of pictures than it holds"):
            load_frames(data[:at] + changed + data[at + 20 :])
    late = data[:at] + data[at + 20 : -12] + stated + data[-12:]  # behind the first picture, where it does not count
    with pytest.raises(ImageError, match="states another number of pictures than it holds"):
        load_frames(late)


def test_a_multi_picture_jpeg_is_a_jpeg_of_which_the_guard_sees_all():
    data = animated("MPO", *COLOURS, quality=95, subsampling=0)
    assert PILImage.open(io.BytesIO(data)).format == "MPO"
    found = probe(data)
    first = decode(data)
    assert (found.format, found.width, found.height) == ("jpg", 12, 8) and np.ptp(first, axis=(0, 1)).max() == 0
    for one, other in zip(seen(data), RGB, strict=True):
        assert np.abs(np.subtract(one, other)).max() <= 3
    stripped = data[: data.index(b"\xff\xd9") + 2]  # as editors leave it: an index to pictures that are gone
    assert len(seen(stripped)) == 1 and probe(stripped).id == found.id
    with pytest.raises(ImageError, match="1 of its 3 pictures are missing"):
        load_frames(data[: data.rindex(b"\xff\xd8")])
    with pytest.raises(ImageError):
        load_frames(data[:-40])  # the last picture is cut off
    assert probe(data[:-40]).id == found.id  # what a record uses of it is whole


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "MPO"])
def test_frames_are_bounded_in_number_and_in_pixels(format):
    data = animated(format, *COLOURS, **({"lossless": True} if format == "WEBP" else {}))
    source = PILImage.open(io.BytesIO(data)) if format == "GIF" else data
    with pytest.raises(ImageError, match="3 pictures in one file, the limit is 2"):
        load_frames(source, max_frames=2)
    assert len(load_frames(source, max_frames=3, max_pixels=3 * 96)) == 3
    with pytest.raises(ImageError, match="288 pixels in 3 pictures, the limit is 287"):
        load_frames(source, max_frames=3, max_pixels=3 * 96 - 1)


def test_the_default_limit_of_frames():
    data = animated("PNG", *(f"rgb({i},0,0)" for i in range(MAX_FRAMES + 1)))
    with pytest.raises(ImageError, match=f"{MAX_FRAMES + 1} pictures in one file, the limit is {MAX_FRAMES}"):
        load_frames(data)


def test_a_picture_in_memory_stays_at_its_frame():
    image = PILImage.open(io.BytesIO(animated("WEBP", *COLOURS, lossless=True)))
    image.seek(1)
    assert seen(image) == RGB and image.tell() == 1


def test_cmyk_and_grey_become_rgb():
    assert decode(picture(1, "JPEG", mode="CMYK")).shape == (8, 12, 3)
    grey = decode(picture(1, "PNG", mode="L"))
    assert (grey[..., 0] == grey[..., 2]).all()


def test_sizes():
    data = picture(1, size=(40, 20))
    assert decode(data, size=10).shape == (5, 10, 3)
    assert decode(data, size=40).shape == (20, 40, 3)


@pytest.mark.parametrize("data", [b"", b"nothing", picture(1, "GIF"), picture(1, "BMP"), picture(1, "TIFF"),
                                  picture(1, "JPEG", size=(64, 64))[:600], picture(1, "PNG", size=(64, 64))[:900]])  # fmt: skip
def test_what_is_no_whole_picture_is_refused(data):
    with pytest.raises(ImageError):
        decode(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused_at_every_length(format):
    whole = picture(2, format, size=(16, 16))
    pixels = decode(whole)
    for end in range(len(whole)):
        with contextlib.suppress(ImageError):  # a lost end marker loses no pixel
            assert np.array_equal(decode(whole[:end]), pixels) and end >= len(whole) - 20


def test_a_process_that_lets_truncated_files_pass_is_told(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        decode(picture(2))


@pytest.mark.parametrize(
    "error", [RuntimeError, struct.error, AttributeError, AssertionError, RecursionError, MemoryError]
)
def test_whatever_a_decoder_raises_is_one_line_of_ours(error, monkeypatch):
    def fail(*_, **__):
        raise error("it broke\nin two lines")

    monkeypatch.setattr(PILImage, "open", fail)
    with pytest.raises(ImageError, match=f"{error.__name__}: it broke in two lines"):
        decode(picture(2))
    with pytest.raises(ImageError):
        load_frames(picture(2))


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
