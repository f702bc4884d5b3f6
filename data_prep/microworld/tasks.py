"""The tasks about objects on paper, each in a cell of a 4 x 4 grid: colour, shape, count, compare, relation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from PIL import Image

from amvl_core.contracts.sources import MicroworldTask
from data_prep.microworld import draw
from data_prep.microworld.draw import CELL, COLOURS, PAPERS, SHAPES, SIZE, Placed
from data_prep.microworld.puzzles import POSITIONS, jigsaw, maze, odd_one_out
from data_prep.microworld.scene import Scene, Task, cell_name, plural

SIDE = SIZE // CELL
COLOUR_NAMES = tuple(COLOURS)

# What `a on this side of b` means for the (row, column) steps from b to a.
SIDES = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}

# (more, fewer) objects, from clear to close.
COUNTS = ((3, 1), (4, 2), (5, 3), (3, 2), (4, 3))


def colour(rng: Random, answer: str) -> Scene:
    """Which colour a shape has that occurs once, among up to 2 others."""
    shapes = rng.sample(SHAPES, rng.randint(1, 3))
    placed = _place(rng, [(shapes[0], answer), *((shape, rng.choice(COLOUR_NAMES)) for shape in shapes[1:])])
    target = placed[0]
    layout, render = _on_paper(rng, placed)
    wording = rng.choice(("What colour is the {}?", "Which colour is the {}?", "The {} is what colour?"))
    return Scene(
        layout,
        render,
        wording.format(target.shape),
        (f"The {target.shape} is in {_where(target)}.", f"It is {answer}."),
        answer,
        (target.region(target.shape),),
    )


def shape(rng: Random, answer: str) -> Scene:
    """Which shape has a colour that occurs once, among up to 2 others."""
    colours = rng.sample(COLOUR_NAMES, rng.randint(1, 3))
    placed = _place(rng, [(answer, colours[0]), *((rng.choice(SHAPES), other) for other in colours[1:])])
    target = placed[0]
    layout, render = _on_paper(rng, placed)
    wording = rng.choice(("What shape is {}?", "Which shape is {}?", "What is the {} shape?"))
    return Scene(
        layout,
        render,
        wording.format(target.colour),
        (f"The {target.colour} shape is in {_where(target)}.", f"It is a {answer}."),
        answer,
        (target.region(f"{target.colour} shape"),),
    )


def count(rng: Random, answer: str) -> Scene:
    """How many objects of a shape, or of a colour, there are among up to 3 others."""
    wanted, total = int(answer), int(answer) + rng.randint(0, 3)
    if rng.random() < 0.5:
        name, *others = rng.sample(COLOUR_NAMES, len(COLOUR_NAMES))
        what, label = f"{name} shapes", f"{name} shape"
        colours = [name] * wanted + rng.choices(others, k=total - wanted)
        kinds = [(rng.choice(SHAPES), item) for item in colours]
    else:
        name, *others = rng.sample(SHAPES, len(SHAPES))
        what, label = plural(name), name
        shapes = [name] * wanted + rng.choices(others, k=total - wanted)
        kinds = [(item, rng.choice(COLOUR_NAMES)) for item in shapes]
    placed = _place(rng, kinds)
    targets = sorted(placed[:wanted], key=_cell)
    layout, render = _on_paper(rng, placed)
    wording = rng.choice(("How many {} are there?", "How many {} does the image have?", "There are how many {}?"))
    return Scene(
        layout,
        render,
        wording.format(what),
        (f"The {what} are in {'; '.join(map(_where, targets))}.", f"There are {answer} of them."),
        answer,
        tuple(item.region(label) for item in targets),
    )


def compare(rng: Random, answer: str) -> Scene:
    """Which of the two colours in the image has more objects."""
    many, few = rng.choice(COUNTS)
    other = rng.choice([name for name in COLOUR_NAMES if name != answer])
    placed = _place(rng, [(rng.choice(SHAPES), item) for item in [answer] * many + [other] * few])
    layout, render = _on_paper(rng, placed)
    wording = rng.choice(
        ("Which colour has more shapes?", "There are more shapes of which colour?", "Which colour is there more of?")
    )
    return Scene(
        layout,
        render,
        wording,
        (f"Count of {answer} shapes: {many}.", f"Count of {other} shapes: {few}."),
        answer,
        tuple(item.region(f"{item.colour} shape") for item in placed),
    )


def relation(rng: Random, answer: str) -> Scene:
    """On which side of a shape another one is; both stand in one row or column, well apart."""
    row_step, column_step = SIDES[answer]
    gap = rng.randint(SIDE // 2, SIDE - 1)
    low, across = rng.randrange(SIDE - gap), rng.randrange(SIDE)
    # Along the shared line the first shape is ahead of the second for right and below, behind it otherwise.
    first, second = (low + gap, low) if row_step + column_step > 0 else (low, low + gap)
    step, offset = (1, across * SIDE) if column_step else (SIDE, across)
    cells = [offset + first * step, offset + second * step]
    placed = _place(rng, [(name, rng.choice(COLOUR_NAMES)) for name in rng.sample(SHAPES, 2)], cells)
    subject, anchor = placed[:2]
    layout, render = _on_paper(rng, placed)
    wording = rng.choice(
        (
            "Is the {0} left, right, above or below the {1}?",
            "On which side of the {1} is the {0}?",
            "The {0} is on which side of the {1}?",
        )
    )
    return Scene(
        layout,
        render,
        wording.format(subject.shape, anchor.shape),
        (f"The {subject.shape} is in {_where(subject)}.", f"The {anchor.shape} is in {_where(anchor)}."),
        answer,
        (subject.region(subject.shape), anchor.region(anchor.shape)),
    )


def _place(rng: Random, kinds: list[tuple[str, str]], cells: list[int] | None = None) -> list[Placed]:
    """Objects of these (shape, colour) kinds in these or in drawn cells."""
    return [
        Placed(
            shape,
            colour,
            cell % SIDE * CELL + CELL // 2,
            cell // SIDE * CELL + CELL // 2,
        )
        for (shape, colour), cell in zip(kinds, cells or rng.sample(range(SIDE * SIDE), len(kinds)), strict=True)
    ]


def _on_paper(rng: Random, placed: list[Placed]) -> tuple[tuple[object, ...], Callable[[], Image.Image]]:
    """Layout and drawing of a scene of objects; all five tasks share one space of layouts."""
    layout = ("objects", *sorted((_cell(item), item.shape, item.colour) for item in placed))
    return layout, partial(draw.objects, placed, rng.randrange(len(PAPERS)))


def _cell(item: Placed) -> int:
    return item.y // CELL * SIDE + item.x // CELL


def _where(item: Placed) -> str:
    return cell_name(_cell(item), SIDE)


TASKS: dict[MicroworldTask, Task] = {
    "colour": Task(COLOUR_NAMES, colour),
    "shape": Task(SHAPES, shape),
    "count": Task(("1", "2", "3", "4"), count),
    "compare": Task(COLOUR_NAMES, compare),
    "relation": Task(tuple(SIDES), relation),
    "odd_one_out": Task(tuple(POSITIONS), odd_one_out),
    "jigsaw": Task(("top", "bottom"), jigsaw),
    "maze": Task(("red", "blue"), maze),
}
