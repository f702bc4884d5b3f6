"""Drawings that differ in thin lines or letters alone: geometry, line charts and pages of text, white all around."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from PIL import Image, ImageDraw, ImageFont

TEXT = (
    "the of and to a in is that for it was on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these"
)


def triangles(count: int, side: int, line: int) -> Iterator[Image.Image]:
    """Outlines `line` pixels wide on `side` x `side`."""
    chosen = random.Random(0)
    for _ in range(count):
        image = Image.new("RGB", (side, side), "white")
        low, high = side // 10, side * 9 // 10
        points = [(chosen.randrange(low, high), chosen.randrange(low, high)) for _ in range(3)]
        ImageDraw.Draw(image).line([*points, points[0]], fill="black", width=line)
        yield image


def charts(count: int, side: int, line: int) -> Iterator[Image.Image]:
    """One blue line of ten pieces between the same axes, on `side` x 3/4 `side`."""
    chosen = random.Random(0)
    height = side * 3 // 4
    left, top, right, bottom = side // 10, height // 10, side * 19 // 20, height * 9 // 10
    for _ in range(count):
        image = Image.new("RGB", (side, height), "white")
        draw = ImageDraw.Draw(image)
        draw.line([(left, top), (left, bottom), (right, bottom)], fill="black", width=line)
        for mark in range(6):
            x, y = left + (right - left) * mark // 5, bottom - (bottom - top) * mark // 5
            draw.text((left - 30, y - 6), str(20 * mark), fill="black")
            draw.text((x, bottom + 6), str(2000 + mark), fill="black")
        xs = [left + (right - left) * piece // 10 for piece in range(11)]
        draw.line([(x, chosen.randrange(top, bottom)) for x in xs], fill="blue", width=line)
        yield image


def pages(count: int, side: int, size: int) -> Iterator[Image.Image]:
    """Lines of letters of `size` pixels, on `side` x 5/4 `side`; every page has other words."""
    chosen = random.Random(0)
    font, words = ImageFont.load_default(size), TEXT.split()
    for _ in range(count):
        image = Image.new("RGB", (side, side * 5 // 4), "white")
        draw = ImageDraw.Draw(image)
        for y in range(side // 12, side * 7 // 6, size * 3 // 2):
            line = ""
            while draw.textlength(line, font=font) < side * 10 // 12:
                line += chosen.choice(words) + " "
            draw.text((side // 12, y), line, font=font, fill="black")
        yield image


DRAWINGS: dict[str, Callable[[], Iterator[Image.Image]]] = {
    "triangles, 1 pixel on 512": lambda: triangles(60, 512, 1),
    "triangles, 1 pixel on 800": lambda: triangles(60, 800, 1),
    "triangles, 1 pixel on 1000": lambda: triangles(60, 1000, 1),
    "triangles, 2 pixels on 800": lambda: triangles(60, 800, 2),
    "line charts, 1 pixel on 512": lambda: charts(60, 512, 1),
    "line charts, 1 pixel on 800": lambda: charts(60, 800, 1),
    "line charts, 2 pixels on 800": lambda: charts(60, 800, 2),
    "pages, 12 pixels on 480": lambda: pages(20, 480, 12),
    "pages, 14 pixels on 800": lambda: pages(20, 800, 14),
}
"""By what they are called: lines of so many pixels, or letters so high, on an image so wide."""
