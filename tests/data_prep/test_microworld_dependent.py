"""The tasks of dependent steps, solved from the pixels by a reader that shares no code with the generator."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import DEPENDENT_TASKS, DependentTask, MicroworldSource
from data_prep import microworld, pipeline
from data_prep.microworld import __main__ as command_line
from data_prep.microworld.export import FORMS, export
from data_prep.sources import detect
from tests.data_prep.sources.reading import converted

CELL, SIDE = 16, 4
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
# From two steps on, whatever one cell shows: the first of `turn` has the form with which it does not end.
CHANCE: dict[DependentTask, float] = {"chain": 1 / 12, "path": 1 / 8, "turn": 1 / 7, "tally": 1 / 5, "relay": 1 / 12}
COLOURS = {
    "red": (224, 49, 58),
    "yellow": (250, 197, 28),
    "green": (34, 160, 90),
    "blue": (45, 120, 235),
    "orange": (247, 132, 20),
    "purple": (132, 62, 190),
    "pink": (250, 150, 200),
    "cyan": (60, 205, 222),
    "brown": (122, 74, 40),
    "black": (28, 28, 32),
    "white": (255, 255, 255),
    "gray": (140, 144, 152),
}
WAYS = {(0, 1): "right", (0, -1): "left", (1, 0): "down", (-1, 0): "up"}
Pixels = NDArray[np.int16]


class Step(NamedTuple):
    """What a step looks at, which is not always said, and what it leads to."""

    seen: str
    result: str


Maps = dict[str, Step]
"""What one step makes of each result that the step before may have had."""


def drawn(task: DependentTask, n: int, split: Split = "train", **fields: object) -> list[Conversation]:
    source = MicroworldSource.model_validate({"tasks": (task,), "train": n, "test": n, **fields})
    return list(microworld.generate(source, split))


def pixels(sample: Conversation) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(sample.images[0])).convert("RGB")).astype(np.int16)


def cells(sample: Conversation) -> list[Pixels]:
    """The 16 cells, row by row: all that one visual token of the tiny model sees."""
    image = pixels(sample)
    return [image[y : y + CELL, x : x + CELL] for y in range(0, CELL * SIDE, CELL) for x in range(0, CELL * SIDE, CELL)]


def colour(cell: Pixels, x: int, y: int) -> str:
    mean = cell[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0)
    return min(COLOURS, key=lambda name: float(((np.array(COLOURS[name]) - mean) ** 2).sum()))


def dark(cell: Pixels, x: int, y: int) -> bool:
    return bool(cell[y - 1 : y + 2, x - 1 : x + 2].mean() < 150)


def moves(sample: Conversation) -> int:
    (number,) = [NUMBERS.index(word.strip(".")) for word in sample.question.split() if word.strip(".") in NUMBERS]
    return number + 1


def chain_maps(sample: Conversation) -> list[Maps]:
    following: Maps = {
        colour(cell, 8, 4): Step("", colour(cell, 8, 12)) for cell in cells(sample) if cell[8, 0].mean() < 210
    }
    return [following] * moves(sample)


def relay_maps(sample: Conversation) -> list[Maps]:
    return [{here: Step(here, step.result) for here, step in maps.items()} for maps in chain_maps(sample)]


FORM_TURNS: dict[str, Callable[[NDArray[np.bool_]], NDArray[np.bool_]]] = {
    "right": lambda form: np.rot90(form, -1),
    "left": lambda form: np.rot90(form),
    "half": lambda form: np.rot90(form, 2),
    "flip": np.fliplr,
}


def form_name(grid: NDArray[np.bool_]) -> str:
    """Where the foot points, and on which side it is for one who walks down the bar to it: A on the left."""
    squares = [complex(column, row) for row, column in np.argwhere(grid)]
    near = {square: [other for other in squares if abs(other - square) == 1] for square in squares}
    (corner,) = [square for square, found in near.items() if len(found) == 2 and sum(found) != 2 * square]
    (middle,) = [square for square in near[corner] if len(near[square]) == 2]
    (foot,) = [square for square in near[corner] if square != middle]
    points = foot - corner
    return f"{'A' if points / (corner - middle) == -1j else 'B'} {WAYS[int(points.imag), int(points.real)]}"


def piece(sample: Conversation) -> NDArray[np.bool_]:
    """The squares of the first cell that are filled."""
    return np.array([[np.ptp(cells(sample)[0][4 + 4 * r, 4 + 4 * c]) > 60 for c in range(3)] for r in range(3)])


def turn_maps(sample: Conversation) -> list[Maps]:
    forms = [np.rot90(form, quarters) for form in (piece(sample), np.fliplr(piece(sample))) for quarters in range(4)]
    maps: list[Maps] = []
    for cell in cells(sample)[1 : 1 + moves(sample)]:
        left, right = dark(cell, 5, 5), dark(cell, 11, 5)
        glyph = "flip" if not dark(cell, 8, 8) else "half" if left and right else "right" if left else "left"
        maps.append({form_name(form): Step(glyph, form_name(FORM_TURNS[glyph](form))) for form in forms})
    return maps


def dots(cell: Pixels) -> int:
    """Islands of white."""
    white = {(int(y) + 3, int(x) + 3) for y, x in np.argwhere(cell[3:13, 3:13].min(axis=2) > 160)}
    islands = 0
    while white:
        islands, queue = islands + 1, [white.pop()]
        while queue:
            y, x = queue.pop()
            near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & white
            white -= near
            queue += near
    return islands


def tally_maps(sample: Conversation) -> list[Maps]:
    maps: list[Maps] = []
    for cell in cells(sample)[: moves(sample)]:
        number, card = dots(cell), colour(cell, 8, 2)
        maps.append(
            {
                f"{count} {way}": Step(
                    f"{card} {number}", f"{(count + (number if way == 'up' else -number)) % 5} {after}"
                )
                for count in range(5)
                for way, other in (("up", "down"), ("down", "up"))
                for after in [other if card == "red" else way]
            }
        )
    return maps


MAPS: dict[DependentTask, Callable[[Conversation], list[Maps]]] = {
    "chain": chain_maps,
    "turn": turn_maps,
    "tally": tally_maps,
    "relay": relay_maps,
}


def first_colour(sample: Conversation) -> str:
    return sample.question.removeprefix(f"{IMAGE_PLACEHOLDER}Start at ").split()[0]


STARTS: dict[DependentTask, Callable[[Conversation], str]] = {
    "chain": first_colour,
    "relay": first_colour,
    "turn": lambda sample: form_name(piece(sample)),
    "tally": lambda sample: "0 up",
}


def walked(sample: Conversation) -> Iterator[Step]:
    """Where the ball comes by, over floor that is open."""
    image, grid = pixels(sample), cells(sample)
    # The corner of a floor is coloured, but for the ball's.
    (here,) = [i for i, cell in enumerate(grid) if cell[4, 4].min() > 200]
    came = None
    for _ in range(moves(sample)):
        row, column = divmod(here, SIDE)
        ways = {
            (row + a) * SIDE + column + b: name
            for (a, b), name in WAYS.items()
            if 0 <= row + a < SIDE and 0 <= column + b < SIDE
            if image[row * CELL + 8 + 8 * a, column * CELL + 8 + 8 * b].max() > 110  # no wall
        }
        (ahead,) = [cell for cell in ways if cell != came]
        came, here = here, ahead
        yield Step(f"{ways[here]} {chr(ord('A') + here // SIDE)}{here % SIDE + 1}", colour(grid[here], 8, 8))


def stepped(sample: Conversation) -> Iterator[Step]:
    """By the maps of each step, from what the question or the rule begins with."""
    task = sample.task.split("_")[0]
    state = STARTS[task](sample)
    for following in MAPS[task](sample):
        yield (step := following[state])
        state = step.result


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", DEPENDENT_TASKS)
def test_a_reader_of_the_pixels_comes_by_every_step_to_the_answer(task: DependentTask, split: Split) -> None:
    for sample in drawn(task, 160, split):
        steps = list(walked(sample) if task == "path" else stepped(sample))
        between = " to " if task == "relay" else ", "
        said = [between.join(filter(None, step)) for step in steps]
        assert sample.steps == tuple(f"{NUMBERS[i].capitalize()}: {text}." for i, text in enumerate(said)), sample
        result = steps[-1].result
        assert (result.split()[0] if task == "tally" else result) == sample.answer, sample
        assert len(sample.regions) == moves(sample) == int(sample.task.removeprefix(f"{task}_")), sample


@pytest.mark.parametrize("task", MAPS)
def test_every_step_needs_the_one_before(task: DependentTask) -> None:
    # What a step does is a permutation: without the result before it, every result is as likely as any other.
    for sample in drawn(task, 80):
        for following in MAPS[task](sample):
            assert sorted(following) == sorted(step.result for step in following.values()), sample
            assert len(following) == {"chain": 12, "turn": 8, "tally": 10, "relay": 12}[task], sample


@pytest.mark.parametrize("task", DEPENDENT_TASKS)
def test_difficulties_take_turns_and_their_answers_are_equally_frequent(task: DependentTask) -> None:
    by_task = defaultdict(list)
    for sample in drawn(task, 960, "test"):
        by_task[sample.task].append(sample.answer)
    assert {name: len(answers) for name, answers in by_task.items()} == {f"{task}_{n}": 120 for n in range(1, 9)}
    for answers in by_task.values():
        assert len(set(Counter(answers).values())) == 1
    assert {sample.task for sample in drawn(task, 20, difficulty=(3, 5))} == {f"{task}_{n}" for n in (3, 4, 5)}


@pytest.mark.parametrize("task", DEPENDENT_TASKS)
def test_neither_the_question_nor_one_cell_tells_the_answer(task: DependentTask) -> None:
    def clues(sample: Conversation) -> list[Hashable]:
        # One step is answered by one cell, of course: from two steps on no cell does.
        seen = [(moves(sample), i, (cell // 64).tobytes()) for i, cell in enumerate(cells(sample))]
        return [sample.question, *(seen if moves(sample) > 1 else ())]

    learnt: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for sample in drawn(task, 2400):
        for clue in clues(sample):
            learnt[clue][sample.answer] += 1
    asked = drawn(task, 960, "test")
    hits = defaultdict(list)
    for sample in asked:
        for place, clue in enumerate(clues(sample)):
            if clue in learnt:
                hits[place].append(learnt[clue].most_common(1)[0][0] == sample.answer)
    assert set(hits) == set(range(17))
    for place, found in hits.items():
        if len(found) > 200:
            # Four standard deviations of a guess; 17 places are looked at.
            assert np.mean(found) < CHANCE[task] + 4 * (CHANCE[task] / len(found)) ** 0.5, (place, np.mean(found))


def test_no_test_image_is_a_training_image_whatever_the_seed() -> None:
    def digests(split: Split, seed: int) -> set[bytes]:
        source = MicroworldSource(tasks=DEPENDENT_TASKS, train=1600, test=800, seed=seed)
        return {hashlib.sha256(sample.images[0]).digest() for sample in microworld.generate(source, split)}

    seen = digests("train", 0)
    assert len(seen) == 1600
    assert not seen & (digests("test", 0) | digests("test", 7))


def test_any_slice_has_the_same_bytes() -> None:
    source = MicroworldSource(tasks=DEPENDENT_TASKS, train=64, seed=3)
    whole = list(microworld.generate(source, "train"))
    assert list(microworld.generate(source, "train", 40, 50)) == whole[40:50]


def test_the_demo_has_the_samples_and_the_fingerprint_it_had_before_these_tasks() -> None:
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for sample in microworld.generate(MicroworldSource(train=160, test=80), split):
            digest.update(repr(sample).replace(", videos=()", "").encode())  # samples had no videos then
    assert digest.hexdigest() == "82fc22c161e086b923ecb619908cd2a94a25e27c999700b43b9dd30b438c9e10"
    assert "difficulty" not in pipeline._source_identity(MicroworldSource())
    assert pipeline._source_identity(MicroworldSource(tasks=("maze", "chain")))["difficulty"] == [1, 8]


def test_samples_that_changed_are_prepared_again() -> None:
    assert pipeline._source_identity(MicroworldSource(tasks=("chain", "turn")))["revisions"] == {"turn": 1}
    assert "revisions" not in pipeline._source_identity(MicroworldSource(tasks=("chain",)))


@pytest.mark.parametrize("difficulty", [(0, 8), (1, 9), (5, 4)])
def test_a_difficulty_that_cannot_be_is_refused(difficulty: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match="fewest and the most steps, 1 to 8"):
        MicroworldSource(difficulty=difficulty)


@pytest.mark.parametrize("form", list(FORMS))
def test_exported_samples_keep_their_difficulty(form: str, tmp_path: Path) -> None:
    source = MicroworldSource(tasks=DEPENDENT_TASKS, train=32, test=32)
    export(source, form, tmp_path / "x")
    read = [(sample.task, sample.steps, sample.answer) for sample in converted(detect(str(tmp_path / "x")))]
    generated = [sample for split in ("train", "test") for sample in microworld.generate(source, split)]
    assert sorted(read) == sorted((sample.task, sample.steps, sample.answer) for sample in generated)


def test_the_sheet_of_the_documentation_is_what_the_command_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["microworld", "--dependent", "--sheet", str(tmp_path / "sheet.png")])
    command_line.main()
    stored = Path(__file__).parents[2] / "docs" / "images" / "microworld-dependent.png"
    shown, drawn = (np.asarray(Image.open(path)) for path in (stored, tmp_path / "sheet.png"))
    assert np.array_equal(shown, drawn)
