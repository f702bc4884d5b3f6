"""Sources that are made for `benchmarks.prepare`: photographs, a mixture of sizes, and light rows."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amvl_core.contracts import storage

PHOTO = (1600, 1200)
DIFFERENT = 200
"""Images of a source; rows beyond show them again, in another order of questions."""

MIXTURE = {
    "photo-500": (228, (500, 375), "JPEG"),
    "photo-1024": (175, (1024, 768), "JPEG"),
    "drawing-512": (196, (512, 512), "PNG"),
    "page-1700": (33, (1700, 2200), "PNG"),
    "page-1241": (15, (1241, 1754), "JPEG"),
    "photo-640": (3, (640, 480), "JPEG"),
}
"""Thousands of samples, size and format of the images of the paper's sources (docs/data-preparation.md, Scale).

Visual-CoT's Flickr30k, GQA and CUB; its OpenImages, TextVQA and TextCaps with CogCoM; Zebra-CoT and ReFocus, whose
sizes are not published: a guess; Visual-CoT's DocVQA, InfographicsVQA and VSR.
"""


def photographs(folder: Path, rows: int) -> Path:
    """`PHOTO` each, all of which have to be scaled down."""
    return _write(folder, rows, [photograph(seed, PHOTO) for seed in range(min(rows, DIFFERENT))])


def mixture(folder: Path, rows: int) -> Path:
    """`MIXTURE` in its shares, drawn with a fixed seed."""
    kinds = list(MIXTURE)
    drawn = random.Random(0).choices(kinds, [MIXTURE[kind][0] for kind in kinds], k=min(rows, DIFFERENT))
    return _write(folder, rows, [_picture(kind, seed) for seed, kind in enumerate(drawn)])


def light(folder: Path, rows: int) -> Path:
    """Images of 48 x 48 pixels that are kept as they are: what is left is the work for each row."""
    return _write(folder, rows, [_encoded(_noise(seed, (48, 48)), "PNG") for seed in range(100)])


def _picture(kind: str, seed: int) -> bytes:
    _, size, form = MIXTURE[kind]
    draw = {"photo": _photo, "drawing": _drawing, "page": _page}[kind.partition("-")[0]]
    return _encoded(draw(seed, size), form)


def photograph(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG with the statistics of a soft photograph."""
    return _encoded(_photo(seed, size), "JPEG")


def textured(seed: int, size: tuple[int, int]) -> Image.Image:
    """Noise of all scales down to a pixel, as foliage and gravel have it."""
    layers = [_noise(5 * seed + i, (n, n)).resize(size) for i, n in enumerate((4, 12, 40, 120))]
    layers.append(_noise(5 * seed + 4, size))
    image = layers[0]
    for layer, share in zip(layers[1:], (0.4, 0.35, 0.3, 0.15), strict=True):
        image = Image.blend(image, layer, share)
    return image


def _photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Noise of several scales."""
    layers = [_noise(3 * seed + i, (n, n)).resize(size) for i, n in enumerate((5, 40, 300))]
    return Image.blend(Image.blend(layers[0], layers[1], 0.3), layers[2], 0.2)


def _drawing(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coloured fields, as boards and mazes have them."""
    return _noise(seed, (8, 8)).resize(size, Image.Resampling.NEAREST)


def _page(seed: int, size: tuple[int, int]) -> Image.Image:
    """A scanned page: grey, lines of dark marks on a light ground that is not quite even."""
    generator = np.random.default_rng(seed)
    width, height = size
    ground_HW = generator.integers(235, 250, (height, width), dtype=np.uint8)
    marks_HW = generator.random((height // 12, width // 6)) < 0.35
    marks_HW[::3] = False
    marks_HW = np.kron(marks_HW, np.ones((12, 6), bool))
    ground_HW[: marks_HW.shape[0], : marks_HW.shape[1]][marks_HW] //= 4
    return Image.fromarray(ground_HW)


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 90} if form == "JPEG" else {}
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _write(folder: Path, rows: int, images: Sequence[bytes]) -> Path:
    """The chat JSON lines of one question for each row."""
    for number, data in enumerate(images):
        storage.write_bytes(f"{folder}/images/{number:05d}", data)
    with open(folder / "train.jsonl", "w") as file:
        for row in range(rows):
            messages = [
                {"role": "user", "content": f"<image>What is on picture {row}?"},
                {"role": "assistant", "content": "Clouds."},
            ]
            file.write(json.dumps({"messages": messages, "images": [f"images/{row % len(images):05d}"]}) + "\n")
    return folder
