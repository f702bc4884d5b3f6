"""From an encoded image to pixels: the one conversion on all ways to the model.

Preparation, published benchmarks, training, the evaluation and the served model all decode here, so that a model is
never shown a picture that it was not trained on. Imports no torch.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from amvl_core.contracts.errors import DataError

UNREADABLE_IMAGE = "unreadable_image"
DECOMPRESSION_BOMB = "decompression_bomb"

MAX_PIXELS = 89_478_485
"""A larger image is not decoded. A file of a few bytes can claim to be gigabytes."""

T = TypeVar("T")

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LAYOUT = "layout"
_KEY_SCALE = {"L;2": 85, "L;4": 17}
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)

# What Pillow warns of (odd metadata, a large image) either does not matter here or is an error below.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PictureError(DataError):
    """An image that cannot be shown to a model; `reason` is what it is counted as."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


def decode(data: bytes) -> Image.Image:
    """The picture as a model sees it: 8-bit RGB, upright, the first frame. Raises PictureError.

    Transparency shows white, palettes and CMYK become RGB, and wide samples are scaled (`to_rgb`). Metadata tell how
    the image is to be turned. They decide on nothing else, so their damage or size makes no image unreadable.
    """
    return read(data, upright)


def square(data: bytes, size: int) -> np.ndarray:
    """The picture as [3, size, size] 8-bit levels, resized by Pillow's bicubic filter. Raises PictureError."""
    resized_HWC = np.asarray(decode(data).resize((size, size), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(resized_HWC.transpose(2, 0, 1))


def read(data: bytes, use: Callable[[Image.Image, bytes], T]) -> T:
    """What `use` makes of the opened image, not decoded yet, and of its bytes. Raises PictureError.

    Where metadata make it unreadable, `use` is called (again) with an image and bytes without them. So it may be called
    twice.
    """
    try:
        try:
            return _opened(data, use)
        except (PictureError, MemoryError):
            raise
        except Exception:  # whatever a decoder raised, damaged metadata may be the reason
            bare = _without_metadata(data)
            if bare == data:
                raise
            return _opened(bare, use)
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(DECOMPRESSION_BOMB, str(error)) from error
    except UnidentifiedImageError as error:  # its own text has an address in memory, another one in each run
        raise PictureError(UNREADABLE_IMAGE, "UnidentifiedImageError: it has no format that is known") from error
    except Exception as error:  # Pillow has decoders of some forty formats; on damaged bytes each raises what it likes
        raise PictureError(UNREADABLE_IMAGE, f"{type(error).__name__}: {error}"[:200]) from error


def load(image: Image.Image, data: bytes) -> None:
    """Decodes an opened image, `data` are its bytes, and the low samples of 16-bit colours with it."""
    image.load()
    if _has_deep_colours(image):
        _show_low_samples(image, data)


def upright(image: Image.Image, data: bytes) -> Image.Image:
    """An opened image, decoded, in 8-bit RGB and upright; `data` are its bytes."""
    load(image, data)
    return turned(to_rgb(image), exif_orientation(image))


def is_plain(image: Image.Image) -> bool:
    """Whether an opened image is 8-bit RGB or grey, one frame, without transparency: as any reader sees it."""
    return (
        image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and not _has_deep_colours(image)
        and getattr(image, "n_frames", 1) == 1
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of the decoded raster, on white where it is transparent.

    16-bit samples keep their upper 8 bits if they use a quarter of their range. Other wide samples, signed ones and
    floating-point ones take the first of the ranges 0..1, 0..255, 0..65535 of which they use a quarter. If there is
    none, the range that they use becomes 0..255. Raises PictureError if they are not finite or have no range.
    """
    if image.mode in (*_SIXTEEN_BITS, "I", "F"):
        samples_HW, key = np.asarray(image), image.info.get("transparency")
        shown_HW = samples_HW != key if isinstance(key, int) else np.ones_like(samples_HW, bool)
        levels_HW = np.full(samples_HW.shape, 255, np.uint8)
        levels_HW[shown_HW] = _levels(samples_HW[shown_HW], image.mode)
        return Image.fromarray(levels_HW).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def exif_orientation(image: Image.Image) -> int:
    """1 to 8: how the raster is turned or mirrored. 1 is upright. Exif data that cannot be read count as 1."""
    if image.format == "PNG":
        image.load()  # it may say so behind its pixels
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged Exif data raise as the decoders do
        return 1
    return found if found in _UPRIGHT else 1


def raster_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the raster of an opened image as it lies in the file. Pillow gives a TIFF's upright ones."""
    return turned_size(*image.size, exif_orientation(image)) if image.format == "TIFF" else image.size


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """A raster of this orientation, upright."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def turned_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height of a raster of this orientation once it is upright."""
    return (height, width) if orientation >= 5 else (width, height)


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of `decode(data)`, without decoding it where its header says so. Raises PictureError."""
    return read(data, lambda image, _: turned_size(*raster_size(image), exif_orientation(image)))


def from_base64(text: str) -> bytes:
    """The bytes of base64 text, broken into lines or not, or of a `data:` URL of it. Raises ValueError."""
    head = _DATA_URL.match(text)
    try:
        return base64.b64decode("".join(text[head.end() if head else 0 :].split()), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _opened(data: bytes, use: Callable[[Image.Image, bytes], T]) -> T:
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(
                DECOMPRESSION_BOMB, f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are decoded"
            )
        if image.format in ("PNG", "TIFF") and image.tile:
            _note_layout(image)
        return use(image, data)


def _note_layout(image: ImageFile.ImageFile) -> None:
    """Keeps how samples lie in the file, and brings the transparent colour, which Pillow leaves alone, to 8 bits."""
    image.info[_LAYOUT] = layout = _layout(image)
    key = image.info.get("transparency")
    if isinstance(key, int):
        image.info["transparency"] = key * _KEY_SCALE.get(layout, 1)
    elif isinstance(key, tuple) and _has_deep_colours(image):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _layout(image: ImageFile.ImageFile) -> str:
    arguments = image.tile[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _has_deep_colours(image: Image.Image) -> bool:
    return image.mode in ("RGB", "RGBA") and ";16" in image.info.get(_LAYOUT, "")


def _show_low_samples(image: Image.Image, data: bytes) -> None:
    """Scales 16-bit colours, of which Pillow decodes the upper bytes, where these hold next to nothing."""
    high_HWC = np.asarray(image)[..., :3].astype(np.uint16)
    if high_HWC.max() >= 64:
        return
    with Image.open(io.BytesIO(data)) as low:
        layout = _layout(low)
        # In the other byte order the upper byte is the lower one. Pillow has no such order for grey with alpha. Read as
        # four samples of 8 bits, the second one is the lower byte of grey.
        other = "RGBA" if layout == "LA;16B" else layout[:-1] + _OTHER_ORDER[layout[-1]]
        low.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other) for tile in low.tile
        ]
        low_HWC = np.asarray(low)[..., [1, 1, 1] if layout == "LA;16B" else [0, 1, 2]]
    levels_HWC = _levels(high_HWC << 8 | low_HWC, "I;16")
    image.im = Image.merge(image.mode, [*Image.fromarray(levels_HWC).split(), *image.split()[3:]]).im


def _levels(samples: np.ndarray, mode: str) -> np.ndarray:
    """Samples as levels of 8 bits."""
    if not samples.size:
        return samples.astype(np.uint8)
    low, high = float(samples.min()), float(samples.max())
    if not np.isfinite([low, high]).all():
        raise PictureError(UNREADABLE_IMAGE, "its samples are not all finite numbers")
    flat = low == high
    for white in (65535,) if flat and mode in _SIXTEEN_BITS else (1, 255, 65535):
        if low >= 0 and high <= white and (flat or high - low >= white / 4):
            levels = samples // 256 if white == 65535 else np.rint(samples * (255 / white))
            return levels.astype(np.uint8)
    if flat:
        raise PictureError(UNREADABLE_IMAGE, f"all its samples are {low:g}: there is no range to scale them by")
    return np.rint((samples.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG without the parts that do not decide on its pixels, as far as its parts can be told apart."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data[:8] + b"".join(_png_chunks(data))
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"".join(_jpeg_segments(data))
    return data


def _png_chunks(data: bytes) -> Iterator[bytes]:
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        sound_exif = kind == b"eXIf" and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or kind == b"tRNS" or sound_exif:
            yield chunk
        at += len(chunk)
    yield data[at:]


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker, length = data[at + 1], 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        comment = marker == 0xFE or 0xE0 <= marker <= 0xEF
        adobe = marker == 0xEE and length >= 16  # says how colours are coded
        exif = marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0"
        if not comment or adobe or exif:
            yield data[at : at + length]
        at += length
    yield data[at:]
