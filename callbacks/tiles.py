"""A grid of pictures with wrapped text beside them, drawn with Pillow."""

import math
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from safe_rlhf_v.records.batches import Prompts

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

WIDTH = 640
PICTURE = 192
MARGIN = 14
LEADING = 19
MAX_LINES = 4  # of one text; more ends with an ellipsis
MAX_TURNS = 4  # before the question
INK = "#111111"
MUTED = "#595959"
RIGHT = "#0072B2"
WRONG = "#D55E00"
RULE = "#CCCCCC"


class Line(NamedTuple):
    """One text of a tile, wrapped when drawn.

    Attributes:
        text: What to write.
        bold: In bold type.
        colour: Of the ink.
        gap: Pixels left free above.
    """

    text: str
    bold: bool = False
    colour: str = INK
    gap: int = 0


class Tile(NamedTuple):
    """One picture and what stands beside it.

    Attributes:
        picture: Pixels, uint8 (H, W, 3).
        lines: From top to bottom.
    """

    picture: np.ndarray
    lines: tuple[Line, ...]


def draw_grid(tiles: list[Tile], columns: int = 2) -> np.ndarray:
    """All tiles row by row on white, (H, W, 3) uint8.

    Args:
        tiles: At least one.
        columns: Tiles per row.
    """
    from PIL import Image, ImageDraw

    columns = min(columns, len(tiles))
    wrapped = [_wrap_all(tile.lines) for tile in tiles]
    heights = [max(PICTURE, sum(LEADING + line.gap for line in lines)) + 2 * MARGIN for lines in wrapped]
    rows = [max(heights[i : i + columns]) for i in range(0, len(tiles), columns)]
    canvas = Image.new("RGB", (WIDTH * columns, sum(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (tile, lines) in enumerate(zip(tiles, wrapped, strict=True)):
        x = WIDTH * (i % columns)
        y = sum(rows[: i // columns])
        canvas.paste(_fit(tile.picture), (x + MARGIN, y + MARGIN))
        _write(draw, lines, x + PICTURE + 2 * MARGIN, y + MARGIN)
        draw.rectangle((x, y, x + WIDTH - 1, y + rows[i // columns] - 1), outline=RULE)
    return np.asarray(canvas)


def picture_of(prompts: Prompts, row: int) -> np.ndarray:
    """The picture of a prompt, uint8 (H, W, 3), not larger than a tile shows it: several in reading order; white without one.

    It has memory of its own: a view would keep the pictures of the whole batch.
    """
    pictures = [image.cpu().numpy() for image in prompts.images[row]]
    if len(pictures) == 1:
        return np.array(_fit(pictures[0]) if max(pictures[0].shape) > PICTURE else pictures[0])
    columns = max(math.ceil(math.sqrt(len(pictures))), 1)
    cell = max(PICTURE // columns, 1)
    canvas = np.full((cell * max(-(-len(pictures) // columns), 1), cell * columns, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        small = np.asarray(_fit(picture, max(cell - 2, 1)))  # two white pixels between neighbours
        top = cell * (i // columns)
        left = cell * (i % columns)
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def prompt_lines(prompts: Prompts, row: int) -> tuple[Line, ...]:
    """The texts of a prompt: system text and the last earlier turns with who wrote them, then the question in bold type."""
    system, history = prompts.contexts[row]
    lines = [Line(f"system: {system}", colour=MUTED)] if system else []
    if left_out := len(history[:-MAX_TURNS]):
        lines.append(Line(f"({left_out} turns)", colour=MUTED))
    lines += [Line(f"{turn.role}: {turn.text}", colour=MUTED) for turn in history[-MAX_TURNS:]]
    return (*lines, Line(prompts.questions[row], bold=True))


def _fit(picture: np.ndarray, side: int = PICTURE) -> "PilImage":
    """The picture, enlarged or reduced to fit a square of this side without distortion."""
    from PIL import Image

    image = Image.fromarray(picture)
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _wrap_all(lines: tuple[Line, ...]) -> list[Line]:
    """The lines broken to the width beside the picture."""
    room = WIDTH - PICTURE - 3 * MARGIN
    wrapped = []
    for line in lines:
        first, *rest = _wrap(line.text, _font(line.bold), room)
        wrapped += [line._replace(text=first), *(line._replace(text=piece, gap=0) for piece in rest)]
    return wrapped


def _wrap(text: str, font: "FreeTypeFont", room: int) -> list[str]:
    """Greedy wrapping by measured width up to ``MAX_LINES``; a word wider than the room is broken."""
    pieces = [""]
    for word in text.split():
        if len(pieces) > MAX_LINES:
            break
        longer = f"{pieces[-1]} {word}".strip()
        if font.getlength(longer) <= room:
            pieces[-1] = longer
            continue
        pieces += [word] if pieces[-1] else []
        pieces[-1] = word
        while len(pieces) <= MAX_LINES and font.getlength(word) > room:
            fits = _fitting(word, font, room)
            pieces[-1:] = [word[:fits], word[fits:]]
            word = word[fits:]
    if len(pieces) > MAX_LINES:
        pieces = [*pieces[: MAX_LINES - 1], pieces[MAX_LINES - 1][:-2].rstrip() + "…"]
    return pieces


def _fitting(word: str, font: "FreeTypeFont", room: int) -> int:
    """Number of the first characters of a word that fit into the room, at least one."""
    return max(1, bisect_right(range(1, len(word)), float(room), key=lambda n: font.getlength(word[:n])))


def _write(draw: "ImageDraw", lines: list[Line], x: int, y: int) -> None:
    """Lines below each other, starting at (x, y)."""
    for line in lines:
        draw.text((x, y + line.gap), line.text, fill=line.colour, font=_font(line.bold))
        y += LEADING + line.gap


def _font(bold: bool) -> "FreeTypeFont":
    """DejaVu Sans, which matplotlib ships: every Latin, Greek and Cyrillic letter."""
    import matplotlib as mpl
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", name), size=14)
