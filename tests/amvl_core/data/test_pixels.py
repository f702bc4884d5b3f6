"""The values of decoded pixels; that all ways to the model share them is `tests/infra/test_same_pixels.py`."""

from __future__ import annotations

import base64
import io
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from amvl_core.data.pixels import (
    DECOMPRESSION_BOMB,
    UNREADABLE_IMAGE,
    PictureError,
    decode,
    from_base64,
    square,
    upright_size,
)
from tests.data_prep.pictures import bomb, encode, noise, png
from tests.kinds import HEIGHT, WIDTH, chunk, deep, exif, grey, kinds, large_text, ramp


def levels(data: bytes) -> np.ndarray:
    """[H, W] of a picture that must be grey."""
    image = decode(data)
    assert image.mode == "RGB"
    pixels_HWC = np.asarray(image)
    assert (pixels_HWC == pixels_HWC[..., :1]).all()
    return pixels_HWC[..., 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_that_use_their_range_keep_the_upper_eight(form: str) -> None:
    samples_HW = ramp(300, 20_000, np.uint16)
    assert np.array_equal(levels(encode(Image.fromarray(samples_HW), form)), samples_HW >> 8)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (0, 1023, np.uint16),
        (0, 4095, np.uint16),
        (30_000, 30_500, np.uint16),
        (0, 1, np.uint16),
        (-1000, 1000, np.int32),
        (0, 2**31 - 1, np.int32),
        (0, 1, np.float32),
        (-1, 1, np.float32),
        (0, 0.01, np.float32),
        (0, 1e6, np.float32),
        (270.5, 310.25, np.float32),
    ],
)
def test_wide_samples_are_scaled_by_the_range_that_they_use(low: float, high: float, kind: Any) -> None:
    samples_HW = ramp(low, high, kind)
    found_HW = levels(encode(Image.fromarray(samples_HW), "TIFF"))
    exact_HW = (samples_HW.astype(np.float64) - low) * 255 / (high - low)
    # Rounded to the nearest level; samples of 32-bit floating point are off by 2e-5 of one at most.
    assert np.abs(found_HW - exact_HW).max() <= 0.5001
    assert (found_HW.min(), found_HW.max()) == (0, 255)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_wide_samples_that_are_levels_of_eight_bits_stay_as_they_are(kind: Any) -> None:
    samples_HW = np.asarray(noise(WIDTH, HEIGHT).convert("L")).clip(20, 240)
    assert np.array_equal(levels(encode(Image.fromarray(samples_HW.astype(kind)), "TIFF")), samples_HW)


@pytest.mark.parametrize(
    ("value", "kind", "level"),
    [(40_000, np.uint16, 156), (65_535, np.uint16, 255), (200, np.int32, 200), (1.0, np.float32, 255)],
)
def test_a_flat_picture_has_the_level_that_its_kind_says(value: float, kind: Any, level: int) -> None:
    assert (levels(encode(Image.fromarray(np.full((9, 9), value, kind)), "TIFF")) == level).all()


@pytest.mark.parametrize(
    ("samples_HW", "detail"),
    [
        (np.full((9, 9), -3, np.int32), "all its samples are -3: there is no range to scale them by"),
        (np.full((9, 9), np.nan, np.float32), "not all finite"),
        (np.where(np.eye(9), np.inf, 0.5).astype(np.float32), "not all finite"),
        (np.where(np.eye(9), np.nan, 0.5).astype(np.float32), "not all finite"),
    ],
)
def test_samples_that_mean_no_level_are_refused(samples_HW: np.ndarray, detail: str) -> None:
    with pytest.raises(PictureError, match=detail) as refused:
        decode(encode(Image.fromarray(samples_HW), "TIFF"))
    assert refused.value.reason == UNREADABLE_IMAGE


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_colours_of_few_bits_in_sixteen_are_scaled_together(bits: int) -> None:
    top = 2**bits - 1
    samples_HW = ramp(0, top, np.uint16)
    colours_HWC = np.stack([samples_HW, samples_HW // 2, top - samples_HW], axis=-1)
    exact_HWC = colours_HWC * (255 / top)
    for data in (deep(colours_HWC), *(_tiff(colours_HWC, order, strips) for order in "<>" for strips in (1, 4))):
        assert np.abs(np.asarray(decode(data)) - exact_HWC).max() <= 0.5
    alpha_HW = np.where(samples_HW > top // 2, 65535, 0)[..., None]
    shown_HWC = np.where(alpha_HW > 0, exact_HWC, 255)
    assert np.abs(np.asarray(decode(deep(np.concatenate([colours_HWC, alpha_HW], -1)))) - shown_HWC).max() <= 0.5
    shades_HWC = np.concatenate([samples_HW[..., None], alpha_HW], -1)
    assert np.abs(levels(deep(shades_HWC)) - np.where(alpha_HW[..., 0] > 0, exact_HWC[..., 0], 255)).max() <= 0.5


def _tiff(samples_HWC: np.ndarray, order: str, strips: int) -> bytes:
    """An RGB TIFF of 16 bits a sample, which Pillow does not write, in strips of rows."""
    height, width, _ = samples_HWC.shape
    pixels = samples_HWC.astype(f"{order}u2").tobytes()
    size, start = len(pixels) // strips, 8 + len(pixels)
    more = start + 2 + 9 * 12 + 4
    offsets, sizes = [8 + size * i for i in range(strips)], [size] * strips
    values = {256: [width], 257: [height], 258: [16] * 3, 259: [1], 262: [2], 273: offsets, 277: [3]}
    entries, rest = b"", b""
    for tag, given in {**values, 278: [height // strips], 279: sizes}.items():
        packed = struct.pack(f"{order}{len(given)}I", *given)
        place = packed if len(given) == 1 else struct.pack(f"{order}I", more + len(rest))
        rest += packed if len(given) > 1 else b""
        entries += struct.pack(f"{order}HHI", tag, 4, len(given)) + place
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    return head + pixels + struct.pack(f"{order}H", 9) + entries + bytes(4) + rest


@pytest.mark.parametrize(("depth", "key"), [(1, 0), (2, 1), (4, 5)])
def test_the_transparent_grey_of_a_shallow_png_shows_white(depth: int, key: int) -> None:
    samples_HW = np.arange(256).reshape(16, 16) % 2**depth
    shades_HW = samples_HW * (255 // (2**depth - 1))
    assert np.array_equal(levels(grey(depth, samples_HW, key)), np.where(samples_HW == key, 255, shades_HW))


def test_the_transparent_grey_of_sixteen_bits_shows_white_and_is_left_out_of_the_range() -> None:
    samples_HW = ramp(0, 1000, np.uint16)
    samples_HW[:4] = 65535
    found_HW = levels(encode(Image.fromarray(samples_HW), transparency=65535))
    low, high = int(samples_HW[4:].min()), 1000
    shown_HW = samples_HW[4:].astype(int)
    assert (found_HW[:4] == 255).all()
    assert np.abs(found_HW[4:] - (shown_HW - low) * 255 / (high - low)).max() <= 0.5
    assert (levels(encode(Image.fromarray(np.full((9, 9), 7, np.uint16)), transparency=7)) == 255).all()


def test_black_writing_on_transparent_ground_is_black_on_white() -> None:
    found_HW = levels(kinds()["black writing on transparent"])
    assert found_HW.min() < 20 and found_HW.max() == 255 and found_HW.mean() > 200


def _damaged(data: bytes, kind: bytes) -> bytes:
    """The PNG with a wrong checksum in its first chunk of this kind."""
    at = data.index(kind)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    return data[:end] + bytes(4) + data[end + 4 :]


JPEG = encode(noise(WIDTH, HEIGHT), "JPEG", quality=100)
PNG = png(WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (encode(noise(WIDTH, HEIGHT), pnginfo=large_text()), PNG),
        (encode(noise(WIDTH, HEIGHT), icc_profile=bytes(3_000_000)), PNG),
        (PNG[:33] + 70 * chunk(b"zTXt", large_text().chunks[0][1]) + PNG[33:], PNG),
        (PNG[:33] + chunk(b"iTXt", b"key") + chunk(b"pHYs", b"") + PNG[33:], PNG),
        (_damaged(encode(noise(WIDTH, HEIGHT), icc_profile=b"profile"), b"iCCP"), PNG),
        (_damaged(encode(noise(WIDTH, HEIGHT), exif=exif(6)), b"eXIf"), PNG),
        (encode(noise(WIDTH, HEIGHT), exif=b"Exif\0\0none"), PNG),
        (encode(noise(WIDTH, HEIGHT), "WEBP", lossless=True, exif=b"Exif\0\0none"), PNG),
        (encode(noise(WIDTH, HEIGHT), "JPEG", quality=100, exif=b"Exif\0\0none"), JPEG),
        (JPEG[:2] + b"\xff\xe0\x00\x07JFIF\0" + JPEG[2:], JPEG),
        (JPEG[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + JPEG[2:], JPEG),
        (JPEG[:2] + b"\xff\xee\x00\x07Adobe" + JPEG[2:], JPEG),
    ],
    ids=[
        *(
            "large text",
            "large profile",
            "much text",
            "empty chunks",
            "checksum of the profile",
            "checksum of the Exif",
        ),
        *("PNG Exif", "WebP Exif", "JPEG Exif", "short JFIF", "short profile", "short Adobe"),
    ],
)
def test_metadata_do_not_decide_on_pixels(data: bytes, plain: bytes) -> None:
    assert np.array_equal(decode(data), decode(plain))
    assert upright_size(data) == (WIDTH, HEIGHT)


def test_an_image_whose_text_is_left_out_is_still_turned() -> None:
    data = encode(noise(WIDTH, HEIGHT), pnginfo=large_text(), exif=exif(6))
    assert np.array_equal(decode(data), noise(WIDTH, HEIGHT).transpose(Image.Transpose.ROTATE_270))
    assert upright_size(data) == (HEIGHT, WIDTH)


def test_a_cmyk_jpeg_whose_profile_is_damaged_keeps_its_colours() -> None:
    data = encode(noise(WIDTH, HEIGHT).convert("CMYK"), "JPEG")
    assert np.array_equal(decode(data[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + data[2:]), decode(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", UNREADABLE_IMAGE),
        (PNG[:600], UNREADABLE_IMAGE),
        (PNG[:33] + chunk(b"zTXt", large_text().chunks[0][1]) + PNG[33:600], UNREADABLE_IMAGE),
        (PNG[:900] + bytes(4) + PNG[904:], UNREADABLE_IMAGE),
        (JPEG[:900], UNREADABLE_IMAGE),
        (bomb(10_000), DECOMPRESSION_BOMB),
        (bomb(30_000), DECOMPRESSION_BOMB),
    ],
)
def test_what_cannot_be_decoded_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError) as refused:
        decode(data)
    again = pickle.loads(pickle.dumps(refused.value))  # Ray sends it from one process to another
    assert (again.reason, str(again)) == (reason, refused.value.detail)
    assert again.detail and "0x" not in again.detail  # reports of two runs are equal


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_upright(form: str, orientation: int) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(noise(WIDTH, HEIGHT), form, exif=exif(orientation), **options)
    with Image.open(io.BytesIO(encode(noise(WIDTH, HEIGHT), exif=exif(orientation)))) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(decode(data), expected)
    assert upright_size(data) == expected.size


def test_a_square_is_the_decoded_picture_resized() -> None:
    data = encode(noise(WIDTH, HEIGHT), exif=exif(6))
    found_CHW = square(data, 24)
    assert (found_CHW.dtype, found_CHW.shape, found_CHW.flags["C_CONTIGUOUS"]) == (np.uint8, (3, 24, 24), True)
    assert np.array_equal(found_CHW.transpose(1, 2, 0), decode(data).resize((24, 24), Image.Resampling.BICUBIC))
    with pytest.raises(PictureError):
        square(b"no image", 24)


def test_base64_may_be_broken_into_lines_or_a_data_url() -> None:
    text = base64.encodebytes(PNG).decode()
    for way in (text, text.replace("\n", "\r\n"), "".join(text.split()), f"  {text}", f"data:image/png;base64,{text}"):
        assert from_base64(way) == PNG
    for wrong in ("%%%", "abc", "https://example.org/a.png", "data:text/plain,abc", text[:-4]):
        with pytest.raises(ValueError, match=r"."):
            from_base64(wrong)
