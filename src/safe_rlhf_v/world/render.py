"""Draw a scene: 64 x 64 RGB, drawn at three times the size and box-filtered."""

import io
import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from safe_rlhf_v.world.scenes import COLOURS, Scene

SIZE = 64
_SCALE = 3
_RGB = {
    "red": (205, 45, 45),
    "blue": (45, 85, 205),
    "green": (45, 155, 65),
    "yellow": (228, 200, 40),
    "purple": (135, 60, 165),
    "orange": (235, 130, 35),
}
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]
DARK: Colour = (40, 40, 45)
LIGHT: Colour = (235, 235, 235)


class Pen:
    """Draws in a box with coordinates 0..1, so that a shape is defined once for every size and position."""

    def __init__(self, draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
        """Store surface, box and colour.

        Args:
            draw: Pillow's drawing surface.
            box: Left, top, width, height in pixels.
            colour: Default colour.
        """
        self.draw = draw
        self.box = box
        self.colour = colour

    def at(self, *points: float) -> list[float]:
        """Pixel coordinates of 0..1 coordinates x0, y0, x1, y1, and so on."""
        x, y, w, h = self.box
        return [(x + p * w) if i % 2 == 0 else (y + p * h) for i, p in enumerate(points)]

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None) -> None:
        """A filled rectangle."""
        self.draw.rectangle(self.at(x0, y0, x1, y1), fill=fill or self.colour)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None) -> None:
        """A filled ellipse."""
        self.draw.ellipse(self.at(x0, y0, x1, y1), fill=fill or self.colour)

    def poly(self, *points: float, fill: Colour | None = None) -> None:
        """A filled polygon."""
        self.draw.polygon(self.at(*points), fill=fill or self.colour)

    def line(self, *points: float, width: float = 0.08, fill: Colour | None = None) -> None:
        """A line; ``width`` is a share of the box."""
        self.draw.line(self.at(*points), fill=fill or self.colour, width=max(2, round(width * self.box[2])))


def _knife(p: Pen) -> None:
    p.poly(0.05, 0.45, 0.6, 0.35, 0.6, 0.6, 0.2, 0.6, fill=LIGHT)
    p.rect(0.58, 0.36, 0.97, 0.6)


def _ladder(p: Pen) -> None:
    p.line(0.25, 0.02, 0.15, 0.98, width=0.09)
    p.line(0.75, 0.02, 0.85, 0.98, width=0.09)
    for y in (0.18, 0.38, 0.58, 0.78):
        p.line(0.22, y, 0.78, y, width=0.07)


def _plug(p: Pen) -> None:
    p.rect(0.3, 0.05, 0.4, 0.35, DARK)
    p.rect(0.6, 0.05, 0.7, 0.35, DARK)
    p.rect(0.2, 0.32, 0.8, 0.65)
    p.line(0.5, 0.65, 0.5, 0.85, 0.8, 0.95, width=0.1)


def _candle(p: Pen) -> None:
    p.rect(0.36, 0.4, 0.64, 0.98)
    p.line(0.5, 0.4, 0.5, 0.28, width=0.05, fill=DARK)
    p.poly(0.5, 0.02, 0.62, 0.22, 0.5, 0.32, 0.38, 0.22, fill=(250, 190, 60))


def _gascan(p: Pen) -> None:
    p.rect(0.15, 0.3, 0.85, 0.97)
    p.line(0.25, 0.3, 0.25, 0.15, 0.6, 0.15, 0.6, 0.3, width=0.08)
    p.poly(0.7, 0.3, 0.95, 0.05, 1.0, 0.12, 0.85, 0.3, fill=DARK)
    p.line(0.25, 0.4, 0.75, 0.88, width=0.07, fill=DARK)
    p.line(0.75, 0.4, 0.25, 0.88, width=0.07, fill=DARK)


def _bleach(p: Pen) -> None:
    p.rect(0.42, 0.03, 0.62, 0.16, LIGHT)
    p.poly(0.42, 0.14, 0.62, 0.14, 0.8, 0.38, 0.8, 0.97, 0.22, 0.97, 0.22, 0.38)
    p.rect(0.3, 0.52, 0.72, 0.8, LIGHT)


def _spray(p: Pen) -> None:
    p.rect(0.34, 0.34, 0.66, 0.98)
    p.rect(0.42, 0.16, 0.58, 0.34, DARK)
    for y in (0.06, 0.18, 0.3):
        p.oval(0.05, y, 0.16, y + 0.08, LIGHT)
        p.oval(0.22, y + 0.02, 0.32, y + 0.1, LIGHT)


def _pills(p: Pen) -> None:
    for x, y in ((0.05, 0.1), (0.5, 0.3), (0.1, 0.62)):
        p.oval(x, y, x + 0.42, y + 0.24)
        p.rect(x + 0.19, y, x + 0.23, y + 0.24, LIGHT)


def _syringe(p: Pen) -> None:
    p.line(0.02, 0.98, 0.28, 0.72, width=0.04, fill=DARK)
    p.line(0.28, 0.72, 0.7, 0.3, width=0.22)
    p.line(0.7, 0.3, 0.9, 0.1, width=0.06, fill=DARK)
    p.line(0.8, 0.02, 0.98, 0.2, width=0.08, fill=DARK)


def _marble(p: Pen) -> None:
    p.oval(0.15, 0.15, 0.85, 0.85)
    p.oval(0.28, 0.26, 0.48, 0.44, LIGHT)


def _dog(p: Pen) -> None:
    p.rect(0.2, 0.4, 0.75, 0.68)
    for x in (0.2, 0.38, 0.55, 0.67):
        p.rect(x, 0.66, x + 0.09, 0.97)
    p.oval(0.62, 0.15, 0.97, 0.5)
    p.poly(0.66, 0.2, 0.6, 0.02, 0.78, 0.15, fill=DARK)
    p.line(0.2, 0.45, 0.03, 0.22, width=0.07)
    p.oval(0.8, 0.26, 0.87, 0.33, DARK)


def _car(p: Pen) -> None:
    p.poly(0.2, 0.5, 0.35, 0.25, 0.68, 0.25, 0.82, 0.5)
    p.rect(0.02, 0.48, 0.98, 0.75)
    p.rect(0.4, 0.32, 0.63, 0.47, LIGHT)
    p.oval(0.12, 0.62, 0.38, 0.9, DARK)
    p.oval(0.62, 0.62, 0.88, 0.9, DARK)


def _idcard(p: Pen) -> None:
    p.rect(0.02, 0.2, 0.98, 0.82)
    p.oval(0.12, 0.32, 0.36, 0.54, LIGHT)
    p.rect(0.1, 0.56, 0.38, 0.72, LIGHT)
    for y in (0.36, 0.5, 0.64):
        p.rect(0.48, y, 0.9, y + 0.06, LIGHT)


def _screen(p: Pen) -> None:
    p.rect(0.02, 0.08, 0.98, 0.72)
    p.rect(0.1, 0.16, 0.9, 0.64, (25, 30, 60))
    p.rect(0.44, 0.72, 0.56, 0.88)
    p.rect(0.25, 0.86, 0.75, 0.96)


def _money(p: Pen) -> None:
    for x, y in ((0.0, 0.12), (0.1, 0.3), (0.2, 0.48)):
        p.rect(x, y, x + 0.78, y + 0.36, DARK)
        p.rect(x + 0.03, y + 0.03, x + 0.75, y + 0.33)
    p.oval(0.47, 0.55, 0.71, 0.77, LIGHT)


def _plant(p: Pen) -> None:
    p.poly(0.28, 0.65, 0.72, 0.65, 0.64, 0.98, 0.36, 0.98, fill=(120, 75, 45))
    for box in ((0.02, 0.3, 0.5, 0.5), (0.5, 0.25, 0.98, 0.45), (0.36, 0.0, 0.64, 0.42)):
        p.oval(*box)
    p.line(0.5, 0.3, 0.5, 0.66, width=0.06)


def _child(p: Pen) -> None:
    p.oval(0.3, 0.02, 0.7, 0.4, (240, 195, 160))
    p.poly(0.5, 0.36, 0.85, 0.8, 0.15, 0.8, fill=(240, 120, 170))
    p.line(0.2, 0.5, 0.8, 0.5, width=0.08, fill=(240, 195, 160))
    p.rect(0.34, 0.8, 0.44, 0.98, (240, 195, 160))
    p.rect(0.56, 0.8, 0.66, 0.98, (240, 195, 160))


def _fire(p: Pen) -> None:
    p.poly(0.5, 0.0, 0.9, 0.6, 0.75, 0.97, 0.25, 0.97, 0.1, 0.6, fill=(235, 80, 25))
    p.poly(0.5, 0.4, 0.7, 0.75, 0.6, 0.95, 0.4, 0.95, 0.3, 0.75, fill=(250, 215, 70))


def _water(p: Pen) -> None:
    p.oval(0.0, 0.55, 1.0, 0.98, (70, 150, 225))
    p.poly(0.5, 0.02, 0.72, 0.36, 0.5, 0.52, 0.28, 0.36, fill=(70, 150, 225))
    p.line(0.2, 0.74, 0.45, 0.74, width=0.05, fill=LIGHT)


def _crowd(p: Pen) -> None:
    for x, y in ((0.02, 0.2), (0.36, 0.08), (0.68, 0.2), (0.18, 0.45), (0.52, 0.45)):
        p.oval(x + 0.06, y, x + 0.24, y + 0.2, (90, 65, 50))
        p.poly(x, y + 0.5, x + 0.15, y + 0.16, x + 0.3, y + 0.5, fill=(95, 100, 115))


def _toxic(p: Pen) -> None:
    p.poly(0.5, 0.0, 1.0, 0.5, 0.5, 1.0, 0.0, 0.5, fill=(245, 225, 60))
    p.oval(0.3, 0.2, 0.7, 0.56, DARK)
    p.rect(0.38, 0.5, 0.62, 0.68, DARK)
    p.oval(0.36, 0.32, 0.47, 0.44, LIGHT)
    p.oval(0.53, 0.32, 0.64, 0.44, LIGHT)


def _lock(p: Pen) -> None:
    p.draw.arc(p.at(0.25, 0.02, 0.75, 0.75), 180, 360, fill=DARK, width=max(2, round(0.1 * p.box[2])))
    p.rect(0.12, 0.4, 0.88, 0.97, (150, 155, 165))
    p.oval(0.42, 0.55, 0.58, 0.7, DARK)
    p.rect(0.47, 0.65, 0.53, 0.85, DARK)


def _cat(p: Pen) -> None:
    grey = (125, 110, 100)
    p.oval(0.12, 0.2, 0.88, 0.92, grey)
    p.poly(0.14, 0.45, 0.16, 0.02, 0.45, 0.25, fill=grey)
    p.poly(0.86, 0.45, 0.84, 0.02, 0.55, 0.25, fill=grey)
    p.oval(0.28, 0.44, 0.42, 0.58, (120, 220, 90))
    p.oval(0.58, 0.44, 0.72, 0.58, (120, 220, 90))
    p.line(0.0, 0.7, 0.36, 0.68, width=0.03, fill=LIGHT)
    p.line(1.0, 0.7, 0.64, 0.68, width=0.03, fill=LIGHT)


_OBJECTS: dict[str, Callable[[Pen], None]] = {
    "knife": _knife, "ladder": _ladder, "plug": _plug, "candle": _candle, "gascan": _gascan, "bleach": _bleach,
    "spray": _spray, "pills": _pills, "syringe": _syringe, "marble": _marble, "dog": _dog, "car": _car,
    "idcard": _idcard, "screen": _screen, "money": _money, "plant": _plant,
}  # fmt: skip
_CONTEXTS: dict[str, Callable[[Pen], None]] = {
    "child": _child, "fire": _fire, "water": _water, "crowd": _crowd, "toxic": _toxic, "lock": _lock, "cat": _cat,
}  # fmt: skip


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, 64 x 64 RGB; the same scene always gives the same pixels."""
    rng = random.Random(scene.seed)
    side = SIZE * _SCALE
    grey = rng.randint(150, 225)
    wall = tuple(max(0, min(255, grey + rng.randint(-22, 22))) for _ in range(3))
    floor = tuple(max(0, c - rng.randint(5, 45)) for c in wall)
    picture = Image.new("RGB", (side, side), wall)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, rng.uniform(0.45, 0.75) * side, side, side], fill=floor)
    left = rng.random() < 0.5
    if scene.context in _CONTEXTS:
        w = rng.uniform(0.32, 0.38) * side
        x = rng.uniform(0.58, 0.62) * side if left else rng.uniform(0.02, 0.06) * side
        y = rng.uniform(0.1, 0.58) * side
        _CONTEXTS[scene.context](Pen(draw, (x, y, w, w), DARK))
    colour = tuple(max(0, min(255, c + rng.randint(-18, 18))) for c in _RGB[scene.colour])
    assert scene.colour in COLOURS and len(colour) == 3
    two = scene.count == "two"
    w = (rng.uniform(0.32, 0.37) if two else rng.uniform(0.42, 0.54)) * side
    x = rng.uniform(0.02, 0.06) * side if left else side - w - rng.uniform(0.02, 0.06) * side
    tops = (0.06, 0.55) if two else (rng.uniform(0.1, 0.44),)
    for top in tops:
        _OBJECTS[scene.object](Pen(draw, (x, top * side, w, w), colour))
    small = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(np.float32)
    noise = np.random.default_rng(scene.seed).normal(0, 5, small.shape)
    return Image.fromarray((small + noise).round().clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=4)  # two prompts may share a picture
def encode(scene: Scene) -> bytes:
    """The picture as JPEG bytes."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
