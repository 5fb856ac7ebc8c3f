"""Pictures of the world for people: records with their labels, and every object in every context."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardedSplit, decode
from safe_rlhf_v.world.render import SIZE, render
from safe_rlhf_v.world.scenes import COLOURS, CONTEXTS, OBJECTS, Scene

_SHADES = ((225, 236, 225), (250, 238, 190), (247, 205, 160), (240, 165, 150))
"""Background of severity 0 .. 3."""
_ZOOM = 2
_FONT_SIZE = 15


def grid() -> Image.Image:
    """All 16 objects in all 8 contexts, the frame coloured by severity, which is also written."""
    cell, left, top = SIZE + 14, 74, 26
    sheet = Image.new("RGB", (left + cell * len(CONTEXTS), top + cell * len(OBJECTS)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for j, context in enumerate(CONTEXTS):
        draw.text((left + j * cell + 8, 4), context, "black", font)
    for i, thing in enumerate(OBJECTS):
        draw.text((4, top + i * cell + cell // 2 - 8), thing, "black", font)
        for j, context in enumerate(CONTEXTS):
            scene = Scene(thing, COLOURS[(i + j) % len(COLOURS)], context, "one", 100 * i + j)
            x, y = left + j * cell, top + i * cell
            draw.rectangle([x, y, x + cell - 1, y + cell - 1], fill=_SHADES[scene.severity])
            sheet.paste(render(scene), (x + 7, y + 2))
            draw.text((x + cell - 12, y + cell - 15), str(scene.severity), "black", ImageFont.load_default(12))
    return sheet


def contact_sheet(root: str | Path, split: str = "test", rows: int = 8, first: int = 0) -> Image.Image:
    """Records of a split: picture, question, responses, true levels and what annotators preferred.

    Args:
        root: Shard folder of the world.
        split: Which split.
        rows: How many records.
        first: Number of the first one.
    """
    side = SIZE * _ZOOM
    sheet = Image.new("RGB", (side + 860, rows * (side + 12)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    records = ShardedSplit(root, split)
    for i in range(rows):
        record = records[first + i]
        y = i * (side + 12)
        picture = Image.fromarray(decode(record.images[0].data)).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (0, y))
        for j, (line, colour) in enumerate(_lines(record)):
            draw.text((side + 14, y + 2 + 22 * j), line, colour, font)
    return sheet


def _lines(record: Record) -> list[tuple[str, str]]:
    """What is written beside a picture, with its colour."""
    assert record.truth is not None
    kind = ", ".join(record.category or ()) or "harmless prompt"
    lines = [(f"{record.question}      [{kind}, severity {record.image_severity}]", "black")]
    for k, response in enumerate(record.responses):
        level, helpful = record.truth.safety[k], record.truth.helpfulness[k]
        marks = " more helpful" * (record.more_helpful == k) + " safer" * (record.safer == k)
        lines.append((f"{k}: {response.text}", "#1f3d7a" if level >= 0 else "#8a2a00"))
        lines.append((f"     level {level:+d}, helpfulness {helpful:+.1f}, annotators:{marks or ' -'}", "#555555"))
    return lines
