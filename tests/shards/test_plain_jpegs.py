"""JPEGs decoded straight into their place: the pixels and the refusals are Pillow's, whatever the file."""

import io
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image as PILImage

from safe_rlhf_v.shards import ImageError, decode, images

simplejpeg = pytest.importorskip("simplejpeg")


def jpeg(width: int = 37, height: int = 23, mode: str = "RGB", seed: int = 0, **options: object) -> bytes:
    """A picture with edges and noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    values[height // 3 :, : width // 2] = (250, 20, 60)
    buffer = io.BytesIO()
    PILImage.fromarray(values).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def outcome(data: bytes) -> bytes | str:
    """The pixels with their shape, or the refusal."""
    try:
        pixels = decode(data)
    except ImageError as error:
        return str(error)
    return str(pixels.shape).encode() + pixels.tobytes()


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], tuple[bytes | str, bytes | str]]:
    """Outcome with the faster decoder and with Pillow alone."""

    def run(data: bytes) -> tuple[bytes | str, bytes | str]:
        with_it = outcome(data)
        with monkeypatch.context() as context:
            context.setattr(images, "simplejpeg", None)
            return with_it, outcome(data)

    return run


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the files that the faster decoder has decoded."""
    lengths: list[int] = []
    original = simplejpeg.decode_jpeg

    def spy(data: bytes, *arguments: object, **options: object) -> object:
        pixels = original(data, *arguments, **options)
        lengths.append(len(data))
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    return lengths


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 10}, {"optimize": True, "quality": 100},
                                     {"restart_marker_blocks": 1}])  # fmt: skip
@pytest.mark.parametrize("size", [(1, 1), (7, 200), (37, 23), (64, 64)])
def test_plain_pictures_have_the_same_pixels(size, options, subsampling, both, decoded):
    with_it, without = both(jpeg(*size, subsampling=subsampling, **options))
    assert with_it == without and isinstance(with_it, bytes)
    assert len(decoded) == 1


def test_an_rgb_coded_picture_has_the_same_pixels(both):
    with_it, without = both(jpeg(keep_rgb=True))
    assert with_it == without and isinstance(with_it, bytes)


@pytest.mark.parametrize("orientation", range(9))
def test_only_upright_pictures_are_decoded_in_place(orientation, both, decoded):
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    with_it, without = both(jpeg(exif=exif))
    assert with_it == without and isinstance(with_it, bytes)
    assert bool(decoded) == (orientation in (0, 1))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_left_to_pillow(mode, both, decoded):
    with_it, without = both(jpeg(mode=mode))
    assert with_it == without and isinstance(with_it, bytes)
    assert not decoded


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_truncated_file_has_the_same_outcome_at_every_length(options, both):
    data = jpeg(24, 16, **options)
    for end in range(len(data)):
        with_it, without = both(data[:end])
        assert with_it == without, end


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_damaged_byte_has_the_same_outcome_anywhere(options, both):
    """What the faster decoder takes without a complaint has Pillow's pixels; at anything else Pillow decides."""
    data = jpeg(24, 16, **options)
    random = np.random.default_rng(0)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= int(random.integers(1, 256))
        with_it, without = both(bytes(damaged))
        assert with_it == without, at


def test_bytes_behind_and_between_change_nothing(both):
    data = jpeg()
    for changed in (data + b"\0" * 50, data + data, data[:2] + b"\xff\xfe\0\x06note" + data[2:], data[:-2]):
        with_it, without = both(changed)
        assert with_it == without


def test_the_size_limit_is_kept(decoded):
    with pytest.raises(ImageError, match="the limit is 100"):
        decode(jpeg(), max_pixels=100)
    assert not decoded


def test_threads_fill_their_own_places():
    files = [jpeg(160, 120, seed=seed) for seed in range(8)]
    expected = [decode(data) for data in files]
    places = [np.zeros((120, 160, 3), np.uint8) for _ in files]

    def fill(data: bytes, place: np.ndarray) -> None:
        assert decode(data, allocate=lambda shape: place) is place

    threads = [threading.Thread(target=fill, args=pair) for pair in zip(files, places, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(np.array_equal, expected, places))
