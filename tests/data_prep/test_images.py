from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from data_prep.filters import DECOMPRESSION_BOMB, EXTREME_ASPECT, SMALL_IMAGE, UNREADABLE_IMAGE, Drop
from data_prep.images import StoredImage, budget_size, standardise
from tests.data_prep.pictures import bomb, decode, encode, noise, png

WIDE = (1, 10**9)


def stored(data: bytes, budget: tuple[int, int] = WIDE) -> StoredImage:
    result = standardise(data, *budget)
    assert isinstance(result, StoredImage), result
    return result


def reason(data: bytes) -> str:
    result = standardise(data, *WIDE)
    assert isinstance(result, Drop), "the image was kept"
    assert result.detail
    return result.reason


@pytest.mark.parametrize("data", [png(20, 10), encode(noise(20, 10), "JPEG"), encode(noise(20, 10).convert("L"))])
def test_an_image_that_needs_nothing_keeps_its_bytes(data: bytes) -> None:
    assert stored(data) == StoredImage(data, 20, 10, 1.0)


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", png(64, 64)[:600], encode(noise(64, 64), "JPEG")[:900], png(64, 64)[:200] + b"\0" * 2000],
    ids=["empty", "text", "truncated png", "truncated jpeg", "overwritten png"],
)
def test_a_damaged_image_is_unreadable(data: bytes) -> None:
    assert reason(data) == UNREADABLE_IMAGE


def test_a_wrong_checksum_inside_a_png_is_found() -> None:
    data = bytearray(png(64, 64))
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)) == UNREADABLE_IMAGE


@pytest.mark.parametrize("side", [10_000, 20_000], ids=["Pillow warns", "Pillow refuses"])
def test_a_decompression_bomb_is_not_decoded(side: int) -> None:
    assert reason(bomb(side)) == DECOMPRESSION_BOMB


def test_small_and_extreme_images() -> None:
    assert reason(png(7, 300)) == SMALL_IMAGE
    assert reason(png(8, 801)) == EXTREME_ASPECT
    assert stored(png(8, 800)).height == 800


def test_palette_becomes_the_same_rgb() -> None:
    palette = noise(16, 16).quantize(8)
    result = decode(stored(encode(palette)).data)
    assert result.mode == "RGB"
    assert np.array_equal(np.asarray(result), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_keep_the_upper_eight() -> None:
    levels_HW = (np.arange(256, dtype=np.uint16).reshape(16, 16) << 8) + 200
    result = decode(stored(encode(Image.fromarray(levels_HW))).data)
    assert np.array_equal(np.asarray(result)[..., 0], levels_HW >> 8)


def test_cmyk_jpeg_becomes_rgb() -> None:
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    result = decode(stored(encode(flat, "JPEG", quality=95)).data)
    assert (result.mode, result.format) == ("RGB", "JPEG")
    red, green, blue = np.asarray(result).reshape(-1, 3).mean(0)
    assert red > 200 and green < 80 and blue < 80


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(mode: str) -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0)).convert(mode)
    assert np.asarray(decode(stored(encode(clear)).data)).min() == 255


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_exif_orientation_is_applied_once(form: str) -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste((0, 0, 0), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise
    result = stored(encode(image, form, exif=exif))
    upright = decode(result.data)
    assert (result.width, result.height) == upright.size == (16, 32)
    assert upright.getexif().get(0x0112, 1) == 1
    pixels_HWC = np.asarray(upright).astype(int)
    assert pixels_HWC[:14].mean() < 20 and pixels_HWC[18:].mean() > 235


@pytest.mark.parametrize(("form", "kept"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("BMP", "PNG"), ("WEBP", "PNG")])
def test_a_large_image_is_scaled_into_the_budget(form: str, kept: str) -> None:
    result = stored(encode(noise(200, 100), form), (16, 5000))
    image = decode(result.data)
    assert image.format == kept
    assert image.size == (result.width, result.height) == (100, 50)
    assert result.scale == pytest.approx(0.5)


def test_a_small_image_is_scaled_up() -> None:
    result = stored(png(20, 10), (800, 10**6))
    assert (result.width, result.height, result.scale) == (40, 20, pytest.approx(2.0))


sides = st.integers(8, 4000)


@given(sides, sides, st.integers(16, 10**5), st.integers(4, 100))
def test_any_size_ends_within_the_budget(width: int, height: int, min_pixels: int, times: int) -> None:
    assume(max(width, height) <= 100 * min(width, height))
    # Sides are whole pixels, so a budget must leave room for rounding: a factor of four covers every aspect.
    new_width, new_height = budget_size(width, height, min_pixels, min_pixels * times)
    assert min_pixels <= new_width * new_height <= min_pixels * times
