"""The puzzles: odd one out, jigsaw of two pieces, path in a maze."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from random import Random

from amvl_core.contracts.sample import Region
from data_prep.microworld import draw
from data_prep.microworld.draw import CELL, COLOURS, PAPERS, SHAPES, SIZE, Placed
from data_prep.microworld.scene import Scene, cell_name, plural

COLOUR_NAMES = tuple(COLOURS)
SIDE = SIZE // CELL

# Cells of a 3 x 3 grid that one word names.
POSITIONS = {"top": 1, "left": 3, "centre": 4, "right": 5, "bottom": 7}
ODD_PITCH, ODD_SIZE = 20, 16

CORNERS = ("top left", "top right", "bottom left", "bottom right")

# Each edge of the grid of maze cells as (cell, neighbour): to the east or to the south.
EDGES = tuple(
    (cell, cell + step)
    for cell in range(SIDE * SIDE)
    for step, inside in ((1, cell % SIDE < SIDE - 1), (SIDE, cell // SIDE < SIDE - 1))
    if inside
)
STEP_NAMES = {1: "right", -1: "left", SIDE: "down", -SIDE: "up"}
SMALLEST_PART = 4


def odd_one_out(rng: Random, answer: str) -> Scene:
    """Nine equal objects but one, which differs in colour or in shape, at one of five places."""
    shape, other_shape = rng.sample(SHAPES, 2)
    colour, other_colour = rng.sample(COLOUR_NAMES, 2)
    by_colour = rng.random() < 0.5
    placed = [
        Placed(
            shape,
            colour,
            SIZE // 2 + (i % 3 - 1) * ODD_PITCH,
            SIZE // 2 + (i // 3 - 1) * ODD_PITCH,
            ODD_SIZE,
        )
        for i in range(9)
    ]
    usual = placed[POSITIONS[answer]]
    kind = (shape, other_colour) if by_colour else (other_shape, colour)
    odd = Placed(*kind, usual.x, usual.y, usual.size)
    placed[POSITIONS[answer]] = odd
    wording = rng.choice(("Where is the odd one out?", "Which one is different?", "Where is the different one?"))
    rule, exception = (colour, odd.colour) if by_colour else (plural(shape), f"a {odd.shape}")
    return Scene(
        ("odd_one_out", shape, colour, *kind, answer),
        partial(draw.objects, placed, rng.randrange(len(PAPERS))),
        wording,
        (f"All but one are {rule}.", f"One is {exception}."),
        answer,
        (odd.region("odd one"),),
    )


def jigsaw(rng: Random, answer: str) -> Scene:
    """Which of two pieces completes a picture; the other one has another colour, or is another corner."""
    shape = rng.choice(SHAPES)
    colour, wrong_colour = rng.sample(COLOUR_NAMES, 2)
    corner, wrong_corner = rng.sample(range(4), 2)
    by_colour = rng.random() < 0.5
    right = (shape, colour, corner)
    wrong = (shape, wrong_colour, corner) if by_colour else (shape, colour, wrong_corner)
    other = "bottom" if answer == "top" else "top"
    wording = rng.choice(
        (
            "Which piece fits, top or bottom?",
            "Does the top or bottom piece fit?",
            "Which is the missing piece, top or bottom?",
        )
    )
    x, y = draw.corner_at(corner)
    flaw = f"is {wrong_colour}" if by_colour else f"is the {CORNERS[wrong_corner]}"
    return Scene(
        ("jigsaw", *right, *wrong),
        partial(draw.jigsaw, right[:2], corner, {answer: right, other: wrong}, rng.randrange(len(PAPERS))),
        wording,
        (f"The {CORNERS[corner]} of a {colour} {shape} is missing.", f"The {other} piece {flaw}."),
        answer,
        (
            _piece("missing part", (draw.PICTURE_AT[0] + x, draw.PICTURE_AT[1] + y)),
            _piece("top piece", draw.PIECES_AT["top"]),
            _piece("bottom piece", draw.PIECES_AT["bottom"]),
        ),
    )


def maze(rng: Random, answer: str) -> Scene:
    """Which of two flags a ball can reach; the walls divide the maze in two, and each part has one flag."""
    edges, part = _divided(rng)
    ball, goal = rng.sample(sorted(part), 2)
    elsewhere = rng.choice([cell for cell in range(SIDE * SIDE) if cell not in part])
    openings = [0] * (SIDE * SIDE)
    for low, high in edges:
        sides = (draw.EAST, draw.WEST) if high == low + 1 else (draw.SOUTH, draw.NORTH)
        openings[low] |= sides[0]
        openings[high] |= sides[1]
    other = "blue" if answer == "red" else "red"
    path = _path(edges, ball, goal)
    moves = ", ".join(STEP_NAMES[b - a] for a, b in pairwise(path))
    named = rng.sample((answer, other), 2)
    wording = rng.choice(
        (
            "Which flag can the ball reach, {} or {}?",
            "Does the path of the ball lead to {} or {}?",
            "Can the ball reach the {} or the {} flag?",
        )
    )
    return Scene(
        ("maze", *edges),
        partial(draw.maze, openings, ball, {answer: goal, other: elsewhere}),
        wording.format(*named),
        (
            f"The ball starts in {cell_name(ball, SIDE)}.",
            f"The path goes {moves}.",
            f"It ends in {cell_name(goal, SIDE)} at the {answer} flag.",
        ),
        answer,
        (
            _cells("ball", [ball]),
            _cells("path", path),
            _cells(f"{answer} flag", [goal]),
            _cells(f"{other} flag", [elsewhere]),
        ),
    )


def _divided(rng: Random) -> tuple[tuple[tuple[int, int], ...], set[int]]:
    """Open edges that join the cells into two trees, and the cells of one of them."""
    while True:
        tree = _forest(rng.sample(EDGES, len(EDGES)))
        cut = rng.randrange(len(tree))
        edges = tuple(sorted(tree[:cut] + tree[cut + 1 :]))
        part = _reached(edges, rng.choice(tree[cut]))
        if SMALLEST_PART <= len(part) <= SIDE * SIDE - SMALLEST_PART:
            return edges, part


def _forest(edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Kruskal: the edges, in order, that join two trees."""
    root = list(range(SIDE * SIDE))
    taken = []
    for a, b in edges:
        if root[a] != root[b]:
            taken.append((a, b))
            old, new = root[a], root[b]
            root = [new if item == old else item for item in root]
    return taken


def _reached(edges: tuple[tuple[int, int], ...], start: int) -> set[int]:
    reached: set[int] = {start}
    grown = True
    while grown:
        size = len(reached)
        for a, b in edges:
            if a in reached or b in reached:
                reached |= {a, b}
        grown = len(reached) > size
    return reached


def _path(edges: tuple[tuple[int, int], ...], start: int, goal: int) -> list[int]:
    """The cells from start to goal, both included; there is exactly one way in a tree."""
    trails = [[start]]
    for trail in trails:
        if trail[-1] == goal:
            return trail
        ends = [b if a == trail[-1] else a for a, b in edges if trail[-1] in (a, b)]
        trails += [[*trail, cell] for cell in ends if cell not in trail]
    raise AssertionError("start and goal are in one tree")


def _piece(label: str, at: tuple[int, int]) -> Region:
    x, y = at
    return Region(label, (float(x), float(y), float(x + draw.PIECE), float(y + draw.PIECE)))


def _cells(label: str, cells: list[int]) -> Region:
    rows, columns = [cell // SIDE for cell in cells], [cell % SIDE for cell in cells]
    box = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
    x1, y1, x2, y2 = (float(value * CELL) for value in box)
    return Region(label, (x1, y1, x2, y2))
