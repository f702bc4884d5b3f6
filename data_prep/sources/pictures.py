"""Boxes and crops on the original images, before they are brought to the pixel budget."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from PIL import Image
from pydantic import Field, FiniteFloat

from amvl_core.contracts.sample import Region
from amvl_core.data import pixels
from data_prep.filters import DEGENERATE_BOX
from data_prep.images import JPEG_QUALITY, turned_box
from data_prep.sources.raw_row import Rejected

T = TypeVar("T")

PublishedBox = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
"""`[x1, y1, x2, y2]` as it stands in a file: four numbers, nothing more is known."""

Box = tuple[float, float, float, float]
Size = tuple[int, int]


def _read(data: bytes, use: Callable[[Image.Image, bytes], T]) -> T:
    try:
        return pixels.read(data, use)
    except pixels.PictureError as error:
        raise Rejected(error.reason, error.detail) from error


def image_size(data: bytes) -> Size:
    """Width and height in pixels, from the header alone. Raises Rejected if it is no image."""
    return _read(data, lambda image, _: pixels.raster_size(image))


def clipped(box: Sequence[float], size: Size) -> Box:
    """The part of a box in pixels that is on the image. Raises Rejected if there is none."""
    width, height = size
    x1, x2 = (min(max(x, 0), width) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0), height) for y in (box[1], box[3]))
    if x1 >= x2 or y1 >= y2:
        raise Rejected(DEGENERATE_BOX, f"the box {list(box)} has no area on an image of {width} x {height} pixels")
    return (x1, y1, x2, y2)


def regions(boxes: Sequence[tuple[str, Sequence[float]]], size: Size) -> tuple[Region, ...]:
    """Labelled boxes on the first image, clipped to it. Raises Rejected if one of them has no area there."""
    return tuple(Region(label, clipped(box, size)) for label, box in boxes)


def crop(data: bytes, box: Sequence[float], zoom: int = 1) -> bytes:
    """What an image shows inside of a box of its raster, upright, enlarged `zoom` times.

    JPEG stays JPEG, everything else becomes PNG. The whole image is decoded for it. Raises Rejected if the image cannot
    be read or the box has no area on it.
    """

    def decoded(image: Image.Image, read: bytes) -> tuple[Size, int, bool, Image.Image]:
        size, orientation = pixels.raster_size(image), pixels.exif_orientation(image)
        return size, orientation, image.format == "JPEG", pixels.upright(image, read)

    size, orientation, is_jpeg, whole = _read(data, decoded)
    x1, y1, x2, y2 = clipped(box, size)
    # Whole pixels, and at least one of them.
    part = whole.crop(turned_box((int(x1), int(y1), int(-(-x2 // 1)), int(-(-y2 // 1))), *size, orientation))
    part.info = {}
    if zoom > 1:
        part = part.resize((part.width * zoom, part.height * zoom), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if is_jpeg:
        part.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        part.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
