"""Images are verified once, here. So a corrupt one is a counted drop, and not a crash in the middle of training.

Each stored image is decoded once, for everything that needs pixels: verification, resizing, and the digest and
thumbnail that duplicates are found by (`data_prep/duplicates.py`). If few pixels are enough, a JPEG is decoded at a
fraction of its size ("draft mode"). All of its data are read and checked all the same. A converter that cuts a part out
of an image (`data_prep/sources/pictures.py`) decodes the whole once more for it.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from amvl_core.data import pixels
from amvl_core.data.encode import PixelBudget as PixelBudget
from amvl_core.data.pixels import exif_orientation, to_rgb, turned, turned_size
from data_prep.filters import EXTREME_ASPECT, SMALL_IMAGE, Drop

MIN_SIDE = 8
"""Pixels; nothing can be seen on an image with a shorter side."""

MAX_ASPECT = 100
"""Longer to shorter side; Qwen2-VL's image processor refuses 200, and resizing must not take an image there."""

JPEG_QUALITY = 95

THUMB_SIDE = 32
"""Width and height of the thumbnail that near duplicates are compared by."""

DIGEST_BYTES = 16

CONTENT = 20
"""Levels of 255: an image none of whose colours spans more is of one colour, or nearly, and shows nothing."""

Box = tuple[float, float, float, float]

_JPEG = ("JPEG", "MPO")  # a camera's multi-picture file is a JPEG with more behind it
# A draft for the thumbnail alone: several pixels for each of the thumbnail's, so that it averages as much as it must.
_DRAFT_SIDE = 4 * THUMB_SIDE


@dataclass(frozen=True)
class StoredImage:
    """Encoded bytes as they are stored, `width` x `height` pixels, upright.

    `source_size` is the width and height of the published raster and `orientation` its Exif orientation (1 to 8).
    `digest` (`DIGEST_BYTES`) is equal for equal images of one size, `thumb` is RGB, `THUMB_SIDE` squared, row by row.
    `blank` says that the image shows nothing (`CONTENT`).
    """

    data: bytes
    width: int
    height: int
    source_size: tuple[int, int]
    orientation: int
    digest: bytes
    thumb: bytes
    blank: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the published raster, turned upright."""
        return turned_size(*self.source_size, self.orientation)

    def place(self, box: Box) -> Box | None:
        """A box `(x1, y1, x2, y2)` of the published raster in pixels of the stored image, clipped to it.

        None where nothing is left of it.
        """
        x1, y1, x2, y2 = turned_box(box, *self.source_size, self.orientation)
        width, height = self.upright_size
        across, down = self.width / width, self.height / height
        x1, x2 = (round(min(max(x * across, 0.0), self.width), 2) for x in (x1, x2))
        y1, y2 = (round(min(max(y * down, 0.0), self.height), 2) for y in (y1, y2))
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def standardise(data: bytes, budget: PixelBudget) -> StoredImage | Drop:
    """The verified image, upright, RGB or grey and within the pixel budget; or why it cannot be used.

    A PNG or JPEG that is all of this already keeps its bytes. Any other JPEG is encoded again (quality 95), and
    everything else becomes PNG. `amvl_core/data/pixels.py` decides what the pixels are.
    """
    try:
        return pixels.read(data, lambda image, read: _check_size(*image.size) or _store(image, read, budget))
    except pixels.PictureError as error:
        return Drop(error.reason, error.detail)


def _check_size(width: int, height: int) -> Drop | None:
    if min(width, height) < MIN_SIDE:
        return Drop(SMALL_IMAGE, f"{width} x {height} pixels, each side must have at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Drop(EXTREME_ASPECT, f"{width} x {height} pixels, one side is more than {MAX_ASPECT} times the other")
    return None


def _store(image: Image.Image, data: bytes, budget: PixelBudget) -> StoredImage:
    source_size, is_jpeg = pixels.raster_size(image), image.format in _JPEG
    plain = image.format in ("PNG", "JPEG") and pixels.is_plain(image)
    said = exif_orientation(image)
    if not is_jpeg:
        pixels.load(image, data)  # a PNG may say how it is to be turned behind its pixels; Pillow turns a loaded TIFF
    left = exif_orientation(image)
    orientation = left if said == 1 else said
    width, height = turned_size(*source_size, orientation)
    size = budget_size(width, height, budget)
    keeps_bytes = size == (width, height) and plain and orientation == 1
    if is_jpeg:
        # Never to less than `size`: what is left to do is a reduction by less than two.
        draft = (_DRAFT_SIDE, _DRAFT_SIDE) if keeps_bytes else turned_size(*size, orientation)
        image.draft(None, draft)
        image.load()
    if keeps_bytes:
        shown, encoded = image, data
    else:
        raster = image if image.mode == "L" and "transparency" not in image.info else to_rgb(image)  # grey stays grey
        shown = turned(_resized(raster, turned_size(*size, left)), left)
        encoded = _encode(shown, is_jpeg)
    # One colour has the same pixels in many shapes.
    compared = data if is_jpeg else f"{width} x {height}:".encode() + to_rgb(shown).tobytes()
    digest = hashlib.sha256(compared).digest()[:DIGEST_BYTES]
    thumb = _thumb(shown)
    blank = _spans_little(thumb) and _spans_little(shown)
    return StoredImage(encoded, *size, source_size, orientation, digest, thumb.tobytes(), blank)


def _spans_little(image: Image.Image) -> bool:
    bands = np.array(image.getextrema()).reshape(-1, 2)
    return bool((np.ptp(bands, axis=1) <= CONTENT).all())


def turned_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """Where a box of a `width` x `height` raster is after the raster is turned upright. What is no box stays none."""
    x1, y1, x2, y2 = box
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return (x1, y1, x2, y2) if orientation < 5 else (y1, x1, y2, x2)


def budget_size(width: int, height: int, budget: PixelBudget) -> tuple[int, int]:
    """Width and height as they are where the image is within the budget; else multiples of `unit` that are.

    The rule is that of Qwen2-VL's image processor (`smart_resize`), so it will not resize the result again. The two
    differ for images of an extreme aspect alone, whose short side it would let fall below one unit.
    """
    unit, area = budget.unit, width * height
    if budget.min_pixels <= area <= budget.max_pixels:
        return width, height
    if area < budget.min_pixels:
        factor = math.sqrt(budget.min_pixels / area)
        grown = (math.ceil(width * factor / unit) * unit, math.ceil(height * factor / unit) * unit)
        if grown[0] * grown[1] <= budget.max_pixels:
            return grown
    factor = math.sqrt(budget.max_pixels / area)
    short, long = (max(1, math.floor(side * factor / unit)) for side in sorted((width, height)))
    # A side of less than one unit takes a whole one; the other then makes up for it.
    long = max(1, min(long, budget.max_pixels // (short * unit * unit)))
    sides = (short * unit, long * unit)
    return sides if width <= height else (sides[1], sides[0])


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    # reducing_gap: a large reduction starts with whole-pixel averages, several times faster and hardly different.
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _thumb(image: Image.Image) -> Image.Image:
    small = image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.HAMMING, reducing_gap=4.0)
    return small.convert("RGB")


def _encode(image: Image.Image, is_jpeg: bool) -> bytes:
    buffer = io.BytesIO()
    image.info = {}
    if is_jpeg:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
