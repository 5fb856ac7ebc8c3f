"""Images: where they come from, what is known of each, and which of them are the same picture."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.stage import AskingStage, Planned, Workspace
from safe_rlhf_v.ingest.identify import identity
from safe_rlhf_v.ingest.likeness import any_alike
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.records import Image
from safe_rlhf_v.records.user_files import FileError, read_bounded, write_whole
from safe_rlhf_v.shards.images import MAX_BYTES, MAX_PIXELS, ImageError

COLUMNS = ("file", "licence", "source", "severity", "category")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class ImageSource(ABC):
    """Where images come from."""

    synthetic: bool = False
    """Whether the pictures are drawn by a program that knows the truth about them."""

    @abstractmethod
    def listed(self) -> list[Row]:
        """Per image what is known, always in the same order.

        ``name``, ``licence`` and ``source`` (where it was taken from) as texts; ``severity`` (whole number), ``category``
        (list of names) and ``attributes`` (of synthetic images) where they are known, else null.
        """

    @abstractmethod
    def read(self, entry: Row) -> bytes:
        """The encoded bytes of a listed image. Raises: ValueError: If it cannot be read."""


class ImageFolder(ImageSource):
    """A folder of images with a manifest, a CSV or JSONL file with the columns file, licence, source, severity and category.

    The first three must be there for every image: what has no licence is not used. Images that the manifest does not name are
    counted and left out. Several categories stand in one cell as ``a;b``, ``none`` means none, an empty cell unknown.

    YAML::

        source: {class_path: safe_rlhf_v.construct.ImageFolder, init_args: {path: my_pictures}}
    """

    def __init__(self, path: str, manifest: str = "manifest.csv") -> None:
        """Name the folder.

        Args:
            path: Folder of the images.
            manifest: File in it that names every image.
        """
        self.path = path
        self.manifest = manifest

    def listed(self) -> list[Row]:
        folder = Path(self.path)
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of images")
        file = folder / self.manifest
        entries: list[Row] = []
        problems: list[str] = []
        for row in read_table(file, COLUMNS, required=COLUMNS[:3]):
            texts = {name: row.text(name) for name in COLUMNS[:3]}
            for name, text in texts.items():
                if row.readable and text is None and not row.problems:
                    row.bad(name, "is empty; every image needs a file, a licence and a source")
            severity = row.integer("severity")
            category = row.names("category")
            problems += [f"{file}, row {row.number}, {column or 'row'}: {problem}" for column, problem in row.problems]
            known = {"severity": severity, "category": None if category is None else list(category)}
            entries.append({"name": texts["file"], "licence": texts["licence"], "source": texts["source"], **known})
        if problems:
            more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
            raise TableError(f"{problems[0]}{more}")
        names = Counter(str(entry["name"]) for entry in entries)
        if twice := [name for name, count in names.items() if count > 1]:
            raise TableError(f"{file}: {twice[0]!r:.140} is named {names[twice[0]]} times")
        if not entries:
            raise TableError(f"{file}: names no image")
        return entries

    def read(self, entry: Row) -> bytes:
        folder = Path(self.path).resolve()
        try:
            file = (folder / entry["name"]).resolve()
            if not file.is_relative_to(folder):
                raise ValueError(f"{entry['name']!r:.140} is outside {self.path}")
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{entry['name']!r:.140} is not a file name ({error!s:.80})") from None
        return read_bounded(file, MAX_BYTES)

    def unlisted(self) -> int:
        """How many images of the folder its manifest does not name."""
        folder = Path(self.path)
        names = {entry["name"] for entry in self.listed()}
        files = (file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        return sum(str(file.relative_to(folder)) not in names for file in files)


class CollectImages(AskingStage):
    """Copies usable images into the working folder, with what is known of them.

    An image with the pixels of an earlier one is a duplicate. One whose perceptual hash (``imagehash.phash``, 64 bits) differs
    from an earlier one's in at most ``near_distance`` bits is a near duplicate. Both are left out, and counted.

    YAML::

        class_path: safe_rlhf_v.construct.CollectImages
        init_args:
          source: {class_path: safe_rlhf_v.construct.ImageFolder, init_args: {path: my_pictures}}
    """

    name = "images"

    def __init__(
        self,
        source: ImageSource,
        min_side: int = 32,
        max_pixels: int = MAX_PIXELS,
        near_distance: int = 4,
        batch_size: int = 32,
    ) -> None:
        """Choose the source and its limits.

        Args:
            source: Where the images come from.
            min_side: Smallest number of pixels of the shorter side.
            max_pixels: Largest number of pixels of an image.
            near_distance: Bits by which the perceptual hashes of near duplicates differ at most; -1 keeps near duplicates.
            batch_size: Images at a time.
        """
        self.source = source
        self.min_side = min_side
        self.max_pixels = max_pixels
        self.near_distance = near_distance
        self.batch_size = batch_size

    def tasks(self, work: Workspace) -> list[Row]:
        return [{"key": f"i{number:06d}", **entry} for number, entry in enumerate(self.source.listed())]

    def do(self, work: Workspace, tasks: Sequence[Row]) -> list[Row]:
        return [self._collect(work, task) for task in tasks]

    def _collect(self, work: Workspace, task: Row) -> Row:
        categories = work.rubric.taxonomy.categories
        unknown = [name for name in task.get("category") or () if name not in categories]
        if unknown:
            raise ValueError(
                f"image {task['name']!r:.140}: category {unknown[0]!r:.80} is not in the rubric {work.rubric.name!r}"
            )
        try:
            data = self.source.read(task)
        except (ImageError, FileError, ValueError) as error:
            return {**task, "problem": str(error)[:300]}
        known = identity(data, max_pixels=self.max_pixels)
        problem = known.problem
        if not problem and min(known.width, known.height) < self.min_side:
            problem = f"{known.width} x {known.height} pixels; the shorter side must have {self.min_side}"
        if problem:
            return {**task, "problem": problem[:300]}
        sha256 = hashlib.sha256(data).hexdigest()
        file = f"images/{sha256[:24]}.{known.format}"
        (work.folder / "images").mkdir(exist_ok=True)
        write_whole(work.folder / file, data)
        about = {"format": known.format, "id": known.id, "sha256": sha256}
        return {**task, "file": file, **about, "width": known.width, "height": known.height, "phash": known.likeness}

    def summary(self, work: Workspace) -> dict[str, Any]:
        chosen = usable_images(work)
        unlisted = self.source.unlisted() if isinstance(self.source, ImageFolder) else 0
        counts = {
            "duplicates": chosen.duplicates,
            "near_duplicates": chosen.near_duplicates,
            "unusable": chosen.unusable,
        }
        return {"images": len(chosen.rows), **counts, **({"not_in_the_manifest": unlisted} if unlisted else {})}

    def plan(self, counts: dict[str, int]) -> list[Planned]:
        counts["images"] = len(self.source.listed())
        return []


class Usable(NamedTuple):
    """Images that are used.

    Attributes:
        rows: Row by key.
        duplicates: Number left out because an earlier one has the same pixels.
        near_duplicates: Number left out because an earlier one looks the same.
        unusable: Number that could not be read, or are too small or too large.
    """

    rows: dict[str, Row]
    duplicates: int
    near_duplicates: int
    unusable: int


def usable_images(work: Workspace) -> Usable:
    """The collected images without duplicates."""
    return without_duplicates(work.rows("images"), int(work.settings("images")["near_distance"]))


def without_duplicates(rows: Sequence[Row], near_distance: int) -> Usable:
    """Of images that are the same picture the first.

    Args:
        rows: Of the stage, in order.
        near_distance: Bits by which perceptual hashes of one picture differ at most; -1: pictures with other pixels are others.
    """
    usable: dict[str, Row] = {}
    ids: set[str] = set()
    hashes = np.zeros(len(rows), dtype=np.uint64)
    counts = Counter[str]()
    for row in rows:
        if "problem" in row:
            counts["unusable"] += 1
            continue
        own = np.uint64(int(row["phash"], 16))
        if row["id"] in ids:
            counts["duplicates"] += 1
        elif near_distance >= 0 and any_alike(hashes[: len(usable)], own, near_distance):
            counts["near_duplicates"] += 1
        else:
            hashes[len(usable)] = own
            ids.add(row["id"])
            usable[row["key"]] = row
    return Usable(usable, counts["duplicates"], counts["near_duplicates"], counts["unusable"])


def load_image(work: Workspace, row: Row) -> Image:
    """An image of the working folder.

    Raises:
        ValueError: If its file is not the one that was collected.
    """
    data = read_bounded(work.folder / row["file"], MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise ValueError(
            f"{work.folder / row['file']}: was changed after it was collected; restore it, or begin another --output"
        )
    return Image(data, row["format"], row["id"], row["sha256"], row["width"], row["height"])
