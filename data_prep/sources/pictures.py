"""Boxes and crops on the original images, before they are brought to the pixel budget."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from PIL import Image
from pydantic import Field, FiniteFloat

from amvl_core.contracts.sample import Region
from data_prep.filters import DECOMPRESSION_BOMB, DEGENERATE_BOX, UNREADABLE_IMAGE
from data_prep.images import JPEG_QUALITY, exif_orientation, to_rgb, turned
from data_prep.sources.raw_row import Rejected

PublishedBox = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
"""`[x1, y1, x2, y2]` as it stands in a file: four numbers, nothing more is known."""

Box = tuple[float, float, float, float]
Size = tuple[int, int]


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected(DECOMPRESSION_BOMB, str(error)) from error
    except (Rejected, MemoryError):
        raise
    except Exception as error:  # as in data_prep/images.py
        raise Rejected(UNREADABLE_IMAGE, f"{type(error).__name__}: {error}"[:200]) from error


def image_size(data: bytes) -> Size:
    """Width and height in pixels, from the header alone. Raises Rejected if it is no image."""
    with _opened(data) as image:
        return image.size


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
    with _opened(data) as image:
        x1, y1, x2, y2 = clipped(box, image.size)
        # Whole pixels, and at least one of them.
        part = to_rgb(image.crop((int(x1), int(y1), int(-(-x2 // 1)), int(-(-y2 // 1)))))
        part = turned(part, exif_orientation(image))
        part.info = {}
        if zoom > 1:
            part = part.resize((part.width * zoom, part.height * zoom), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        if image.format == "JPEG":
            part.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        else:
            part.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
