"""Images are verified once, here: a corrupt one is a counted drop, not a crash in the middle of training."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from data_prep.filters import DECOMPRESSION_BOMB, EXTREME_ASPECT, SMALL_IMAGE, UNREADABLE_IMAGE, Drop

MIN_SIDE = 8
"""Pixels; nothing can be seen on an image with a shorter side."""

MAX_ASPECT = 100
"""Longer to shorter side; Qwen2-VL's image processor refuses 200, and resizing must not take an image there."""

JPEG_QUALITY = 95

# What Pillow's decoders raise on damaged files, beside OSError (UnidentifiedImageError is one).
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, struct.error, zlib.error,
)  # fmt: skip
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class StoredImage:
    """Encoded bytes as they are stored; `scale` is stored pixels per pixel of the original."""

    data: bytes
    width: int
    height: int
    scale: float


def standardise(data: bytes, min_pixels: int, max_pixels: int) -> StoredImage | Drop:
    """The fully decoded image, upright, RGB and within the pixel budget; or why it cannot be used.

    A PNG or JPEG that is all that already keeps its bytes. Otherwise JPEG stays JPEG (quality 95), everything else
    becomes PNG. Transparent pixels show white; 16-bit samples keep their upper 8 bits; of an animation the first
    frame counts.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return _within_budget(image, data, min_pixels, max_pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Drop(DECOMPRESSION_BOMB, str(error))
    except _DECODING_ERRORS as error:
        return Drop(UNREADABLE_IMAGE, f"{type(error).__name__}: {error}"[:200])


def _within_budget(image: Image.Image, data: bytes, min_pixels: int, max_pixels: int) -> StoredImage | Drop:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        return Drop(SMALL_IMAGE, f"{width} x {height} pixels, each side must have at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Drop(EXTREME_ASPECT, f"{width} x {height} pixels, one side is more than {MAX_ASPECT} times the other")
    is_jpeg = image.format == "JPEG"
    if _is_plain(image) and min_pixels <= width * height <= max_pixels:
        return StoredImage(data, width, height, 1.0)
    upright = ImageOps.exif_transpose(to_rgb(image))
    size = budget_size(upright.width, upright.height, min_pixels, max_pixels)
    scale = math.sqrt(size[0] * size[1] / (width * height))
    if size != upright.size:
        upright = upright.resize(size, Image.Resampling.BICUBIC)
    return StoredImage(_encode(upright, is_jpeg), *size, scale)


def _is_plain(image: Image.Image) -> bool:
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return (
        image.format in ("PNG", "JPEG")
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and orientation == 1
        and getattr(image, "n_frames", 1) == 1
    )


def budget_size(width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Width and height with `min_pixels <= width x height <= max_pixels` and, but for rounding, the same aspect."""
    pixels = width * height
    if pixels > max_pixels:
        factor = math.sqrt(max_pixels / pixels)
        short, long = sorted((width, height))
        # Rounding down could leave a side of 0; the other side then makes up for it.
        new_short = max(1, math.floor(short * factor))
        new_long = max(1, min(math.floor(long * factor), max_pixels // new_short))
        return (new_short, new_long) if width <= height else (new_long, new_short)
    if pixels < min_pixels:
        factor = math.sqrt(min_pixels / pixels)
        return math.ceil(width * factor), math.ceil(height * factor)
    return width, height


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, with the Exif data kept so that the orientation can still be applied."""
    exif = image.info.get("exif")
    if image.mode in _SIXTEEN_BITS:
        samples_HW = np.asarray(image).astype(np.uint16) >> 8
        rgb = Image.fromarray(samples_HW.astype(np.uint8)).convert("RGB")
    elif image.mode in ("I", "F"):
        levels_HW = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if levels_HW.max() > 255:
            levels_HW = levels_HW / 257
        rgb = Image.fromarray(levels_HW.clip(0, 255).astype(np.uint8)).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if exif is not None:
        rgb.info["exif"] = exif
    return rgb


def _encode(image: Image.Image, is_jpeg: bool) -> bytes:
    buffer = io.BytesIO()
    image.info = {}
    if is_jpeg:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
