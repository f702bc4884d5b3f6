"""What crosses from a data source to training: conversations, and the segments they are laid out as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from amvl_core.contracts.errors import DataError

Split = Literal["train", "test"]
SegmentKind = Literal["prompt", "latent", "step", "answer"]

IMAGE_PLACEHOLDER = "<image>"
"""Stands in a question or step where an image goes; the n-th placeholder is the n-th of `images`."""


@dataclass(frozen=True)
class Region:
    """A box that a reasoning step looks at: `(x1, y1, x2, y2)` in pixels of image number `image`."""

    label: str
    box: tuple[float, float, float, float]
    image: int = 0


@dataclass(frozen=True)
class Conversation:
    """One question about images, its reasoning steps and its answer, as every source converts to.

    `images` holds encoded bytes (PNG, JPEG ...). `question` contains one `<image>` per image that it shows;
    steps may contain further ones. `task` groups samples in the score table.
    """

    sample_id: str
    source: str
    split: Split
    task: str
    images: tuple[bytes, ...]
    question: str
    steps: tuple[str, ...]
    answer: str
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class StoredSample:
    """A sample as a shard holds it, and as a method lays it out. No slot and no layout is stored.

    `step_images` says of each step which of `images` it is about: its own, that of its region, the only one there is;
    None where that is not known. `extra` has what scoring needs of a published benchmark's question, and is empty for
    a sample of a source.
    """

    sample_id: str
    source: str
    task: str
    question: str
    steps: tuple[str, ...]
    step_images: tuple[int | None, ...]
    answer: str
    images: tuple[bytes, ...]
    regions: tuple[Region, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fill:
    """What slots are filled with: the merged vision tokens within `box` of image `image` of those that are shown.

    A box that reaches into more than `most` of them is filled with as many, spread evenly.
    """

    image: int
    box: tuple[float, float, float, float]
    most: int


@dataclass(frozen=True)
class Segment:
    """A stretch of a training sequence. The text of a latent block is its tokens.

    `image` is the number of the sample's image that a latent block is about, where it is about one. With `fill` the
    text is one slot, which stands once for each vision token of the fill.
    """

    kind: SegmentKind
    text: str
    image: int | None = None
    fill: Fill | None = None


STEP_END = "\n"
"""Ends every step, so that steps and answer are lines: where steps are a target, the answer is the last line."""


def reply(sample: StoredSample) -> list[Segment]:
    """What a model is to write: each step as a line, then the answer."""
    return [*(Segment("step", step + STEP_END) for step in sample.steps), Segment("answer", sample.answer)]


def placed(question: str, num_images: int) -> str:
    """`question` with a place for each of its images: in front, where the text has none. Raises DataError."""
    found = question.count(IMAGE_PLACEHOLDER)
    if found not in (0, num_images):
        raise DataError(f"the question has {found} {IMAGE_PLACEHOLDER} placeholders for {num_images} images")
    return question if found else IMAGE_PLACEHOLDER * num_images + question
