"""Images: what is refused, what is a duplicate, and what the manifest has to say."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.construct.built import workspace

from safe_rlhf_v.construct.contamination import Benchmark, contaminated
from safe_rlhf_v.construct.images import (
    CollectImages,
    ImageFolder,
    load_image,
    usable_images,
    without_duplicates,
)
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.ingest.identify import identity
from safe_rlhf_v.ingest.table import TableError


def picture(seed: int, side: int = 64, quality: int = 92) -> bytes:
    """A smooth random picture: perceptual hashes of different seeds differ."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def folder(tmp_path: Path, files: dict[str, bytes], rows: str | None = None) -> Path:
    images = tmp_path / "images_in"
    images.mkdir()
    for name, data in files.items():
        (images / name).write_bytes(data)
    lines = rows if rows is not None else "".join(f"{name},CC-BY-4.0,a camera\n" for name in files)
    (images / "manifest.csv").write_text("file,licence,source" + (",severity,category" if rows else "") + "\n" + lines)
    return images


def test_duplicates_near_duplicates_and_unusable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    files = {
        "a.jpg": picture(1), "same.jpg": picture(1), "again.jpg": picture(1, quality=60), "b.jpg": picture(2),
        "small.jpg": picture(3, side=16), "text.jpg": b"no picture",
    }  # fmt: skip
    source = folder(tmp_path, files)
    (source / "unlisted.png").write_bytes(picture(4))
    work = workspace(tmp_path / "w")
    stage = CollectImages(ImageFolder(str(source)))
    (tmp_path / "w").mkdir()
    numbers = stage.run(work)
    assert numbers == {"images": 2, "duplicates": 1, "near_duplicates": 1, "unusable": 2, "not_in_the_manifest": 1}
    rows = usable_images(work).rows
    assert [row["name"] for row in rows.values()] == ["a.jpg", "b.jpg"]
    assert {row["licence"] for row in rows.values()} == {"CC-BY-4.0"}
    assert load_image(work, rows["i000000"]).data == files["a.jpg"]
    problems = [row["problem"] for row in work.rows("images") if "problem" in row]
    assert "16 x 16 pixels" in problems[0] and "not a readable JPEG" in problems[1]
    assert len(without_duplicates(work.rows("images"), -1).rows) == 3


def test_a_collected_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    work = workspace(tmp_path / "w")
    (tmp_path / "w").mkdir()
    CollectImages(ImageFolder(str(folder(tmp_path, {"a.jpg": picture(1)})))).run(work)
    (row,) = usable_images(work).rows.values()
    (tmp_path / "w" / row["file"]).write_bytes(picture(2))
    with pytest.raises(ValueError, match="was changed after it was collected"):
        load_image(work, row)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.jpg,,a camera,,\n", "licence: is empty; every image needs"),
        ("a.jpg,CC0,,,\n", "source: is empty"),
        (",CC0,me,,\n", "file: is empty"),
        ("a.jpg,CC0,me,high,\n", "severity: must be a whole number"),
        ("a.jpg,CC0,me,,\na.jpg,CC0,me,,\n", "'a.jpg' is named 2 times"),
        ("\n", "names no image"),
        ("a.jpg,CC0\n", "has 2 cells"),
    ],
)
def test_a_manifest_that_says_too_little_is_refused(rows: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        ImageFolder(str(folder(tmp_path, {"a.jpg": picture(1)}, rows))).listed()


def test_files_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    source = ImageFolder(str(folder(tmp_path, {}, "../secret.jpg,CC0,me,,\nlink.jpg,CC0,me,,\nmissing.jpg,CC0,me,,\n")))
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    (tmp_path / "images_in" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    work = workspace(tmp_path / "w")
    (tmp_path / "w").mkdir()
    assert CollectImages(source).run(work)["unusable"] == 3
    assert all("outside" in row["problem"] or "no such file" in row["problem"] for row in work.rows("images"))


def test_severity_and_category_come_from_the_manifest(tmp_path: Path) -> None:
    rows = "a.jpg,CC0,me,2,arson;fraud\nb.jpg,CC0,me,,none\nc.jpg,CC0,me,,\n"
    files = {f"{name}.jpg": picture(i) for i, name in enumerate("abc")}
    listed = ImageFolder(str(folder(tmp_path, files, rows))).listed()
    assert [(one["severity"], one["category"]) for one in listed] == [(2, ["arson", "fraud"]), (None, []), (None, None)]


def test_a_category_that_the_rubric_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    source = ImageFolder(str(folder(tmp_path, {"a.jpg": picture(1)}, "a.jpg,CC0,me,,gardening\n")))
    with pytest.raises(ValueError, match="'gardening' is not in the rubric 'embedded-world'"):
        CollectImages(source).run(workspace(tmp_path / "w"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing: no such folder of images"):
        ImageFolder(str(tmp_path / "nothing")).listed()


def rows_of(*pictures: bytes) -> dict[str, Row]:
    from safe_rlhf_v.shards.images import probe

    return {
        f"i{i}": {"id": probe(data).id, "sha256": probe(data).sha256, "phash": identity(data).likeness}
        for i, data in enumerate(pictures)
    }


def test_images_of_benchmarks_are_recognised(tmp_path: Path) -> None:
    rows = rows_of(picture(1), picture(2), picture(3), picture(4))
    hashes = tmp_path / "hashes.txt"
    lines = [rows["i0"]["sha256"].upper(), rows["i1"]["id"], identity(picture(3, quality=50)).likeness, ""]
    hashes.write_text("\n".join(lines))
    benchmark = Benchmark("theirs", str(hashes))
    assert contaminated(rows, [benchmark], 4) == {"i0": "theirs", "i1": "theirs", "i2": "theirs"}
    assert contaminated(rows, [benchmark], -1) == {"i0": "theirs", "i1": "theirs"}
    hashes.write_text("not a hash\n")
    with pytest.raises(ValueError, match="line 1: 'not a hash' is no hash"):
        contaminated(rows, [benchmark], 4)
    hashes.write_text("\n")
    with pytest.raises(ValueError, match="names no hash"):
        contaminated(rows, [benchmark], 4)


def test_images_of_a_shard_folder_are_recognised(tmp_path: Path, world: Path) -> None:
    from safe_rlhf_v.shards import ShardedSplit

    image = ShardedSplit(world, "test")[0].images[0]
    rows = {"x": {"id": image.id, "sha256": "0" * 64, "phash": "0" * 16}, **rows_of(picture(9))}
    assert contaminated(rows, [Benchmark("world", str(world))], -1) == {"x": "world"}
