"""OneThinker-SFT (huggingface.co/datasets/OneThink/OneThinker-train-data), its images.

`onethinker_sft_image.json` is a JSON list of chats whose reply is `<think>...</think>\\n<answer>...</answer>`. Where
objects are to be found, the answer is `{"boxes": [x1, y1, x2, y2]}` on a grid of 0 to 1000 over the image.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Region, Split
from amvl_core.contracts.sources import OneThinkerSource
from data_prep.filters import MALFORMED_ROW
from data_prep.sources import text
from data_prep.sources.archive_members import Archive
from data_prep.sources.depth import TOO_DEEP, too_deep
from data_prep.sources.jsonfiles import json_items
from data_prep.sources.pictures import PublishedBox, image_size, regions
from data_prep.sources.raw_row import RawRow, Rejected, attempt, checked, inside

FILE = "onethinker_sft_image.json"
GRID = 1000
REGION = "answer"


class Message(TypedDict):
    """What one of the roles says."""

    role: str
    content: str


class Item(TypedDict):
    """One chat; `images` are paths that begin with `./`."""

    messages: list[Message]
    images: list[str]


ITEM = TypeAdapter(Item)
BOX, BOXES = TypeAdapter(PublishedBox), TypeAdapter(list[PublishedBox])
_REPLY = re.compile(r"\s*<think>(?P<think>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)


def rows(source: OneThinkerSource, archive: Archive) -> Iterator[RawRow]:
    """Every chat; all are for training. Raises DataError if the file is missing."""
    name = archive.only(FILE)
    if name is None:
        raise DataError(f"{source.uri} has no {FILE}; it is not OneThinker-SFT")
    for number, value in json_items(archive, name):
        yield attempt(f"{source.name}/train/{number:07d}", "train", _row, posixpath.dirname(name), value)


def _row(sample_id: str, split: Split, folder: str, value: object) -> RawRow:
    fields = checked(ITEM, value)
    if [message["role"] for message in fields["messages"]] != ["user", "assistant"]:
        raise Rejected(MALFORMED_ROW, f"{len(fields['messages'])} messages, not one of user and one of assistant")
    question, reply = (message["content"] for message in fields["messages"])
    found = _REPLY.fullmatch(reply)
    if found is None:
        raise Rejected(MALFORMED_ROW, "the reply is not <think>...</think><answer>...</answer>")
    plain = {"question": question, "think": found["think"], "answer": found["answer"].strip()}
    return RawRow(sample_id, split, tuple(inside(folder, path) for path in fields["images"]), plain)


def convert(source: OneThinkerSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One chat; paragraphs of the thinking are the steps, the folder of the first image is the task."""
    first = row.images[0] if row.images else ""
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=posixpath.basename(posixpath.dirname(str(first))) or "onethinker",
        images=tuple(images),
        question=row.fields["question"],
        steps=tuple(text.paragraphs(row.fields["think"])),
        answer=row.fields["answer"],
        regions=_regions(row.fields["answer"], images),
    )


def _regions(answer: str, images: Sequence[bytes]) -> tuple[Region, ...]:
    try:
        boxes = json.loads(answer)["boxes"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()
    if not images:
        return ()
    if too_deep(boxes):
        raise Rejected(MALFORMED_ROW, f"boxes of the answer: {TOO_DEEP}")
    nested = isinstance(boxes, list) and all(isinstance(box, list) for box in boxes)
    width, height = size = image_size(images[0])
    found = checked(BOXES, boxes) if nested else [checked(BOX, boxes)]
    scale = (width / GRID, height / GRID, width / GRID, height / GRID)
    return regions([(REGION, [x * s for x, s in zip(box, scale, strict=True)]) for box in found], size)
