from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_prep import duplicates, near_pairs
from data_prep.duplicate_keys import KeyFile, Keys, features, key_name, write_pictures
from data_prep.images import PixelBudget, StoredImage, standardise
from tests.data_prep.pictures import encode, grid, noise, venn

BUDGET = PixelBudget(1, 10**6, 28)
PHOTO = noise(12, 9, seed=3).resize((480, 360), Image.Resampling.BICUBIC)


def stored(image: Image.Image, form: str = "PNG", **options: int) -> StoredImage:
    result = standardise(encode(image, form, **options), BUDGET)
    assert isinstance(result, StoredImage)
    return result


def key_file(
    path: Path, split: str, *rows: tuple[str, str, list[StoredImage]], steps: str = "", benchmark: str | None = None
) -> KeyFile:
    """One letter of `steps` is the step of each row."""
    keys = Keys()
    for number, (question, answer, images) in enumerate(rows):
        keys.add(f"{path.name}/{number}", question, answer, images, list(steps[number : number + 1]))
    file = KeyFile(key_name(str(path)), split, benchmark)  # type: ignore[arg-type]
    keys.write(file.uri)
    write_pictures(file, [images for *_, images in rows])
    return file


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
    assert abs(features_NF[0] - features_NF[1]).max() <= near_pairs.CLOSE
    file = key_file(tmp_path / "f", "train", ("Q", "A", [one]), ("Q", "A", [other]))
    (distance,) = near_pairs.distances([file])
    assert near_pairs.NEAR < distance < 256  # measured: 71


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
    assert find(train, test) == [(0, row, "contaminated", 1, 0, "near image") for row in (0, 1)]


def test_a_resaved_image_of_the_test_split_contaminates_whatever_is_asked(tmp_path: Path) -> None:
    train = key_file(tmp_path / "a", "train", ("Q", "A", [COPIES["half jpeg 75"]()]))
    test = key_file(tmp_path / "b", "test", ("R", "B", [stored(PHOTO)]))
    assert find(train, test) == [(0, 0, "contaminated", 1, 0, "near image")]
    assert duplicates.find([train, test], duplicates=True, contaminated=False) == []


def test_steps_make_training_samples_different_and_are_no_way_around_the_test_split(tmp_path: Path) -> None:
    image = stored(PHOTO)
    same = [("Q", "A", [image])] * 4
    train = key_file(tmp_path / "a", "train", *same, steps="xyxX")
    assert find(train) == [(0, 2, "duplicate", 0, 0, "sample"), (0, 3, "duplicate", 0, 0, "sample")]
    near = key_file(tmp_path / "n", "train", *[("Q", "A", [COPIES["jpeg 60"]()])] * 2, steps="xz")
    assert find(train, near)[2:] == [(1, 0, "duplicate", 0, 0, "near")]
    words = key_file(tmp_path / "w", "train", ("Q", "A", []), ("Q", "B", []), steps="xx")
    test = key_file(tmp_path / "t", "test", ("q?", "A.", []), steps="y")
    assert find(words, test) == [(0, 0, "contaminated", 1, 0, "sample")]


LONG = "What is the small dog under the red table doing?"


def asking(*questions: str, first: int) -> list[tuple[str, str, list[StoredImage]]]:
    return [(question, "A", [stored(noise(40, 40, seed=first + i))]) for i, question in enumerate(questions)]


def test_a_question_of_a_benchmark_contaminates_if_it_is_long_and_asked_of_few_images(tmp_path: Path) -> None:
    template = "Which of the two things is closer to the camera?"
    short = "What colour is the small dog?"
    often = "How many of the people on the left are sitting?"
    rows = asking("<image>" + LONG.upper(), template, short, *[often] * (duplicates.FEW + 1), LONG[:-1], first=0)
    train = key_file(tmp_path / "a", "train", *rows)
    asked = asking(short, often, LONG, LONG, *[template] * (duplicates.FEW + 1), first=100)
    benchmark = key_file(tmp_path / "b", "test", *asked, benchmark="b")
    assert find(train, benchmark) == [(0, row, "contaminated", 1, 2, "question") for row in (0, len(rows) - 1)]
    assert duplicates.find([train, benchmark], duplicates=True, contaminated=False) == []
    # The questions of the run's own test split come from the same hand as those it trains on.
    assert find(train, KeyFile(benchmark.uri, "test")) == []


def test_a_question_asked_again_of_one_image_is_still_asked_of_few(tmp_path: Path) -> None:
    rows = [(LONG, str(number), [stored(PHOTO)]) for number in range(duplicates.FEW + 2)]
    benchmark = key_file(tmp_path / "b", "test", *asking(LONG, first=9), benchmark="b")
    assert len(find(key_file(tmp_path / "a", "train", *rows), benchmark)) == len(rows)


def outline(side: int, *points: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).line([*points, points[0]], fill="black")
    return image


def test_thin_lines_elsewhere_are_another_drawing_and_the_same_line_is_not(tmp_path: Path) -> None:
    one = outline(800, (100, 700), (400, 90), (650, 600))
    other = outline(800, (120, 640), (500, 120), (700, 650))
    copies = [one.resize((400, 400)), Image.open(io.BytesIO(encode(one, "JPEG", quality=30)))]
    test = key_file(tmp_path / "t", "test", ("Q", "A", [stored(one)]))
    train = key_file(tmp_path / "a", "train", *[("R", "B", [stored(image)]) for image in (other, *copies)])
    assert [row for _, row, *_ in find(train, test)] == [1, 2]


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


DIAGRAM = venn("12", "7", "30")


def test_diagrams_that_differ_in_a_figure_are_different_and_their_copies_are_found(tmp_path: Path) -> None:
    others = [stored(venn("12", figure, "30")) for figure in "123456"]
    small = stored(DIAGRAM.resize((336, 252)), "JPEG", quality=75)
    train = key_file(
        tmp_path / "a", "train", ("Q", "A", [stored(DIAGRAM)]), *[("Q", "A", [image]) for image in (*others, small)]
    )
    assert find(train) == [(0, 7, "duplicate", 0, 0, "near")]
    shown = key_file(tmp_path / "t", "test", *[("R", "B", [image]) for image in (*others, stored(DIAGRAM))])
    copy = key_file(
        tmp_path / "c", "train", ("S", "C", [stored(PHOTO), small]), ("S", "C", [stored(venn("1", "8", ""))])
    )
    (found,) = duplicates.find([copy, shown], duplicates=True, contaminated=True)
    assert (found.row, found.match, found.image, found.of_row, found.of_image) == (0, "near image", 1, 6, 0)


def test_an_equal_image_is_named_in_either_row(tmp_path: Path) -> None:
    leak, other = stored(noise(40, 40, seed=1)), stored(noise(40, 40, seed=2))
    train = key_file(tmp_path / "a", "train", ("Q", "A", [other, other, leak]))
    test = key_file(tmp_path / "b", "test", ("R", "B", [stored(PHOTO), leak]))
    (found,) = duplicates.find([train, test], duplicates=True, contaminated=True)
    assert (found.match, found.image, found.of_image) == ("image", 2, 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_of_one_colour_is_no_reason_to_drop_another_question(tmp_path: Path, form: str) -> None:
    empty = stored(grid(5, 5), form)
    test = key_file(tmp_path / "t", "test", ("Fill it", "red", [empty]), ("Both?", "A", [empty, stored(PHOTO)]))
    train = key_file(
        tmp_path / "a",
        "train",
        ("What colour?", "red", [empty]),
        ("fill it.", "Red", [empty]),  # is the test sample
        ("What colour?", "red", [empty]),  # is the first
        ("What colour?", "red", [stored(grid(5, 10), form)]),
        ("What colour?", "red", [stored(grid(10, 5), form)]),
        ("What colour?", "red", [stored(grid(10, 10), form)]),
        ("Both?", "yes", [empty, stored(PHOTO, "JPEG", quality=60)]),
    )
    assert find(train, test) == [
        (0, 1, "contaminated", 1, 0, "sample"),
        (0, 2, "duplicate", 0, 0, "sample"),
        (0, 6, "contaminated", 1, 1, "near image"),
    ]


def test_what_is_equal_and_shows_nothing_does_not_keep_the_rest_from_being_near(tmp_path: Path) -> None:
    empty, copy = stored(grid(5, 5)), stored(PHOTO, "JPEG", quality=60)
    rows = [("Q", "A", [empty, stored(PHOTO)]), ("Q", "A", [empty, copy]), ("Q", "A", [stored(grid(6, 6)), copy])]
    assert find(key_file(tmp_path / "a", "train", *rows)) == [(0, 1, "duplicate", 0, 0, "near")]


def test_another_aspect_is_another_picture(tmp_path: Path) -> None:
    wide, one_off = PHOTO.resize((480, 240)), PHOTO.resize((241, 180))
    train = key_file(tmp_path / "a", "train", *[("Q", "A", [stored(image)]) for image in (PHOTO, wide, one_off)])
    assert find(train) == [(0, 2, "duplicate", 0, 0, "near")]


def test_nothing_to_compare() -> None:
    assert find() == []
