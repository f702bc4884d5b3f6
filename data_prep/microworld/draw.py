"""How microworld looks: palette, shapes, maze tiles and jigsaw pieces.

Everything is drawn once at `OVERSAMPLE` times its size, reduced, and kept; an image is then a handful of pastes.
All positions and sizes are pixels of the final image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFilter

from amvl_core.contracts.sample import Region

SIZE = 64
"""Width and height of every image; a multiple of 16, the stretch that one visual token of the tiny model covers."""
OVERSAMPLE = 8
CELL = 16
OBJECT = 14
"""Nominal width of an object that stands in one cell."""

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (224, 49, 58),
    "yellow": (250, 197, 28),
    "green": (34, 160, 90),
    "blue": (45, 120, 235),
}
SHAPES = ("circle", "square", "triangle", "star")

# Papers on which every colour of the palette stands out: top and bottom of a gentle gradient.
PAPERS: tuple[tuple[RGB, RGB], ...] = (
    ((252, 250, 246), (240, 235, 226)),
    ((249, 251, 253), (229, 236, 244)),
    ((250, 252, 249), (230, 240, 231)),
    ((253, 249, 250), (243, 231, 234)),
)
POLE = (48, 52, 62)
WALL, WALL_EDGE, FLOOR = (58, 68, 92), (44, 52, 72), (250, 245, 232)
FRAME, HOLE, HOLE_MARK = (255, 255, 255), (214, 218, 226), (130, 138, 154)

NORTH, EAST, SOUTH, WEST = 1, 2, 4, 8

PICTURE, PIECE = 32, 16
PICTURE_AT = (4, 16)
PIECES_AT = {"top": (44, 10), "bottom": (44, 38)}


@dataclass(frozen=True)
class Placed:
    """An object: its centre in pixels and its nominal width."""

    shape: str
    colour: str
    x: int
    y: int
    size: int = OBJECT

    def box(self) -> tuple[float, float, float, float]:
        """`(x1, y1, x2, y2)` around the object without its shadow."""
        points = outline(self.shape, self.size)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return (self.x + min(xs), self.y + min(ys), self.x + max(xs), self.y + max(ys))

    def region(self, label: str) -> Region:
        """The object as something that a reasoning step looks at."""
        return Region(label, tuple_of(self.box()))


def tuple_of(box: Sequence[float]) -> tuple[float, float, float, float]:
    """A box clipped to the image and rounded to a tenth of a pixel."""
    x1, y1, x2, y2 = (round(min(max(value, 0.0), float(SIZE)), 1) for value in box)
    return (x1, y1, x2, y2)


def outline(shape: str, size: float) -> list[tuple[float, float]]:
    """The corners of a shape of nominal width `size` around (0, 0); the sizes make the shapes look equally large."""
    r = size / 2
    if shape == "circle":
        return [_polar(r * 0.97, i / 48) for i in range(48)]
    if shape == "square":
        a = r * 0.86
        return [(-a, -a), (a, -a), (a, a), (-a, a)]
    if shape == "triangle":
        return [(0, -r), (r * 1.06, r * 0.86), (-r * 1.06, r * 0.86)]
    if shape == "star":
        return [_polar(r * (1.14 if i % 2 == 0 else 0.5), i / 10) for i in range(10)]
    if shape == "diamond":
        return [(0, -r * 1.12), (r * 0.88, 0), (0, r * 1.12), (-r * 0.88, 0)]
    a, b = r, r * 0.36
    return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]


def objects(placed: Sequence[Placed], paper: int) -> Image.Image:
    """Objects on paper."""
    image = _paper(paper).copy()
    for item in placed:
        sprite, mask = _sprite(item.shape, item.colour, item.size)
        half = sprite.width // 2
        image.paste(sprite, (item.x - half, item.y - half), mask)
    return image


def maze(openings: Sequence[int], ball: int, flags: dict[str, int]) -> Image.Image:
    """A maze of 16-pixel cells, row by row; `openings` holds the open sides of each cell as bits."""
    image = Image.new("RGB", (SIZE, SIZE))
    side = SIZE // CELL
    for cell, sides in enumerate(openings):
        image.paste(_tile(sides), (cell % side * CELL, cell // side * CELL))
    for (sprite, mask), cell in [(_ball(), ball), *((_flag(colour), cell) for colour, cell in flags.items())]:
        image.paste(sprite, (cell % side * CELL, cell // side * CELL), mask)
    return image


def jigsaw(picture: tuple[str, str], corner: int, pieces: dict[str, tuple[str, str, int]], paper: int) -> Image.Image:
    """A picture (shape, colour) without one quarter, and a top and a bottom piece (picture and its quarter).

    Quarters are numbered 0 top left, 1 top right, 2 bottom left, 3 bottom right.
    """
    image = _paper(paper).copy()
    _framed(image, _picture(*picture), PICTURE_AT)
    x, y = corner_at(corner)
    image.paste(_hole(), (PICTURE_AT[0] + x, PICTURE_AT[1] + y))
    for name, (shape, colour, quarter) in pieces.items():
        left, top = corner_at(quarter)
        _framed(image, _picture(shape, colour).crop((left, top, left + PIECE, top + PIECE)), PIECES_AT[name])
    return image


def corner_at(corner: int) -> tuple[int, int]:
    """Where quarter number `corner` begins in its picture."""
    return corner % 2 * PIECE, corner // 2 * PIECE


def png(image: Image.Image) -> bytes:
    """The image as PNG; the fast compression level, since the images are small and many."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _polar(radius: float, turn: float) -> tuple[float, float]:
    return radius * math.sin(math.tau * turn), -radius * math.cos(math.tau * turn)


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _gradient(width: int, height: int, top: RGB, bottom: RGB) -> Image.Image:
    column = Image.new("RGB", (1, height))
    column.putdata([_mix(top, bottom, y / max(height - 1, 1)) for y in range(height)])
    return column.resize((width, height))


@cache
def _paper(number: int) -> Image.Image:
    return _gradient(SIZE, SIZE, *PAPERS[number])


@cache
def _sprite(shape: str, colour: str, size: int) -> tuple[Image.Image, Image.Image]:
    """The object with a soft shadow, in the middle of a square with a margin of two pixels."""
    width = (size // 2 + 4) * 2
    big = width * OVERSAMPLE
    points = [((x + width / 2) * OVERSAMPLE, (y + width / 2) * OVERSAMPLE) for x, y in outline(shape, size)]
    return _reduced(_solid(points, big, COLOURS[colour], OVERSAMPLE * 0.9), width)


def _solid(points: list[tuple[float, float]], big: int, rgb: RGB, drop: float) -> Image.Image:
    """A filled outline, lighter at its top, with a darker rim and a shadow `drop` large pixels below."""
    mask = Image.new("L", (big, big))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    shadow = Image.new("L", (big, big))
    ImageDraw.Draw(shadow).polygon([(x, y + drop) for x, y in points], fill=90)
    result = Image.new("RGBA", (big, big), (30, 34, 48, 0))
    result.putalpha(shadow.filter(ImageFilter.GaussianBlur(drop * 0.8)))
    fill = _gradient(big, big, _mix(rgb, (255, 255, 255), 0.16), _mix(rgb, (0, 0, 0), 0.06))
    ImageDraw.Draw(fill).line([*points, *points[:2]], fill=_mix(rgb, (0, 0, 0), 0.22), width=round(OVERSAMPLE * 0.9))
    result.paste(fill, (0, 0), mask)
    result.putalpha(Image.composite(mask, result.getchannel("A"), mask))
    return result


def _reduced(large: Image.Image, width: int) -> tuple[Image.Image, Image.Image]:
    small = large.resize((width, width), Image.Resampling.BOX)
    return small.convert("RGB"), small.getchannel("A")


@cache
def _tile(sides: int) -> Image.Image:
    """One cell of a maze: a rounded floor, and a corridor to each open side."""
    big, margin = CELL * OVERSAMPLE, round(2.5 * OVERSAMPLE)
    tile = Image.new("RGB", (big, big), WALL)
    pen = ImageDraw.Draw(tile)
    for inset, colour in ((margin - OVERSAMPLE // 2, WALL_EDGE), (margin, FLOOR)):
        low, high = inset, big - 1 - inset
        pen.rounded_rectangle((low, low, high, high), radius=3 * OVERSAMPLE, fill=colour)
        middle = big // 2
        arms = {
            NORTH: (low, 0, high, middle),
            EAST: (middle, low, big, high),
            SOUTH: (low, middle, high, big),
            WEST: (0, low, middle, high),
        }
        for side, box in arms.items():
            if sides & side:
                pen.rectangle(box, fill=colour)
    return tile.resize((CELL, CELL), Image.Resampling.BOX)


@cache
def _ball() -> tuple[Image.Image, Image.Image]:
    big = CELL * OVERSAMPLE
    points = [(x * OVERSAMPLE + big / 2, y * OVERSAMPLE + big / 2) for x, y in outline("circle", 8)]
    large = _solid(points, big, COLOURS["yellow"], OVERSAMPLE * 0.7)
    return _reduced(large, CELL)


@cache
def _flag(colour: str) -> tuple[Image.Image, Image.Image]:
    big, unit = CELL * OVERSAMPLE, OVERSAMPLE
    cloth = [(5.2 * unit, 3.2 * unit), (13 * unit, 6.2 * unit), (5.2 * unit, 9.4 * unit)]
    large = _solid(cloth, big, COLOURS[colour], unit * 0.5)
    ImageDraw.Draw(large).rounded_rectangle((4.3 * unit, 3 * unit, 5.5 * unit, 13.2 * unit), unit // 2, POLE)
    return _reduced(large, CELL)


@cache
def _picture(shape: str, colour: str) -> Image.Image:
    big = PICTURE * OVERSAMPLE
    tint = COLOURS[colour]
    picture = _gradient(big, big, _mix(tint, (255, 255, 255), 0.72), _mix(tint, (255, 255, 255), 0.6))
    points = [(x * OVERSAMPLE + big / 2, y * OVERSAMPLE + big / 2) for x, y in outline(shape, PICTURE * 0.72)]
    figure = _solid(points, big, COLOURS[colour], OVERSAMPLE)
    picture.paste(figure, (0, 0), figure)
    return picture.resize((PICTURE, PICTURE), Image.Resampling.BOX)


@cache
def _hole() -> Image.Image:
    big = PIECE * OVERSAMPLE
    hole = Image.new("RGB", (big, big), HOLE)
    pen, dash = ImageDraw.Draw(hole), 2 * OVERSAMPLE
    for start in range(0, big, 2 * dash):
        for near, far in ((0, OVERSAMPLE), (big - OVERSAMPLE, big)):
            pen.rectangle((start, near, start + dash - 1, far - 1), fill=HOLE_MARK)
            pen.rectangle((near, start, far - 1, start + dash - 1), fill=HOLE_MARK)
    return hole.resize((PIECE, PIECE), Image.Resampling.BOX)


def _framed(image: Image.Image, content: Image.Image, at: tuple[int, int]) -> None:
    x, y = at
    edge = (x - 2, y - 2, x + content.width + 1, y + content.height + 1)
    ImageDraw.Draw(image).rectangle(edge, fill=FRAME, outline=(206, 208, 214))
    image.paste(content, at)
