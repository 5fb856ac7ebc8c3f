"""Some pictures of a data set, small, in one file."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage

from safe_rlhf_v.shards.images import load_rgb
from safe_rlhf_v.shards.split import parse_sample
from safe_rlhf_v.shards.tar import Place

SIDE = 160
COLUMNS = 6
GAP = 4


def contact_sheet(pictures: Sequence[tuple[str, Place, int]], root: Path) -> bytes:
    """A JPEG of the pictures in rows; empty without pictures.

    Args:
        pictures: Split, place of the record, and number of the picture in it.
        root: Folder of the shards.
    """
    if not pictures:
        return b""
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // COLUMNS)
    step = SIDE + GAP
    sheet = PILImage.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
    for i, (split, place, number) in enumerate(pictures):
        small = _picture(root / f"{split}-{place.shard:06d}.tar", place, number)
        small.thumbnail((SIDE, SIDE))
        left = GAP + i % COLUMNS * step + (SIDE - small.width) // 2
        top = GAP + i // COLUMNS * step + (SIDE - small.height) // 2
        sheet.paste(small, (left, top))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _picture(file: Path, place: Place, number: int) -> PILImage.Image:
    with file.open("rb") as shard:
        shard.seek(place.offset)
        record = parse_sample(shard.read(place.length), place.members, file.name)
    return load_rgb(record.images[number].data)[0]
