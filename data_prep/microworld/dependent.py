"""Tasks of dependent steps: chain, path, turn, tally, relay. Step i needs the result of step i - 1.

The number of steps (1 to 8) is the difficulty, and the question names it. A written step gives its number, what it
looks at, and its result: `Three: red 4, 0 up.` In `chain` it looks at the result of the step before, which stands there
already: `Three: blue.` `relay` is `chain` with steps that say both: `Three: red to blue.` Every cell is 16 x 16 pixels,
one visual token of the tiny model, and all 16 cells are drawn whatever the difficulty.

Chance, the accuracy of the best guess from the question alone, at every difficulty:
chain and relay 1/12, path 1/8, turn 1/8, tally 1/5. What a look at the image rules out without taking steps is in
docs/microworld.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate, pairwise
from random import Random

from PIL import Image, ImageDraw

from amvl_core.contracts.sample import Region
from amvl_core.contracts.sources import MicroworldTask
from data_prep.microworld import draw
from data_prep.microworld.draw import CELL, OVERSAMPLE, PAPERS, RGB, SIZE
from data_prep.microworld.puzzles import STEP_NAMES
from data_prep.microworld.scene import Scene

SIDE = SIZE // CELL
CELLS = range(SIDE * SIDE)
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")

COLOURS: dict[str, RGB] = {
    **draw.COLOURS,
    "orange": (247, 132, 20),
    "purple": (132, 62, 190),
    "pink": (250, 150, 200),
    "cyan": (60, 205, 222),
    "brown": (122, 74, 40),
    "black": (28, 28, 32),
    "white": (255, 255, 255),
    "gray": (140, 144, 152),
}
CHAIN_COLOURS = tuple(COLOURS)
EIGHT_COLOURS = CHAIN_COLOURS[:8]
RIM, INK = (96, 100, 110), (40, 44, 54)

MODULUS = 5
"""Counts of `tally` are 0 to 4: after 4 comes 0, and before 0 comes 4."""

# The squares of a 3 x 3 grid that the piece of `turn` fills. Turned and flipped, it has 8 different forms.
Form = frozenset[tuple[int, int]]
PIECE: Form = frozenset({(0, 0), (1, 0), (2, 0), (2, 1)})

# What the symbols of `turn` do to (row, column) of a 3 x 3 grid.
TURNS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "right": lambda row, column: (column, 2 - row),
    "left": lambda row, column: (2 - column, row),
    "half": lambda row, column: (2 - row, 2 - column),
    "flip": lambda row, column: (row, 2 - column),
}
_GLYPHS: dict[str, list[list[tuple[float, float]]]] = {
    "right": [[(4, 3), (13, 8), (4, 13)]],
    "left": [[(12, 3), (3, 8), (12, 13)]],
    "half": [[(3, 4), (13, 4), (8, 13)]],
    "flip": [[(6, 3), (6, 13), (1, 8)], [(10, 3), (10, 13), (15, 8)]],
}

# Where the dots of a card stand, by their number.
_DOTS: tuple[tuple[tuple[int, int], ...], ...] = (
    (),
    ((8, 8),),
    ((5, 8), (11, 8)),
    ((8, 5), (5, 11), (11, 11)),
    ((5, 5), (11, 5), (5, 11), (11, 11)),
)


def turned(form: Form, turn: str) -> Form:
    """A form of the piece after one of `TURNS`."""
    return frozenset(TURNS[turn](row, column) for row, column in form)


def _forms() -> dict[Form, str]:
    quarters = list(accumulate(["right"] * 3, turned, initial=PIECE))
    names = {form: f"A {foot}" for form, foot in zip(quarters, ("right", "down", "left", "up"), strict=True)}
    flipped = ("left", "down", "right", "up")
    return names | {turned(form, "flip"): f"B {foot}" for form, foot in zip(quarters, flipped, strict=True)}


FORM_NAMES = _forms()
"""The name of each form: A, or B where it is flipped, and where its foot points."""
FORMS = tuple(FORM_NAMES)


def chain(rng: Random, answer: str, moves: int, says_both: bool = False) -> Scene:
    """Which colour is reached: each of 12 cells is named by its upper half, and its lower half names the next cell.

    The cells are a permutation of the colours, so every colour is the next one once. The way repeats no colour, but it
    may end where it began. So the first cell of several rules one colour out, and leaves 11.

    A step says its result. `says_both`: first where it is, which is the task `relay`.
    """
    start = rng.choice(CHAIN_COLOURS)
    others = [name for name in CHAIN_COLOURS if name not in (start, answer)]
    way = [start, *rng.sample(others, moves - 1), answer]
    following = dict(pairwise(way))
    left = [name for name in CHAIN_COLOURS if name not in following]
    following |= zip(left, rng.sample([name for name in CHAIN_COLOURS if name not in way[1:]], len(left)), strict=True)
    cells = dict(zip(CHAIN_COLOURS, rng.sample(CELLS, len(CHAIN_COLOURS)), strict=True))
    tiles = {cells[name]: _halves(name, following[name]) for name in CHAIN_COLOURS}
    return _scene(
        ("chain", *sorted((cells[name], name, following[name]) for name in CHAIN_COLOURS)),
        partial(_on_paper, tiles, rng.randrange(len(PAPERS))),
        f"Start at {start} and move {NUMBERS[moves - 1]}.",
        [f"{here} to {there}" if says_both else there for here, there in pairwise(way)],
        answer,
        [cells[name] for name in way[:-1]],
    )


def path(rng: Random, answer: str, moves: int) -> Scene:
    """Which colour a ball reaches in a corridor that leads through all 16 cells, beginning at one of its ends.

    Of the cells that an odd number of moves reaches, each has another colour, if that number is odd; else so do those
    of an even number. So counting colours does not help. The others have any colours: where every image had the same
    ones, what is seen of the whole image would say nothing of any cell, and colours were not learned.
    """
    trail = rng.choice(_trails())
    names = rng.choices(EIGHT_COLOURS, k=len(CELLS))
    reached = [move for move in CELLS if move % 2 == moves % 2]
    others = rng.sample([name for name in EIGHT_COLOURS if name != answer], len(EIGHT_COLOURS) - 1)
    others.insert(reached.index(moves), answer)
    for move, name in zip(reached, others, strict=True):
        names[move] = name
    return _scene(
        ("path", *trail, *names[1:]),
        partial(_corridor, trail, names),
        f"Start at the ball and move {NUMBERS[moves - 1]}.",
        [
            f"{STEP_NAMES[b - a]} {_name(b)}, {name}"
            for (a, b), name in zip(pairwise(trail[: moves + 1]), names[1:], strict=False)
        ],
        answer,
        trail[1 : moves + 1],
    )


def turn(rng: Random, answer: str, moves: int) -> Scene:
    """Which of its 8 forms a piece has after the first turns of a list. It never ends as it began.

    The first cell shows the piece before, the others are the list.
    """
    while True:
        turns = rng.choices(tuple(TURNS), k=len(CELLS) - 1)
        way = list(accumulate(turns[:moves], turned, initial=rng.choice(FORMS)))
        if FORM_NAMES[way[-1]] == answer and way[-1] != way[0]:
            break
    tiles = {0: _piece(way[0])} | {number: _glyph(name) for number, name in enumerate(turns, 1)}
    return _scene(
        ("turn", sorted(way[0]), *turns),
        partial(_on_paper, tiles, rng.randrange(len(PAPERS))),
        f"Start at the piece and do {NUMBERS[moves - 1]}.",
        [f"{name}, {FORM_NAMES[form]}" for name, form in zip(turns, way[1:], strict=False)],
        answer,
        list(range(1, moves + 1)),
    )


def tally(rng: Random, answer: str, moves: int) -> Scene:
    """The count after the first cards: dots are added, and after a red card subtracted until the next red card.

    Counts are modulo `MODULUS` and begin at 0. The dots of each card are uniform, so the answer is uniform whatever is
    known of all cards but one of those that count.
    """
    dots = [rng.randrange(MODULUS) for _ in CELLS]
    red = [rng.random() < 0.5 for _ in CELLS]
    signs = list(accumulate(red, lambda sign, turns: -sign if turns else sign, initial=1))
    before = sum(sign * number for sign, number in zip(signs, dots[: moves - 1], strict=False))
    dots[moves - 1] = signs[moves - 1] * (int(answer) - before) % MODULUS
    counts = accumulate(sign * number for sign, number in zip(signs, dots[:moves], strict=False))
    cards = [("red" if turns else "blue", number) for turns, number in zip(red, dots, strict=True)]
    ways = ["up" if sign > 0 else "down" for sign in signs[1:]]
    tiles = {cell: _card(*card) for cell, card in enumerate(cards)}
    return _scene(
        ("tally", *zip(dots, red, strict=True)),
        partial(_on_paper, tiles, rng.randrange(len(PAPERS))),
        f"Count {NUMBERS[moves - 1]} items from 0 to {MODULUS - 1} and turn at red.",
        [
            f"{colour} {number}, {count % MODULUS} {way}"
            for (colour, number), count, way in zip(cards, counts, ways, strict=False)
        ],
        answer,
        list(range(moves)),
    )


REVISIONS: dict[MicroworldTask, int] = {"path": 1, "turn": 1, "tally": 1}
"""Counted up when a task's samples change: what was prepared before is not taken for them."""

DEPENDENT: dict[MicroworldTask, tuple[tuple[str, ...], Callable[[Random, str, int], Scene]]] = {
    "chain": (CHAIN_COLOURS, chain),
    "path": (EIGHT_COLOURS, path),
    "turn": (tuple(FORM_NAMES.values()), turn),
    "tally": (tuple(map(str, range(MODULUS))), tally),
    "relay": (CHAIN_COLOURS, partial(chain, says_both=True)),
}
"""Of each task the answers, equally frequent, and how a scene with an answer and a number of steps is drawn."""


def _scene(
    layout: tuple[object, ...],
    render: Callable[[], Image.Image],
    question: str,
    steps: Sequence[str],
    answer: str,
    cells: Sequence[int],
) -> Scene:
    """A scene whose step i says `steps[i]` and looks at cell i of `cells`."""
    return Scene(
        layout,
        render,
        question,
        tuple(f"{number.capitalize()}: {step}." for number, step in zip(NUMBERS, steps, strict=False)),
        answer,
        tuple(_region(f"step {number}", cell) for number, cell in enumerate(cells, 1)),
    )


def _region(label: str, cell: int) -> Region:
    x, y = float(cell % SIDE * CELL), float(cell // SIDE * CELL)
    return Region(label, (x, y, x + CELL, y + CELL))


@cache
def _trails() -> list[list[int]]:
    """The 552 ways through all cells, each once, with steps to neighbours."""
    trails = [[cell] for cell in CELLS]
    for _ in CELLS[1:]:
        trails = [[*trail, cell] for trail in trails for cell in _neighbours(trail[-1]) if cell not in trail]
    return trails


def _name(cell: int) -> str:
    return f"{'ABCD'[cell // SIDE]}{cell % SIDE + 1}"


def _neighbours(cell: int) -> list[int]:
    near = [cell + step for step in STEP_NAMES]
    return [
        other
        for other in near
        if other in CELLS and abs(other % SIDE - cell % SIDE) + abs(other // SIDE - cell // SIDE) == 1
    ]


def _on_paper(tiles: dict[int, Image.Image], paper: int) -> Image.Image:
    image = draw.objects((), paper)
    for cell, tile in tiles.items():
        image.paste(tile, (cell % SIDE * CELL, cell // SIDE * CELL), tile)
    return image


def _corridor(trail: Sequence[int], names: Sequence[str]) -> Image.Image:
    """A maze that is open along `trail` only: a ball in its first cell, the floor of each other coloured."""
    sides = {1: draw.EAST, -1: draw.WEST, SIDE: draw.SOUTH, -SIDE: draw.NORTH}
    walls = [sum(sides.values())] * len(CELLS)
    for a, b in pairwise(trail):
        walls[a] -= sides[b - a]
        walls[b] -= sides[a - b]
    tiles = {cell: _floor(name, walls[cell]) for cell, name in zip(trail, ["", *names[1:]], strict=True)}
    return _on_paper(tiles, 0)


def _drawn(paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    """A tile, painted in pixels times OVERSAMPLE and reduced."""
    large = Image.new("RGBA", (CELL * OVERSAMPLE, CELL * OVERSAMPLE), (*INK, 0))
    paint(ImageDraw.Draw(large))
    return large.resize((CELL, CELL), Image.Resampling.BOX)


def _scaled(*values: float) -> list[float]:
    return [value * OVERSAMPLE for value in values]


@cache
def _halves(upper: str, lower: str) -> Image.Image:
    def paint(pen: ImageDraw.ImageDraw) -> None:
        pen.rectangle(_scaled(0.5, 0.5, 15.4, 15.4), fill=RIM)
        pen.rectangle(_scaled(1, 1, 14.9, 7.7), fill=COLOURS[upper])
        pen.rectangle(_scaled(1, 8.2, 14.9, 14.9), fill=COLOURS[lower])

    return _drawn(paint)


@cache
def _floor(colour: str, walls: int) -> Image.Image:
    """A cell of a corridor; without a colour the ball lies in it."""
    places = {
        draw.NORTH: (-1, -1, 16.9, 1.4),
        draw.SOUTH: (-1, 14.5, 16.9, 16.9),
        draw.WEST: (-1, -1, 1.4, 16.9),
        draw.EAST: (14.5, -1, 16.9, 16.9),
    }

    def paint(pen: ImageDraw.ImageDraw) -> None:
        pen.rectangle(_scaled(0, 0, 15.9, 15.9), fill=COLOURS[colour] if colour else draw.FLOOR)
        if not colour:
            pen.ellipse(_scaled(4, 4, 12, 12), fill=COLOURS["yellow"], outline=INK, width=OVERSAMPLE // 2)
        for side, place in places.items():
            if walls & side:
                pen.rectangle(_scaled(*place), fill=draw.WALL)

    return _drawn(paint)


@cache
def _piece(form: Form) -> Image.Image:
    def paint(pen: ImageDraw.ImageDraw) -> None:
        for row, column in form:
            at = _scaled(2 + 4 * column, 2 + 4 * row, 5.9 + 4 * column, 5.9 + 4 * row)
            pen.rectangle(at, fill=COLOURS["blue"])

    return _drawn(paint)


@cache
def _glyph(turn: str) -> Image.Image:
    def paint(pen: ImageDraw.ImageDraw) -> None:
        for points in _GLYPHS[turn]:
            pen.polygon([(x * OVERSAMPLE, y * OVERSAMPLE) for x, y in points], fill=INK)

    return _drawn(paint)


@cache
def _card(colour: str, dots: int) -> Image.Image:
    def paint(pen: ImageDraw.ImageDraw) -> None:
        pen.rounded_rectangle(_scaled(1, 1, 14.9, 14.9), 2 * OVERSAMPLE, fill=COLOURS[colour])
        for x, y in _DOTS[dots]:
            pen.ellipse(_scaled(x - 2, y - 2, x + 2, y + 2), fill=(255, 255, 255))

    return _drawn(paint)
