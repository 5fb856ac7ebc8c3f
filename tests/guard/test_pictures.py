"""One picture, one verdict, however it is given; and no file is read that is not a regular one of a bounded size."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from safe_rlhf_v.guard.inputs import Input, load_views
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.shards.images import MAX_BYTES, MAX_FRAMES, ImageError


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture(world):
    return Image.open(io.BytesIO(ShardedSplit(world, "test")[0].images[0].data)).convert("RGB")


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"exif": rotated()}),
        ("RGB", "PNG", {"exif": rotated()}),
        ("RGB", "WEBP", {"exif": rotated()}),
        ("CMYK", "JPEG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "PNG", {"transparency": 7}),
        ("RGB", "PNG", {"transparency": (0, 0, 0)}),
        ("LA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("I;16", "PNG", {}),
    ],
)
def test_bytes_a_path_and_an_object_give_one_verdict(mode, format, options, guard, picture, tmp_path):
    image = picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
    data = encoded(image, format, **options)
    path = tmp_path / "any-name"
    path.write_bytes(data)
    asked = ("can i use it ?", "sure it is fine")
    by_bytes = guard.moderate(data, *asked)
    assert by_bytes.status == "ok"
    for same in (path, str(path), Image.open(path), Image.open(io.BytesIO(data))):
        assert guard.moderate(same, *asked) == by_bytes


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "I", "F", "HSV", "PA", "RGBX"])
def test_objects_of_modes_that_no_file_has_are_judged(mode, guard, picture):
    source = picture.convert("P") if mode == "PA" else picture
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(source, *profiles, outputMode="LAB")
    else:
        image = source.convert(mode)
    assert image.mode == mode
    assert guard.moderate(image, "can i use it ?", "sure").status == "ok"


def test_views_are_all_combinations_of_the_pictures_of_each_file():
    def still(colour):
        return Image.new("RGB", (8, 8), colour)

    moving = encoded(still("red"), "PNG", save_all=True, append_images=[still("blue"), still("red")])
    assert [len(images) for images, _ in load_views(None)] == [0]
    assert [len(images) for images, _ in load_views([moving, still("lime")])] == [2, 2]  # red twice is one view
    views = load_views([still("lime"), moving, moving])
    assert [[tuple(image[0, 0].tolist()) for image in images] for images, _ in views] == [
        [(0, 255, 0), first, second]
        for first in ((255, 0, 0), (0, 0, 255))
        for second in ((255, 0, 0), (0, 0, 255))
    ]  # fmt: skip
    same, ids = load_views([still("lime"), still("lime")])[0]
    assert len(same) == 2 and ids[0] == ids[1] and np.array_equal(*same)
    with pytest.raises(ImageError, match=rf"128 ways together, the limit is {MAX_FRAMES}"):
        load_views([moving] * 7)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "huge", "device"])
def test_a_path_that_is_no_picture_file_is_unchecked_at_once(kind, guard, tmp_path):
    path = tmp_path / "picture.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(3_000_000_000)
    words = {"loop": "too many levels", "huge": f"the limit is {MAX_BYTES}"}.get(
        kind, f"a {kind}".replace("a pipe", "a named pipe")
    )
    verdict = guard.moderate(path, "a", "b")
    assert (verdict.status, verdict.decision) == ("error", "block") and words in verdict.reasons[0]


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("PNG", {"default_image": True}), ("WEBP", {"lossless": True}), ("MPO", {})]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_the_pictures_of_one_file_the_worst_counts(place, format, options, guard, world):
    """Wherever it stands; the hidden default picture of an animation, too."""
    split = ShardedSplit(world, "test")
    pictures = [Image.open(io.BytesIO(split[i].images[0].data)).convert("RGB") for i in range(12)]
    asked = ("can i use it ?", "sure it is fine")
    ordered = sorted(pictures, key=lambda one: guard.moderate(one, *asked).harm)
    frames = ordered[:2]
    frames.insert(place, ordered[-1])
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    file = load_views(data)
    assert len(file) == 3
    alone = [guard.moderate(Image.fromarray(images[0].numpy()), *asked) for images, _ in file]
    together = guard.moderate(data, *asked)
    assert together.harm == pytest.approx(max(one.harm for one in alone), abs=2e-5)
    assert alone[place].harm == max(one.harm for one in alone) > min(one.harm for one in alone)
    company = guard.moderate_batch([Input(frames[1], *asked), Input(data, *asked), Input(None, "a", "b")])
    assert company[1].harm == pytest.approx(together.harm, abs=2e-5) and company[2].status == "ok"


def test_more_frames_than_are_looked_at_are_unchecked(guard, picture):
    still = [picture.rotate(angle) for angle in range(MAX_FRAMES + 1)]
    verdict = guard.moderate(encoded(still[0], "PNG", save_all=True, append_images=still[1:]), "a", "b")
    assert verdict.status == "error" and f"the limit is {MAX_FRAMES}" in verdict.reasons[0]
