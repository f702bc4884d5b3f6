"""What crosses from a data source to training: conversations, and the segments they are laid out as."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from amvl_core.contracts.errors import DataError

Split = Literal["train", "test"]
SegmentKind = Literal["prompt", "image", "latent", "hidden", "step", "answer"]
"""`image`: an image of a reply, of which no token is written. `hidden`: steps right behind a latent block that are not
to be written: only what fills the block while training sees them."""

IMAGE_PLACEHOLDER = "<image>"
"""Stands in a question or step where an image goes; the n-th placeholder is the n-th of `images`."""
VIDEO_PLACEHOLDER = "<video>"
"""Stands in a question where a video goes: its frames are as many of `images`, in the place of one."""
PLACEHOLDER = re.compile(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}")


class Video(NamedTuple):
    """How many of a sample's images are the frames of a video, and how many of them fall on a second of it."""

    frames: int
    fps: float


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
    steps may contain further ones. A `<video>` of it stands for a video file among `images`, which preparation makes
    one of `videos`, with its frames in the file's place. `task` groups samples in the score table.
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
    videos: tuple[Video, ...] = ()


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
    videos: tuple[Video, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Crop:
    """What image `image` of a sample shows within `box`, in its pixels, as an image of its own.

    It has `most` image tokens at most: it is scaled down where it would have more.
    """

    image: int
    box: tuple[float, float, float, float]
    most: int


Shown: TypeAlias = int | Crop
"""What a sequence shows in a place for an image: one of the sample's images, by number, or a part of one."""


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
    text is one slot, which stands once for each vision token of the fill. An `observation` says what is seen in the
    image or the block before it. `words` are what a latent block stands for.
    """

    kind: SegmentKind
    text: str
    image: int | None = None
    fill: Fill | None = None
    observation: bool = False
    words: str | None = None


STEP_END = "\n"
"""Ends every step, so that steps and answer are lines: where steps are a target, the answer is the last line."""


def reply(sample: StoredSample) -> list[Segment]:
    """What a model is to write: each step as a line, then the answer."""
    return [*(Segment("step", step + STEP_END) for step in sample.steps), Segment("answer", sample.answer)]


def placed(question: str, num_images: int, videos: Sequence[Video] = ()) -> str:
    """`question` with a place for each of its images and videos: in front, where the text has none.

    `num_images` counts the videos' frames. Raises DataError.
    """
    alone = num_images - sum(video.frames for video in videos)
    for found, wanted, place, name in (
        (question.count(IMAGE_PLACEHOLDER), alone, IMAGE_PLACEHOLDER, "images"),
        (question.count(VIDEO_PLACEHOLDER), len(videos), VIDEO_PLACEHOLDER, "videos"),
    ):
        if found not in (0, wanted):
            raise DataError(f"the question has {found} {place} placeholders for {wanted} {name}")
        question = question if found else place * wanted + question
    return question


def shown_by_question(images: Sequence[bytes], steps: Sequence[str]) -> int:
    """How many of a sample's images its question shows: those behind them belong to the steps."""
    return len(images) - sum(step.count(IMAGE_PLACEHOLDER) for step in steps)
