from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import duplicates
from data_prep.images import PixelBudget, StoredImage, standardise
from data_prep.keys import KeyFile, Keys, features
from tests.data_prep.pictures import encode, noise

BUDGET = PixelBudget(1, 10**6, 28)
PHOTO = noise(12, 9, seed=3).resize((480, 360), Image.Resampling.BICUBIC)


def stored(image: Image.Image, form: str = "PNG", **options: int) -> StoredImage:
    result = standardise(encode(image, form, **options), BUDGET)
    assert isinstance(result, StoredImage)
    return result


def key_file(path: Path, split: str, *rows: tuple[str, str, list[StoredImage]]) -> KeyFile:
    keys = Keys()
    for number, (question, answer, images) in enumerate(rows):
        keys.add(f"{path.name}/{number}", question, answer, images)
    keys.write(str(path))
    return KeyFile(str(path), split)  # type: ignore[arg-type]


def find(*files: KeyFile) -> list[tuple[int, int, str, int, int, str]]:
    found = duplicates.find(files, duplicates=True, contaminated=True)
    return [(r.file, r.row, r.reason, r.of_file, r.of_row, r.match) for r in found]


COPIES = {
    "png": lambda: stored(PHOTO, compress_level=0),
    "jpeg 60": lambda: stored(PHOTO, "JPEG", quality=60),
    "half": lambda: stored(PHOTO.resize((240, 180))),
    "half jpeg 75": lambda: stored(PHOTO.resize((240, 180)), "JPEG", quality=75),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_a_duplicate_with_the_same_text_only(tmp_path: Path, name: str) -> None:
    copy = COPIES[name]()
    match = "sample" if name == "png" else "near"
    file = key_file(
        tmp_path / "train",
        "train",
        ("Q", "A", [stored(PHOTO)]),
        ("q?", "a.", [copy]),
        ("Another question", "A", [copy]),
        ("Q", "another answer", [copy]),
        ("Q", "A", [copy, copy]),
    )
    assert find(file) == [(0, 1, "duplicate", 0, 0, match)]


def moved(x: int, colour: str = "red") -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    image.paste(colour, (x, 20, x + 14, 34))
    return image


@pytest.mark.parametrize("other", [moved(5), moved(8), moved(4, "green"), moved(4, "orange")])
def test_drawn_images_that_differ_in_one_object_are_different(tmp_path: Path, other: Image.Image) -> None:
    file = key_file(tmp_path / "f", "train", ("Q", "A", [stored(moved(4))]), ("Q", "A", [stored(other)]))
    assert find(file) == []


def test_of_images_equally_bright_and_coloured_the_thumbnails_decide(tmp_path: Path) -> None:
    one, other = stored(moved(4)), stored(moved(5))
    features_NF = features(one.thumb + other.thumb, np.array([1, 1]))
    assert abs(features_NF[0] - features_NF[1]).max() <= duplicates.CLOSE
    file = key_file(tmp_path / "f", "train", ("Q", "A", [one]), ("Q", "A", [other]))
    (distance,) = duplicates.distances([file])
    assert duplicates.NEAR < distance < 256  # measured: 71


def test_an_image_of_the_test_split_contaminates_whatever_is_asked(tmp_path: Path) -> None:
    leak, other = stored(noise(40, 40, seed=1)), stored(noise(40, 40, seed=2))
    train = key_file(tmp_path / "a", "train", ("Q", "A", [other]), ("R", "B", [other, leak]), ("T", "C", []))
    test = key_file(tmp_path / "b", "test", ("S", "D", [leak]), ("T", "C", []), ("T", "C", []))
    assert find(train, test) == [(0, 1, "contaminated", 1, 0, "image"), (0, 2, "contaminated", 1, 1, "sample")]
    assert find(test, train) == [(1, 1, "contaminated", 0, 0, "image"), (1, 2, "contaminated", 0, 1, "sample")]


def test_a_near_copy_of_a_test_sample_contaminates_and_takes_its_own_copies_along(tmp_path: Path) -> None:
    near = stored(PHOTO, "JPEG", quality=60)
    train = key_file(tmp_path / "a", "train", ("Q", "A", [near]), ("Q", "A", [near]))
    test = key_file(tmp_path / "b", "test", ("Q", "A", [stored(PHOTO)]))
    assert find(train, test) == [(0, 0, "contaminated", 1, 0, "near"), (0, 1, "contaminated", 1, 0, "near")]


def test_the_first_in_source_order_is_kept_however_many_there_are(tmp_path: Path) -> None:
    image = stored(PHOTO)
    order = random.Random(0)
    files = []
    for number in range(4):
        rows = [(f"Q{order.randrange(5)}", "A", [image]) for _ in range(60)]
        files.append(key_file(tmp_path / str(number), "train", *rows))
    found = find(*files)
    assert len(found) == 240 - 5
    assert all((of_file, of_row) < (file, row) for file, row, _, of_file, of_row, _ in found)
    assert find(*files) == found


def test_nothing_to_compare() -> None:
    assert find() == []
