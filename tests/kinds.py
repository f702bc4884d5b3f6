"""One small picture in many kinds of file: what decoders differ in."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from tests.data_prep.pictures import encode, noise

WIDTH, HEIGHT = 48, 32


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def ramp(low: float, high: float, kind: type[np.generic]) -> np.ndarray:
    """[H, W]: from `low` at the upper left to `high` at the lower right."""
    return np.linspace(low, high, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(kind)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: Sequence[bytes], *chunks: bytes) -> bytes:
    """A PNG of the kinds that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def deep(samples_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits a sample: grey with alpha, RGB or RGBA by the number of channels."""
    height, width, channels = samples_HWC.shape
    rows = [row.astype(">u2").tobytes() for row in samples_HWC]
    return png(width, height, 16, {2: 4, 3: 2, 4: 6}[channels], rows)


def grey(depth: int, samples_HW: np.ndarray, key: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a sample, of which the sample `key` is transparent."""
    bits_HW = np.unpackbits(samples_HW.astype(np.uint8)[..., None], axis=-1)[..., -depth:].reshape(len(samples_HW), -1)
    rows = [np.packbits(row).tobytes() for row in bits_HW]
    return png(samples_HW.shape[1], len(rows), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", key)))


def large_text() -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", "a long prompt " * 200_000, zip=True)
    return info


def kinds() -> dict[str, bytes]:
    """By name; all without loss, upright or not, of WIDTH x HEIGHT pixels or HEIGHT x WIDTH."""
    photo = noise(WIDTH, HEIGHT)
    clear = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    ImageDraw.Draw(clear).text((4, 4), "EXIT", fill=(0, 0, 0, 255))
    half = photo.copy()
    half.putalpha(noise(WIDTH, HEIGHT, 1).convert("L"))
    palette = photo.quantize(16)
    sixteen = Image.fromarray(ramp(0, 65535, np.uint16))
    deep_HWC = np.stack([ramp(0, 65535, np.uint16)] * 3, axis=-1)
    frames = [photo.quantize(8), noise(WIDTH, HEIGHT, 2).quantize(8)]
    levels_HW = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    later = encode(photo)
    return {
        "RGB": encode(photo),
        "grey": encode(photo.convert("L")),
        "one bit": encode(photo.convert("1")),
        "black writing on transparent": encode(clear),
        "alpha": encode(half),
        "alpha, WebP": encode(half, "WEBP", lossless=True, exact=True),
        "grey with alpha": encode(half.convert("LA")),
        "palette": encode(palette),
        "palette with a transparent colour": encode(palette, transparency=3),
        "palette with alpha": encode(half.quantize(16)),
        "transparent colour": encode(photo, transparency=photo.getpixel((0, 0))),
        "transparent grey of 4 bits": grey(4, levels_HW % 16, 5),
        "transparent grey of 2 bits": grey(2, levels_HW % 4, 1),
        "transparent grey of 1 bit": grey(1, levels_HW % 2, 0),
        "animation": encode(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=1),
        "animated PNG": encode(photo, save_all=True, append_images=[noise(WIDTH, HEIGHT, 2)]),
        "CMYK": encode(photo.convert("CMYK"), "TIFF"),
        "16 bits": encode(sixteen),
        "16 bits, big-endian TIFF": encode(Image.fromarray(ramp(0, 65535, np.uint16).astype(">u2")), "TIFF"),
        "12 bits in 16": encode(Image.fromarray(ramp(0, 4095, np.uint16))),
        "RGB of 16 bits": deep(deep_HWC),
        "RGB of 10 bits in 16": deep(deep_HWC >> 6),
        "grey of 10 bits in 16 with alpha": deep(np.stack([deep_HWC[..., 0] >> 6, deep_HWC[..., 0]], axis=-1)),
        "signed": encode(Image.fromarray(ramp(-1000, 1000, np.int32)), "TIFF"),
        "floating point": encode(Image.fromarray(ramp(0, 1, np.float32)), "TIFF"),
        "turned PNG": encode(photo, exif=exif(6)),
        "turned TIFF": encode(photo, "TIFF", exif=exif(5)),
        "turned WebP": encode(photo, "WEBP", lossless=True, exif=exif(8)),
        "large text": encode(photo, pnginfo=large_text()),
        "large text behind the pixels": later[:-12] + chunk(b"tEXt", b"a\0" + b"b" * 3_000_000) + later[-12:],
        "large colour profile": encode(photo, icc_profile=bytes(3_000_000)),
        "damaged Exif data": encode(photo, exif=b"Exif\0\0neither II nor MM"),
    }
