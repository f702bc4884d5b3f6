"""Whether one stored image is a copy of another: the same picture, scaled or compressed again.

Thumbnails cannot tell: two diagrams that differ in one digit have the same. So both images are compared at the size of
the smaller one, at which text that can be read can be told. What scaling and compressing change is little everywhere,
measured against the contrast around it. What another digit, mark or line changes is much in one place. Brightness is
compared pixel by pixel. Colour is compared at half the size, because JPEG keeps no more of it.

Shape suffixes: HW pixels, or windows of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from amvl_core.data import pixels
from data_prep.duplicate_keys import KeyFile, read, read_pictures
from data_prep.shards import ROW_GROUP_ROWS

SAME = 0.5
"""Of `change`. What copies and what different pictures were measured to have: docs/data-preparation.md."""

WINDOW = 5
"""Pixels along a side of what is compared at once: a stroke of a letter and the ground beside it."""

QUIET, LOUD = 400.0, 3000.0
"""Squared levels (20 and 55 of 255): what a good copy and a bad one may differ by where there is no contrast."""

NOISE = 10.0
"""How many times that is what three of four windows with contrast differ by."""

KEPT = 96
"""Images in memory, at 1.5 bytes a pixel."""


@dataclass(frozen=True, order=True)
class Place:
    """Image `image` of row `row` of key file `file`, each counted from 0."""

    file: int
    row: int
    image: int


@dataclass(frozen=True)
class Picture:
    """Brightness at the published or the stored size of the image, the smaller one, and colour at half of it."""

    brightness: Image.Image
    colours: tuple[Image.Image, Image.Image]

    @classmethod
    def of(cls, data: bytes, published: tuple[int, int]) -> Picture:
        """The picture of encoded bytes, as they are stored, of an image with `published` width and height."""
        shown = pixels.decode(data).convert("YCbCr")
        width, height = (min(sides) for sides in zip(shown.size, published, strict=True))
        brightness, *colours = shown.split()
        blue, red = (_resized(colour, _half(width, height)) for colour in colours)
        return cls(_resized(brightness, (width, height)), (blue, red))


class Pictures:
    """The images of the rows of key files, as they are compared."""

    def __init__(self, files: Sequence[KeyFile]) -> None:
        self._files = files
        self._picture = lru_cache(KEPT)(self._read_picture)
        self._images = lru_cache(2)(lambda file, group: read_pictures(files[file], group))
        self._sizes = lru_cache(16)(lambda file: read(files[file], ["sizes"])["sizes"])

    def are_copies(self, one: Place, other: Place) -> bool:
        """Whether one image is a copy of the other. Raises StorageError where they cannot be read."""
        return is_copy(self._picture(one), self._picture(other))

    def _read_picture(self, place: Place) -> Picture:
        group, row = divmod(place.row, ROW_GROUP_ROWS)
        sizes = np.frombuffer(self._sizes(place.file)[place.row].as_py(), np.int32).reshape(-1, 2)
        width, height = sizes[place.image].tolist()
        return Picture.of(self._images(place.file, group)[row][place.image], (width, height))


def same_aspect(one_P2: np.ndarray, other_P2: np.ndarray) -> np.ndarray:
    """bool [P]: whether the second width and height are the first, scaled; a side may be one pixel off."""
    one_P2, other_P2 = one_P2.astype(np.int64), other_P2.astype(np.int64)
    across_P = np.abs(one_P2[:, 0] * other_P2[:, 1] - one_P2[:, 1] * other_P2[:, 0])
    same: np.ndarray = across_P < np.maximum(one_P2, other_P2).max(1)
    return same


def is_copy(one: Picture, other: Picture) -> bool:
    """Whether nothing differs but what scaling and compressing change."""
    width, height = (min(sides) for sides in zip(one.brightness.size, other.brightness.size, strict=True))
    colours = zip(one.colours, other.colours, strict=True)
    return (
        all(change(*pair, _half(width, height)) <= SAME for pair in colours)
        and change(one.brightness, other.brightness, (width, height)) <= SAME
    )


def change(one: Image.Image, other: Image.Image, size: tuple[int, int]) -> float:
    """The largest difference in any window, as a share of the contrast there: mean squares, of two grey images.

    A copy with little difference in three of four windows that have contrast is not allowed much in the others.
    """
    one_HW, other_HW = (np.asarray(_resized(image, size), np.float32) for image in (one, other))
    if np.abs(one_HW - other_HW).max() ** 2 <= SAME * QUIET:
        return 0.0
    differ_HW = _windows((one_HW - other_HW) ** 2)
    contrast_HW = sum(_windows(levels_HW**2) - _windows(levels_HW) ** 2 for levels_HW in (one_HW, other_HW)) / 2
    seen = differ_HW[contrast_HW >= QUIET]
    noise = NOISE * float(np.quantile(seen, 0.75)) if len(seen) else 0.0
    return float((differ_HW / (contrast_HW + min(max(noise, QUIET), LOUD))).max())


def _windows(levels_HW: np.ndarray) -> np.ndarray:
    """The mean of every window."""
    for _ in range(2):
        count = len(levels_HW) - WINDOW + 1
        sums_HW = levels_HW[:count].copy()
        for start in range(1, WINDOW):
            sums_HW += levels_HW[start : start + count]
        levels_HW = sums_HW.T / WINDOW
    return levels_HW


def _half(width: int, height: int) -> tuple[int, int]:
    return max(width // 2, WINDOW), max(height // 2, WINDOW)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
