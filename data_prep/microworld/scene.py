"""What a task hands over: a scene with a question whose answer is known, not drawn yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from amvl_core.contracts.sample import Region


@dataclass(frozen=True)
class Scene:
    """A question about an image, its answer and the way to it.

    `layout` is what decides between train and test: what the image shows, whatever its paper. Images of different
    layouts differ.
    """

    layout: tuple[object, ...]
    render: Callable[[], Image.Image]
    question: str
    steps: tuple[str, ...]
    answer: str
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Task:
    """The possible answers, equally frequent, and how a scene with a given answer is drawn.

    What the question says is drawn independently of the answer, so the question alone tells nothing about it.
    """

    answers: tuple[str, ...]
    scene: Callable[[Random, str], Scene]


def plural(shape: str) -> str:
    """The name of several such shapes."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def cell_name(cell: int, side: int) -> str:
    """A cell of a grid of `side` columns, in words."""
    return f"row {cell // side + 1}, column {cell % side + 1}"
