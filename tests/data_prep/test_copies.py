from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from data_prep import copies
from data_prep.copies import Picture, change, is_copy, same_aspect
from data_prep.images import PixelBudget, StoredImage, standardise
from tests.data_prep.pictures import encode, form, grid, noise, venn

BUDGET = PixelBudget(256 * 28 * 28, 1280 * 28 * 28, 28)


def picture(image: Image.Image, kind: str = "PNG", **options: int) -> Picture:
    stored = standardise(encode(image, kind, **options), BUDGET)
    assert isinstance(stored, StoredImage)
    return Picture.of(stored.data, stored.upright_size)


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


PHOTO = noise(90, 60, seed=3).resize((640, 427), Image.Resampling.BICUBIC)

PICTURES: dict[str, Image.Image] = {
    "diagram": venn("12", "7", "30"),
    "coloured digits": venn("12", "7", "30", "red"),
    "grid": grid(5, 9, at=(3, 2)),
    "form": form("4071"),
    "photograph": PHOTO,
}

COPIES: dict[str, Callable[[Image.Image], Picture]] = {
    "other bytes": lambda image: picture(image, compress_level=0),
    "JPEG 90": lambda image: picture(image, "JPEG", quality=90),
    "JPEG 60": lambda image: picture(image, "JPEG", quality=60),
    "0.7 of the size, JPEG 75": lambda image: picture(scaled(image, 0.7), "JPEG", quality=75),
    "half": lambda image: picture(scaled(image, 0.5)),
    "twice": lambda image: picture(scaled(image, 2)),
}

OTHERS: dict[str, tuple[str, Image.Image]] = {
    "another digit": ("diagram", venn("12", "1", "30")),
    "digits in another place": ("diagram", venn("7", "12", "30")),
    "another colour as bright": ("coloured digits", venn("12", "7", "30", "#008200")),
    "another cell": ("grid", grid(5, 9, at=(4, 2))),
    "a figure more": ("form", form("40711")),
    "another figure": ("form", form("4077")),
    "a mark on the photograph": ("photograph", PHOTO.copy()),
}
OTHERS["a mark on the photograph"][1].paste("white", (300, 200, 312, 212))


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_was_scaled_or_compressed_is_a_copy(name: str, copy: str) -> None:
    assert is_copy(picture(PICTURES[name]), COPIES[copy](PICTURES[name]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("what", OTHERS)
def test_a_picture_that_differs_in_a_detail_is_none(what: str, kind: str) -> None:
    name, other = OTHERS[what]
    assert not is_copy(picture(PICTURES[name]), picture(other, kind))


def test_the_change_is_that_of_the_worst_window() -> None:
    """Against loops in float64; the largest relative error measured is 3e-6, of float32 levels squared."""
    generator = np.random.default_rng(0)
    side, size = copies.WINDOW, (23, 17)
    for spread in (1, 8, 40, 127):
        one_HW = generator.integers(128 - spread, 128 + spread, size[::-1]).astype(np.uint8)
        other_HW = np.clip(one_HW + generator.normal(0, spread / 3, one_HW.shape), 0, 255).astype(np.uint8)
        pairs = [
            [
                levels_HW[y : y + side, x : x + side].astype(float)
                for levels_HW in (one_HW, other_HW, one_HW.astype(float) - other_HW)
            ]
            for y in range(size[1] - side + 1)
            for x in range(size[0] - side + 1)
        ]
        found = [((one.var() + other.var()) / 2, (differ**2).mean()) for one, other, differ in pairs]
        seen = [differ for contrast, differ in found if contrast >= copies.QUIET]
        allowed = np.clip(copies.NOISE * np.quantile(seen, 0.75) if seen else 0.0, copies.QUIET, copies.LOUD)
        worst = max(differ / (contrast + allowed) for contrast, differ in found)
        nothing = np.abs(one_HW.astype(float) - other_HW).max() ** 2 <= copies.SAME * copies.QUIET
        wanted = 0.0 if nothing else worst
        images = Image.fromarray(one_HW), Image.fromarray(other_HW)
        assert change(*images, size) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((640, 480), (320, 240), True),
        ((1600, 1067), (100, 66), True),
        ((500, 375), (499, 375), True),
        ((640, 480), (480, 640), False),
        ((200, 200), (200, 220), False),
        ((60, 20), (20, 60), False),
        ((30, 30), (29, 30), False),
        ((70_000, 69_999), (35_000, 35_000), True),  # products beyond 32 bits
    ],
)
def test_width_by_height(one: tuple[int, int], other: tuple[int, int], same: bool) -> None:
    sides = np.array([one], np.int32), np.array([other], np.int32)
    assert same_aspect(*sides).tolist() == same_aspect(*sides[::-1]).tolist() == [same]
