"""Small encoded images for tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """RGB noise: no two pixels alike, so that a wrong one shows."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int = 16, height: int = 16, seed: int = 0) -> bytes:
    return encode(noise(width, height, seed))


def venn(left: str, both: str, right: str, colour: str = "black", side: int = 480) -> Image.Image:
    """Two circles with a number in each field, in figures of 10 pixels on 480 x 360."""
    image = Image.new("RGB", (side, side * 3 // 4), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(side // 34)
    for x, outline in ((side // 8, "red"), (side * 3 // 8, "blue")):
        pen.ellipse((x, side // 8, x + side // 2, side * 5 // 8), outline=outline, width=2)
    for x, number in ((3, left), (6, both), (9, right)):
        pen.text((side * x / 12, side * 3 / 8), number, fill=colour, font=font)
    return image


def grid(across: int, down: int, at: tuple[int, int] | None = None, cell: int = 20) -> Image.Image:
    """Red cells between no lines, a blue one at column and row `at`."""
    image = Image.new("RGB", (across * cell, down * cell), "#ff4136")
    if at is not None:
        x, y = at
        image.paste("#0074d9", (x * cell, y * cell, x * cell + cell, y * cell + cell))
    return image


def form(number: str) -> Image.Image:
    """A grey page of lines of writing, the last of which ends in `number`."""
    image = Image.new("L", (600, 800), 248)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for line in range(20):
        pen.text((60, 40 + 36 * line), f"Entry {line}: paid in full on the day of delivery, {7919 * line}", 30, font)
    pen.text((60, 760), f"Amount due: {number}", 30, font)
    return image


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has `side` x `side` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
