"""Pictures, each beside the same with one detail changed: what must not be taken for a copy."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.pictures import textured

Pair = tuple[Image.Image, Image.Image]

CELLS = ("#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25")
LABELS = ("Name", "Date", "City", "Street", "Amount", "Total", "Order", "Phone", "Due", "Tax", "Price", "Account")
CIRCLES = ((40, 40, "red"), (60, 40, "blue"), (50, 60, "green"))
FIELDS = ((28, 32), (68, 32), (49, 74), (49, 27), (38, 53), (58, 53), (49, 46))


def diagrams(count: int) -> Iterator[Pair]:
    """Three circles with a number in each field, in digits of 12 to 24 pixels; one digit differs."""
    chosen = random.Random(0)
    for _ in range(count):
        draw = partial(_diagram, chosen.choice((400, 512, 700, 1000)), chosen.choice((12, 14, 18, 24)))
        yield _pair(draw, [str(chosen.randrange(1, 100)) for _ in FIELDS], chosen)


def grids(count: int) -> Iterator[Pair]:
    """Coloured cells of 8 to 30 pixels, 3 to 20 along each side, with lines or without; one cell differs."""
    chosen = random.Random(0)
    for _ in range(count):
        across, down, colours = chosen.randrange(3, 21), chosen.randrange(3, 21), chosen.sample(CELLS, 3)
        draw = partial(_grid, across, chosen.choice((8, 12, 20, 30)), chosen.choice((None, "#555555")))
        cells = chosen.choices(colours, (6, 1, 1), k=across * down)
        other, cell = list(cells), chosen.randrange(len(cells))
        other[cell] = chosen.choice([colour for colour in colours if colour != cells[cell]])
        yield draw(cells), draw(other)


def forms(count: int) -> Iterator[Pair]:
    """Grey pages of 25 labelled numbers, every second with a scanner's noise; one digit differs."""
    chosen = random.Random(0)
    for page in range(count):
        side = chosen.choice(((600, 800), (850, 1100), (1240, 1754), (1700, 2200)))
        labels = [f"{chosen.choice(LABELS)} {chosen.choice(LABELS)}:" for _ in range(25)]
        draw = partial(_form, side, side[0] // chosen.choice((50, 60)), labels, page if page % 2 else None)
        yield _pair(draw, [str(chosen.randrange(10**4, 10**9)) for _ in labels], chosen)


def tables(count: int) -> Iterator[Pair]:
    """Ruled tables of numbers in digits of 11 to 14 pixels; one digit differs."""
    chosen = random.Random(0)
    for _ in range(count):
        side, size = chosen.choice(((600, 400), (800, 500), (1000, 600))), chosen.choice((11, 12, 14))
        across, down = chosen.randrange(4, 9), side[1] // (2 * size) - 1
        numbers = [str(chosen.randrange(10, 10**4)) for _ in range(across * down)]
        yield _pair(partial(_table, side, size, across), numbers, chosen)


def plates(count: int) -> Iterator[Pair]:
    """Pictures rich in texture with a number on a plate, in digits of 1/25 of the width; one of them differs."""
    chosen = random.Random(0)
    for seed in range(count):
        side = chosen.choice(((640, 480), (800, 600), (1024, 768)))
        place = (chosen.randrange(side[0] * 2 // 3), chosen.randrange(side[1] * 2 // 3))
        yield _pair(partial(_plate, seed, side, place), [str(chosen.randrange(1000, 10_000))], chosen)


def one_colour(count: int) -> Iterator[Pair]:
    """One colour each, 16 to 600 pixels along a side; the other has another shape."""
    chosen = random.Random(0)
    for _ in range(count):
        colour, width, height = chosen.choice(CELLS), chosen.randrange(16, 600), chosen.randrange(16, 600)
        yield Image.new("RGB", (width, height), colour), Image.new("RGB", (height, width), colour)


CHANGED: dict[str, Callable[[int], Iterator[Pair]]] = {
    "diagrams": diagrams,
    "grids": grids,
    "forms": forms,
    "tables": tables,
    "plates": plates,
    "one colour": one_colour,
}


def _pair(draw: Callable[[Sequence[str]], Image.Image], numbers: list[str], chosen: random.Random) -> Pair:
    number = chosen.randrange(len(numbers))
    text = numbers[number]
    digit = chosen.randrange(len(text))
    other = chosen.choice([figure for figure in "123456789" if figure != text[digit]])
    changed = text[:digit] + other + text[digit + 1 :]
    return draw(numbers), draw([*numbers[:number], changed, *numbers[number + 1 :]])


def _diagram(side: int, size: int, numbers: Sequence[str]) -> Image.Image:
    image = Image.new("RGB", (side, side * 3 // 4), "white")
    pen, radius = ImageDraw.Draw(image), side * 3 // 16
    for x, y, colour in CIRCLES:
        middle = (side * x // 100, image.height * y // 100)
        pen.ellipse(
            (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius), outline=colour, width=2
        )
    for (x, y), number in zip(FIELDS, numbers, strict=True):
        place = (side * x / 100, image.height * y / 100)
        pen.text(place, number, fill="black", font=ImageFont.load_default(size))
    return image


def _grid(across: int, side: int, line: str | None, cells: Sequence[str]) -> Image.Image:
    image = Image.new("RGB", (across * side, len(cells) // across * side))
    for number, colour in enumerate(cells):
        x, y = number % across * side, number // across * side
        ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=colour, outline=line)
    return image


def _form(
    side: tuple[int, int], size: int, labels: Sequence[str], seed: int | None, numbers: Sequence[str]
) -> Image.Image:
    (width, height), image = side, Image.new("L", side, 248)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for line, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        y = height * (line + 2) // 28
        pen.text((width // 12, y), label, fill=30, font=font)
        pen.text((width // 2, y), number, fill=20, font=font)
        pen.line((width // 2, y + size * 1.3, width * 11 // 12, y + size * 1.3), fill=120)
    if seed is None:
        return image
    noise_HW = np.random.default_rng(seed).integers(-6, 7, (height, width))
    return Image.fromarray((np.asarray(image) + noise_HW).clip(0, 255).astype(np.uint8))


def _table(side: tuple[int, int], size: int, across: int, numbers: Sequence[str]) -> Image.Image:
    image, width = Image.new("RGB", side, "white"), (side[0] - 20) // across
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for number, text in enumerate(numbers):
        x, y = 10 + number % across * width, 10 + number // across * 2 * size
        pen.rectangle((x, y, x + width, y + 2 * size), outline="#888888")
        pen.text((x + 6, y + size // 3), text, fill="black", font=font)
    return image


def _plate(seed: int, side: tuple[int, int], place: tuple[int, int], numbers: Sequence[str]) -> Image.Image:
    image, (x, y), size = textured(seed, side), place, side[0] // 25
    pen = ImageDraw.Draw(image)
    pen.rectangle((x, y, x + 4 * size, y + 3 * size // 2), fill="#ddddcc")
    pen.text((x + size // 2, y), numbers[0], fill="#222222", font=ImageFont.load_default(size))
    return image
