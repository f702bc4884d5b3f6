"""Images are verified once, here: a corrupt one is a counted drop, not a crash in the middle of training.

Each stored image is decoded once, for everything that needs pixels: verification, resizing, and the digest and
thumbnail that duplicates are found by (`data_prep/duplicates.py`). Where few pixels are enough, a JPEG is decoded at a
fraction of its size ("draft mode"), which reads and checks all of its data all the same. A converter that cuts a part
out of an image (`data_prep/sources/pictures.py`) decodes the whole once more for it.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.filters import DECOMPRESSION_BOMB, EXTREME_ASPECT, SMALL_IMAGE, UNREADABLE_IMAGE, Drop

MIN_SIDE = 8
"""Pixels; nothing can be seen on an image with a shorter side."""

MAX_ASPECT = 100
"""Longer to shorter side; Qwen2-VL's image processor refuses 200, and resizing must not take an image there."""

JPEG_QUALITY = 95

THUMB_SIDE = 32
"""Width and height of the thumbnail that near duplicates are compared by."""

DIGEST_BYTES = 16

Box = tuple[float, float, float, float]

_JPEG = ("JPEG", "MPO")  # a camera's multi-picture file is a JPEG with more behind it
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A draft for the thumbnail alone: several pixels for each of the thumbnail's, so that it averages as much as it must.
_DRAFT_SIDE = 4 * THUMB_SIDE


@dataclass(frozen=True)
class PixelBudget:
    """What the model takes: `min_pixels <= width x height <= max_pixels`, sides in multiples of `unit` pixels."""

    min_pixels: int
    max_pixels: int
    unit: int


@dataclass(frozen=True)
class StoredImage:
    """Encoded bytes as they are stored, `width` x `height` pixels, upright.

    `source_size` is the width and height of the published raster and `orientation` its Exif orientation (1 to 8).
    `digest` (`DIGEST_BYTES`) is equal for equal images, `thumb` is RGB, `THUMB_SIDE` squared, row by row.
    """

    data: bytes
    width: int
    height: int
    source_size: tuple[int, int]
    orientation: int
    digest: bytes
    thumb: bytes

    def place(self, box: Box) -> Box | None:
        """A box `(x1, y1, x2, y2)` of the published raster in pixels of the stored image, clipped to it.

        None where nothing is left of it.
        """
        x1, y1, x2, y2 = _turn_box(box, *self.source_size, self.orientation)
        width, height = _turn_size(*self.source_size, self.orientation)
        across, down = self.width / width, self.height / height
        x1, x2 = (round(min(max(x * across, 0.0), self.width), 2) for x in (x1, x2))
        y1, y2 = (round(min(max(y * down, 0.0), self.height), 2) for y in (y1, y2))
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def standardise(data: bytes, budget: PixelBudget) -> StoredImage | Drop:
    """The verified image, upright, RGB or grey and within the pixel budget; or why it cannot be used.

    A PNG or JPEG that is all that already keeps its bytes. Otherwise JPEG stays JPEG (quality 95), everything else
    becomes PNG. Transparent pixels show white; 16-bit samples keep their upper 8 bits; of an animation the first
    frame counts.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return _check_size(*image.size) or _store(image, data, budget)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Drop(DECOMPRESSION_BOMB, str(error))
    except MemoryError:
        raise
    except Exception as error:  # Pillow has decoders of some forty formats; on damaged bytes each raises what it likes
        return Drop(UNREADABLE_IMAGE, f"{type(error).__name__}: {error}"[:200])


def _check_size(width: int, height: int) -> Drop | None:
    if min(width, height) < MIN_SIDE:
        return Drop(SMALL_IMAGE, f"{width} x {height} pixels, each side must have at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Drop(EXTREME_ASPECT, f"{width} x {height} pixels, one side is more than {MAX_ASPECT} times the other")
    return None


def _store(image: Image.Image, data: bytes, budget: PixelBudget) -> StoredImage:
    source_size, is_jpeg = image.size, image.format in _JPEG
    said = exif_orientation(image)
    if not is_jpeg:
        image.load()  # a PNG may say behind its pixels how it is to be turned; Pillow turns a TIFF when it loads it
    left = exif_orientation(image)
    orientation = left if said == 1 else said
    if left != orientation:
        source_size = _turn_size(*image.size, orientation)
    width, height = _turn_size(*source_size, orientation)
    size = budget_size(width, height, budget)
    keeps_bytes = size == (width, height) and _is_plain(image) and orientation == 1
    if is_jpeg:
        # Never to less than `size`: what is left to do is a reduction by less than two.
        draft = (_DRAFT_SIDE, _DRAFT_SIDE) if keeps_bytes else _turn_size(*size, orientation)
        image.draft(None, draft)
        image.load()
    if keeps_bytes:
        digest = _digest(data if is_jpeg else to_rgb(image).tobytes())
        return StoredImage(data, width, height, source_size, 1, digest, _thumb(image))
    pixels = image if image.mode == "L" and "transparency" not in image.info else to_rgb(image)  # grey stays grey
    upright = turned(_resized(pixels, _turn_size(*size, left)), left)
    digest = _digest(data if is_jpeg else to_rgb(upright).tobytes())
    return StoredImage(_encode(upright, is_jpeg), *size, source_size, orientation, digest, _thumb(upright))


def _is_plain(image: Image.Image) -> bool:
    return (
        image.format in ("PNG", "JPEG")
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and getattr(image, "n_frames", 1) == 1
    )


def exif_orientation(image: Image.Image) -> int:
    """1 to 8: how the raster is turned or mirrored; 1 is upright."""
    found = image.getexif().get(_EXIF_ORIENTATION, 1)
    return found if found in _UPRIGHT else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """A raster of this orientation, upright."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _turn_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    return (height, width) if orientation >= 5 else (width, height)


def _turn_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """Where a box of a `width` x `height` raster is after turning it upright; one that is no box stays none."""
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
    unit, pixels = budget.unit, width * height
    if budget.min_pixels <= pixels <= budget.max_pixels:
        return width, height
    if pixels < budget.min_pixels:
        factor = math.sqrt(budget.min_pixels / pixels)
        return math.ceil(width * factor / unit) * unit, math.ceil(height * factor / unit) * unit
    factor = math.sqrt(budget.max_pixels / pixels)
    short, long = (max(1, math.floor(side * factor / unit)) for side in sorted((width, height)))
    # A side of less than one unit takes a whole one; the other then makes up for it.
    long = max(1, min(long, budget.max_pixels // (short * unit * unit)))
    sides = (short * unit, long * unit)
    return sides if width <= height else (sides[1], sides[0])


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of the decoded raster."""
    if image.mode in _SIXTEEN_BITS:
        samples_HW = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(samples_HW.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        levels_HW = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if levels_HW.max() > 255:
            levels_HW = levels_HW / 257
        return Image.fromarray(levels_HW.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    # reducing_gap: a large reduction starts with whole-pixel averages, several times faster and hardly different.
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _thumb(image: Image.Image) -> bytes:
    small = image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.HAMMING, reducing_gap=4.0)
    return small.convert("RGB").tobytes()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def _encode(image: Image.Image, is_jpeg: bool) -> bytes:
    buffer = io.BytesIO()
    image.info = {}
    if is_jpeg:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
