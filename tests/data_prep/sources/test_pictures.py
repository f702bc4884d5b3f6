from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amvl_core.data import pixels
from data_prep.filters import DECOMPRESSION_BOMB, DEGENERATE_BOX, UNREADABLE_IMAGE
from data_prep.images import PixelBudget, StoredImage, standardise
from data_prep.sources.pictures import clipped, crop, image_size
from data_prep.sources.raw_row import Rejected
from tests.data_prep.pictures import bomb, decode, encode, noise, png
from tests.kinds import HEIGHT, WIDTH, kinds

numbers = st.floats(-1e6, 1e6)


@given(st.tuples(numbers, numbers, numbers, numbers), st.integers(1, 5000), st.integers(1, 5000))
def test_a_clipped_box_is_on_the_image_or_rejected(
    box: tuple[float, float, float, float], width: int, height: int
) -> None:
    try:
        x1, y1, x2, y2 = clipped(box, (width, height))
    except Rejected as rejected:
        assert rejected.drop.reason == DEGENERATE_BOX
        assert max(box[0], 0) >= min(box[2], width) or max(box[1], 0) >= min(box[3], height)
    else:
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        inside = [(a, b) for a, b in zip((x1, y1, x2, y2), box, strict=True) if 0 <= b <= min(width, height)]
        assert all(a == b for a, b in inside)


def test_size_is_read_from_the_header() -> None:
    whole = png(64, 48)
    assert image_size(whole) == image_size(whole[: len(whole) // 2]) == (64, 48)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", UNREADABLE_IMAGE), (b"text", UNREADABLE_IMAGE), (bomb(20_000), DECOMPRESSION_BOMB)],
)
def test_what_is_no_image_is_rejected(data: bytes, reason: str) -> None:
    for use in (lambda: image_size(data), lambda: crop(data, (0, 0, 5, 5))):
        with pytest.raises(Rejected) as error:
            use()
        assert error.value.drop.reason == reason


def test_a_crop_of_a_truncated_image_is_rejected() -> None:
    with pytest.raises(Rejected) as error:
        crop(png(64, 64)[:3000], (0, 40, 64, 64))
    assert error.value.drop.reason == UNREADABLE_IMAGE


def test_a_crop_holds_every_pixel_that_the_box_touches() -> None:
    image = noise(20, 20)
    part = decode(crop(encode(image), (3.2, 4.9, 3.3, 8.0)))
    assert np.array_equal(np.asarray(part), np.asarray(image)[4:8, 3:4])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_crop_of_a_turned_image_is_upright(form: str, orientation: int) -> None:
    # Boxes are places on the raster as it is published, and it is turned with the rest when it is stored.
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = encode(noise(20, 12), form, exif=exif)
    assert image_size(whole) == (20, 12)
    part = decode(crop(whole, (3, 2, 10, 6)))
    stored = standardise(whole, PixelBudget(1, 10**6, 1))
    assert isinstance(stored, StoredImage) and part.getexif().get(0x0112, 1) == 1
    box = stored.place((3, 2, 10, 6))
    assert box is not None and np.array_equal(part, decode(stored.data).crop(tuple(map(int, box))))
    assert decode(crop(encode(noise(20, 12), "JPEG", exif=exif), (3, 2, 10, 6))).size == part.size


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "L", "I;16"])
def test_a_crop_of_any_kind_of_image_is_rgb(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    image = noise(20, 20).convert("L").convert("I;16") if mode == "I;16" else noise(20, 20).convert(mode)
    assert decode(crop(encode(image, form), (2, 2, 9, 9), zoom=2)).mode == "RGB"


@pytest.mark.parametrize("name", kinds())
def test_a_crop_has_the_pixels_of_the_whole_image(name: str) -> None:
    data = kinds()[name]
    assert sorted(image_size(data)) == [HEIGHT, WIDTH]
    if "turned" not in name:
        part = decode(crop(data, (2, 3, 20, 30)))
        assert np.array_equal(part, pixels.decode(data).crop((2, 3, 20, 30)))
