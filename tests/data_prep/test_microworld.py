"""Microworld, checked from the pixels: what the generator says is compared with what a reader of the image finds."""

import hashlib
import io
import subprocess
import sys
from collections import Counter, deque
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import MICROWORLD_TASKS, MicroworldSource, MicroworldTask
from data_prep import microworld
from data_prep.microworld import __main__ as sheet
from data_prep.microworld import draw
from data_prep.microworld.export import FORMS, export
from data_prep.sources import detect
from tests.data_prep.sources.reading import converted

SIDE = draw.SIZE // draw.CELL
Pixels = NDArray[np.int16]


def samples(task: MicroworldTask, n: int, split: Split = "train", seed: int = 0) -> list[Conversation]:
    source = MicroworldSource(tasks=(task,), train=n, test=n, seed=seed)
    return list(microworld.generate(source, split))


def pixels(sample: Conversation) -> Pixels:
    image = Image.open(io.BytesIO(sample.images[0]))
    assert image.format == "PNG"
    assert image.size == (draw.SIZE, draw.SIZE)
    return np.asarray(image.convert("RGB")).astype(np.int16)


def colour_at(image: Pixels, x: int, y: int) -> str | None:
    """The colour of the palette at a point, None on paper: paper and floor have little saturation."""
    r, g, b = (int(value) for value in image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0))
    if max(r, g, b) - min(r, g, b) < 60:
        return None
    return min(
        draw.COLOURS, key=lambda name: sum((a - c) ** 2 for a, c in zip(draw.COLOURS[name], (r, g, b), strict=True))
    )


def shape_of(image: Pixels) -> str:
    """The shape on a patch of paper, from the widths of its rows and the share of its box that it fills."""
    mask = (image.max(axis=2) - image.min(axis=2)) > 60
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    filled, widths = mask.mean(), mask.sum(axis=1)
    if filled > 0.93:
        return "square"
    if filled > 0.7:
        return "circle"
    return "triangle" if widths.argmax() > len(widths) * 0.6 else "star"


def objects(sample: Conversation) -> dict[int, tuple[str, str]]:
    """Every object by its cell: (shape, colour)."""
    image, found = pixels(sample), {}
    for cell in range(SIDE * SIDE):
        x, y = cell % SIDE * draw.CELL, cell // SIDE * draw.CELL
        colour = colour_at(image, x + draw.CELL // 2, y + draw.CELL // 2)
        if colour:
            found[cell] = (shape_of(image[y : y + draw.CELL, x : x + draw.CELL]), colour)
    return found


def words(sample: Conversation, names: tuple[str, ...]) -> list[str]:
    """The names that the question mentions, in its order."""
    found = sample.question.removeprefix(IMAGE_PLACEHOLDER).strip("?").replace(",", "").split()
    return [name for word in found for name in names if word in (name, f"{name}s")]


COLOURS = tuple(draw.COLOURS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_colour_and_shape_questions_have_the_answer_that_is_seen(split: Split) -> None:
    for sample in samples("colour", 120, split):
        (shape,) = words(sample, draw.SHAPES)
        assert [seen for name, seen in objects(sample).values() if name == shape] == [sample.answer], sample
    for sample in samples("shape", 120, split):
        (colour,) = words(sample, COLOURS)
        assert [name for name, seen in objects(sample).values() if seen == colour] == [sample.answer], sample


def test_counts_are_the_numbers_of_objects_seen() -> None:
    for sample in samples("count", 160):
        (name,) = words(sample, (*COLOURS, *draw.SHAPES))
        matching = [kind for kind in objects(sample).values() if name in kind]
        assert len(matching) == int(sample.answer) == len(sample.regions), sample


def test_compare_names_the_commoner_of_two_colours() -> None:
    for sample in samples("compare", 120):
        (first, many), (_, few) = Counter(colour for _, colour in objects(sample).values()).most_common()
        assert first == sample.answer, sample
        assert many > few, sample


def test_relations_hold_and_are_unambiguous() -> None:
    for sample in samples("relation", 160):
        where = {shape: divmod(cell, SIDE) for cell, (shape, _) in objects(sample).items()}
        mentioned = words(sample, draw.SHAPES)
        subject, anchor = reversed(mentioned) if "On which" in sample.question else mentioned
        (row, column), (anchor_row, anchor_column) = where[subject], where[anchor]
        assert (row == anchor_row) != (column == anchor_column), sample
        vertical = "above" if row < anchor_row else "below"
        horizontal = "left" if column < anchor_column else "right"
        assert sample.answer == (horizontal if row == anchor_row else vertical), sample


def test_the_odd_one_differs_from_eight_equals() -> None:
    places = {"top": (1, 0), "left": (0, 1), "centre": (1, 1), "right": (2, 1), "bottom": (1, 2)}
    for sample in samples("odd_one_out", 120):
        image, kinds = pixels(sample), {}
        for i in range(9):
            x, y = 12 + i % 3 * 20, 12 + i // 3 * 20
            patch = image[y - 10 : y + 10, x - 10 : x + 10]
            kinds[(i % 3, i // 3)] = (shape_of(patch), colour_at(image, x, y))
        (_, eight), (odd, one) = Counter(kinds.values()).most_common()
        assert (eight, one) == (8, 1), sample
        assert kinds[places[sample.answer]] == odd, sample


def test_the_jigsaw_piece_that_fits_continues_the_picture() -> None:
    for sample in samples("jigsaw", 160):
        image, boxes = pixels(sample), {region.label: [int(v) for v in region.box] for region in sample.regions}
        x1, y1, x2, y2 = boxes["missing part"]
        assert (x2 - x1, y2 - y1) == (draw.PIECE, draw.PIECE)
        beside = x2 if x1 == draw.PICTURE_AT[0] else x1 - 1
        over = y2 if y1 == draw.PICTURE_AT[1] else y1 - 1
        breaks = {}
        for name in ("top", "bottom"):
            left, top, right, bottom = boxes[f"{name} piece"]
            piece = image[top:bottom, left:right]
            column, row = (-1 if beside == x2 else 0), (-1 if over == y2 else 0)
            seams = (piece[:, column] - image[y1:y2, beside], piece[row] - image[over, x1:x2])
            breaks[name] = sum(float(np.abs(seam).mean()) for seam in seams)
        assert sample.answer == min(breaks, key=lambda name: breaks[name]), (sample, breaks)


def flooded(floor: NDArray[np.bool_], start: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels that a walk over the floor reaches."""
    reached = np.zeros_like(floor)
    queue = deque([start])
    reached[start] = True
    while queue:
        y, x = queue.popleft()
        for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if min(near) >= 0 and max(near) < len(floor) and floor[near] and not reached[near]:
                reached[near] = True
                queue.append(near)
    return reached


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_ball_reaches_one_flag_over_the_floor_that_is_drawn(split: Split) -> None:
    wall = np.array(draw.WALL)
    for sample in samples("maze", 60, split):
        image = pixels(sample)
        boxes = {region.label: [int(v) for v in region.box] for region in sample.regions}
        floor = np.abs(image - wall).sum(axis=2) > 60
        x1, y1, _, _ = boxes["ball"]
        reached = flooded(floor, (y1 + draw.CELL // 2, x1 + draw.CELL // 2))
        # The cloth of a flag stands over the floor of its cell.
        at = {name: (boxes[f"{name} flag"][1] + 6, boxes[f"{name} flag"][0] + 7) for name in ("red", "blue")}
        assert {name: colour_at(image, x, y) for name, (y, x) in at.items()} == {"red": "red", "blue": "blue"}
        assert [name for name, point in at.items() if reached[point]] == [sample.answer], sample


def test_a_path_that_is_told_leads_from_the_ball_to_the_flag() -> None:
    moves = {"right": 1, "left": -1, "down": SIDE, "up": -SIDE}
    for sample in samples("maze", 60):
        start, path, end = sample.steps
        row, column = (int(word.strip(".,")) - 1 for word in start.split() if word.strip(".,").isdigit())
        cells = [row * SIDE + column]
        for move in path.removeprefix("The path goes ").strip(".").split(", "):
            cells.append(cells[-1] + moves[move])
        assert f"row {cells[-1] // SIDE + 1}, column {cells[-1] % SIDE + 1} at the {sample.answer} flag" in end
        image = pixels(sample)
        for a, b in pairwise(cells):
            middle = [(a % SIDE + b % SIDE + 1) * draw.CELL // 2, (a // SIDE + b // SIDE + 1) * draw.CELL // 2]
            assert image[middle[1], middle[0]].min() > 200, f"{sample.sample_id}: the path crosses a wall"


def test_any_slice_of_any_process_has_the_same_bytes() -> None:
    source = MicroworldSource(train=40, test=24, seed=3)
    whole = list(microworld.generate(source, "train"))
    assert len(whole) == microworld.count(source, "train") == 40
    blocks = [list(microworld.generate(source, "train", start, start + 7)) for start in range(35, -1, -7)]
    assert [sample for block in reversed(blocks) for sample in block] == whole
    assert next(microworld.generate(source, "train", 39)) == whole[39]
    more = MicroworldSource(train=400, seed=3)
    assert list(microworld.generate(more, "train", 0, 40)) == whole, "a longer data set must begin with the shorter one"
    assert [sample.sample_id for sample in whole[:2]] == ["microworld/train/000000", "microworld/train/000001"]
    assert [sample.task for sample in whole[:8]] == list(MICROWORLD_TASKS)


def test_another_seed_is_other_data() -> None:
    one, two = (list(microworld.generate(MicroworldSource(train=80, seed=seed), "train")) for seed in (0, 1))
    # A scene of one object may recur: 2 of 80 do.
    assert len({sample.images for sample in one} & {sample.images for sample in two}) <= 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_equally_frequent(split: Split) -> None:
    source = MicroworldSource(train=2000, test=2000)
    by_task: dict[str, list[Conversation]] = {}
    for sample in microworld.generate(source, split):
        by_task.setdefault(sample.task, []).append(sample)
    for task, group in by_task.items():
        assert len(group) == 250
        answers = Counter(sample.answer for sample in group)
        assert max(answers.values()) - min(answers.values()) <= 1, (task, answers)


def test_the_question_alone_does_not_tell_the_answer() -> None:
    source = MicroworldSource(train=4000)
    learnt: dict[tuple[str, str], Counter[str]] = {}
    for sample in microworld.generate(source, "train"):
        learnt.setdefault((sample.task, sample.question), Counter())[sample.answer] += 1
    for task in MICROWORLD_TASKS:
        asked = samples(task, 500, "test")
        guesses = [learnt[task, sample.question].most_common(1)[0][0] for sample in asked]
        hits = sum(guess == sample.answer for guess, sample in zip(guesses, asked, strict=True)) / len(asked)
        baseline = 1 / len({sample.answer for sample in asked})
        # Guessing scatters by 0.022 around the baseline at most (one standard deviation, 500 questions).
        assert hits < baseline + 0.075, (task, hits)


def test_no_test_image_is_a_training_image_whatever_the_seed() -> None:
    train = MicroworldSource(train=2400)
    seen = {hashlib.sha256(sample.images[0]).digest() for sample in microworld.generate(train, "train")}
    for seed in (0, 7):
        test = MicroworldSource(test=800, seed=seed)
        unseen = {hashlib.sha256(sample.images[0]).digest() for sample in microworld.generate(test, "test")}
        assert not seen & unseen


def test_a_test_scene_is_not_a_training_scene_on_another_paper() -> None:
    def scenes(split: Split) -> set[tuple[tuple[int, tuple[str, str]], ...]]:
        return {tuple(objects(sample).items()) for sample in samples("colour", 600, split)}

    assert not scenes("train") & scenes("test")


def test_regions_steps_and_questions_are_whole() -> None:
    for sample in microworld.generate(MicroworldSource(train=800), "train"):
        assert sample.question.count(IMAGE_PLACEHOLDER) == len(sample.images) == 1
        assert 1 <= len(sample.steps) <= 4
        assert len(sample.answer.split()) == 1
        assert sample.regions
        for region in sample.regions:
            x1, y1, x2, y2 = region.box
            assert 0 <= x1 < x2 <= draw.SIZE, (sample.sample_id, region)
            assert 0 <= y1 < y2 <= draw.SIZE, (sample.sample_id, region)
            assert region.image == 0


@pytest.mark.parametrize("task", ["colour", "shape", "count", "compare", "relation"])
def test_a_region_holds_the_whole_object(task: MicroworldTask) -> None:
    for sample in samples(task, 40):
        image = pixels(sample)
        ink = (image.max(axis=2) - image.min(axis=2)) > 60
        for region in sample.regions:
            x1, y1, x2, y2 = region.box
            cell_x, cell_y = int((x1 + x2) / 2) // draw.CELL * draw.CELL, int((y1 + y2) / 2) // draw.CELL * draw.CELL
            ys, xs = np.nonzero(ink[cell_y : cell_y + draw.CELL, cell_x : cell_x + draw.CELL])
            seen = (xs.min() + cell_x, ys.min() + cell_y, xs.max() + cell_x + 1, ys.max() + cell_y + 1)
            # The tips of a star or triangle are paler than the threshold: 1.6 pixels at worst.
            assert max(abs(a - b) for a, b in zip(region.box, seen, strict=True)) <= 1.7, (sample, region, seen)


@pytest.mark.parametrize("tasks", [(), ("maze", "maze")])
def test_no_task_or_a_task_twice_is_refused(tasks: tuple[MicroworldTask, ...]) -> None:
    source = MicroworldSource(tasks=tasks)
    with pytest.raises(ConfigError, match="tasks"):
        microworld.count(source, "train")
    with pytest.raises(ConfigError, match="tasks"):
        microworld.generate(source, "train")


def test_an_object_is_drawn_once_and_pasted_after_that() -> None:
    # What makes thousands of samples a second possible: no sprite is drawn twice.
    source = MicroworldSource(train=160)
    list(microworld.generate(source, "train"))
    drawn = draw._sprite.cache_info().misses, draw._tile.cache_info().misses, draw._picture.cache_info().misses
    list(microworld.generate(source, "train"))
    assert drawn == (
        draw._sprite.cache_info().misses,
        draw._tile.cache_info().misses,
        draw._picture.cache_info().misses,
    )


def test_the_contact_sheet_shows_every_sample() -> None:
    page = sheet.sheet(samples("colour", 5))
    assert page.width > 4 * draw.SIZE * sheet.ZOOM
    assert page.height > 2 * draw.SIZE * sheet.ZOOM


def test_a_number_that_cannot_be_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for option, message in (("--seed", "--seed: Input should be greater"), ("--train", "--train: Input should be gr")):
        monkeypatch.setattr("sys.argv", ["microworld", "--export", "chat_jsonl", str(tmp_path / "x"), option, "-1"])
        with pytest.raises(SystemExit):
            sheet.main()
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def identity(sample: Conversation) -> tuple[object, ...]:
    return sample.split, sample.task, sample.question, sample.steps, sample.answer, sample.regions, sample.images


@pytest.mark.parametrize("form", list(FORMS))
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_exported_samples_come_back_as_they_were(form: str, seed: int) -> None:
    source = MicroworldSource(train=24, test=16, seed=seed)
    generated = [sample for split in ("train", "test") for sample in microworld.generate(source, split)]
    with TemporaryDirectory() as folder:
        export(source, form, Path(folder))
        detected = detect(folder)
        assert detected.kind == form
        read = converted(detected)
    if form == "zebra_cot":  # it has no boxes, and its configurations follow each other
        generated = sorted((replace(sample, regions=()) for sample in generated), key=lambda sample: sample.task)
    for split in ("train", "test"):
        wanted = [identity(sample) for sample in generated if sample.split == split]
        assert [identity(sample) for sample in read if sample.split == split] == wanted


def test_the_command_line_exports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.microworld", "--export"]
    subprocess.run([*command, "cogcom", str(tmp_path / "c"), "--train", "9", "--test", "3"], check=True)
    assert Counter(sample.split for sample in converted(detect(str(tmp_path / "c")))) == {"train": 9, "test": 3}
    wrong = subprocess.run([*command, "coco", str(tmp_path / "x")], capture_output=True, text=True)
    assert wrong.returncode == 2 and "visual_cot, refocus, cogcom, zebra_cot" in wrong.stderr
