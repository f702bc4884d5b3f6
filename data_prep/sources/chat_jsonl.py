"""One's own data as chat JSON lines; the format is that of `amvl_core.contracts.config.ChatJsonlSource`."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NotRequired

from pydantic import Field, NonNegativeInt, TypeAdapter, with_config
from typing_extensions import TypedDict

from amvl_core.contracts.config import ChatJsonlSource
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Region, Split
from data_prep.filters import MALFORMED_ROW
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import json_lines
from data_prep.sources.pairs import pairs
from data_prep.sources.pictures import PublishedBox, clipped, image_size
from data_prep.sources.raw_row import NOTHING_ELSE, RawRow, Rejected, checked, inside, malformed

SPLITS: tuple[Split, Split] = ("train", "test")
LINE = "line-"
"""Begins the id of a line that has none."""


@with_config(NOTHING_ELSE)
class Text(TypedDict):
    """A stretch of text."""

    type: Literal["text"]
    text: str


@with_config(NOTHING_ELSE)
class Picture(TypedDict):
    """An image by its path, or the next one of `images`."""

    type: Literal["image"]
    image: NotRequired[str]


@with_config(NOTHING_ELSE)
class Message(TypedDict):
    """What one of the roles says."""

    role: str
    content: str | list[Annotated[Text | Picture, Field(discriminator="type")]]


@with_config(NOTHING_ELSE)
class Area(TypedDict):
    """A box in pixels of image number `image`, 0 where it is left out."""

    label: str
    box: PublishedBox
    image: NotRequired[NonNegativeInt]


@with_config(NOTHING_ELSE)
class Fields(TypedDict):
    """One line; paths count from the folder of the file."""

    messages: list[Message]
    images: NotRequired[list[str]]
    steps: NotRequired[list[str]]
    regions: NotRequired[list[Area]]
    id: NotRequired[str | int]
    task: NotRequired[str]


FIELDS = TypeAdapter(Fields)


def rows(source: ChatJsonlSource, archive: Archive) -> Iterator[RawRow]:
    """Every line of `train.jsonl` and, if there is one, `test.jsonl`. Raises DataError without a `train.jsonl`."""
    for split in SPLITS:
        member = archive.find(f"{split}.jsonl")
        if member is None and split == "train":
            raise DataError(f"{source.uri} has no train.jsonl; write one JSON object per line into it")
        if member is not None:
            yield from _split_rows(source.name, split, archive, member)


def _split_rows(name: str, split: Split, archive: Archive, member: str) -> Iterator[RawRow]:
    # Sample ids key predictions and reports, so they must be unique even where the ids of a file are not. A few
    # bytes of each are enough to tell.
    seen: set[bytes] = set()
    for number, value in json_lines(archive, member):
        fallback = f"{name}/{split}/{LINE}{number:07d}"
        try:
            made = _line_rows(fallback, split, name, posixpath.dirname(member), value)
        except Rejected as rejected:
            made = [RawRow(fallback, split, (), None, rejected.drop)]
        for row in made:
            if row.sample_id.startswith(fallback):
                continue
            digest = hashlib.blake2b(row.sample_id.encode(), digest_size=8).digest()
            if digest in seen or row.sample_id.startswith(f"{name}/{split}/{LINE}"):
                made = [malformed(fallback, split, f"its id {row.sample_id} is that of another row")]
                break
            seen.add(digest)
        yield from made


def _line_rows(sample_id: str, split: Split, name: str, folder: str, value: object) -> list[RawRow]:
    """A row for each question with its answer; the ids of several are numbered."""
    fields = checked(FIELDS, value)
    turns = [(message["role"], _said(message)) for message in fields["messages"]]
    found = pairs(turns, [inside(folder, path) for path in _paths(fields, turns)])
    if len(found) > 1 and ("steps" in fields or "regions" in fields):
        raise Rejected(MALFORMED_ROW, f"steps and regions are those of one answer, the messages have {len(found)}")
    for area in fields.get("regions", []):
        if (image := area.get("image", 0)) >= len(found[0].images):
            raise Rejected(MALFORMED_ROW, f"a region is on image {image}, there are {len(found[0].images)}")
    if "id" in fields:
        sample_id = f"{name}/{split}/{fields['id']}"
    rest = {"task": fields.get("task", name), "steps": fields.get("steps", []), "regions": fields.get("regions", [])}
    return [
        RawRow(
            sample_id if len(found) == 1 else f"{sample_id}-{number}",
            split,
            pair.images,
            {"question": pair.question, "answer": pair.answer, **rest},
        )
        for number, pair in enumerate(found)
    ]


def _said(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else IMAGE_PLACEHOLDER for part in content)


def _paths(fields: Fields, turns: Sequence[tuple[str, str]]) -> list[str]:
    """Images in their order: those that the messages name, if they name any, then those of `images`."""
    contents = [message["content"] for message in fields["messages"] if not isinstance(message["content"], str)]
    named = [part["image"] for content in contents for part in content if part["type"] == "image" and "image" in part]
    shown = sum(text.count(IMAGE_PLACEHOLDER) for _, text in turns)
    if named and len(named) != shown:
        raise Rejected(MALFORMED_ROW, f"{len(named)} of the {shown} images in the messages have a path; give it to all")
    return [*named, *fields.get("images", [])]


def convert(source: ChatJsonlSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One question with its answer; without a `task` it is the source's name.

    Raises Rejected where a region has no area on its image.
    """
    regions = [
        Region(area["label"], clipped(area["box"], image_size(images[number])), number)
        for area in row.fields["regions"]
        for number in [area.get("image", 0)]
    ]
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=row.fields["task"],
        images=tuple(images),
        question=row.fields["question"],
        steps=tuple(row.fields["steps"]),
        answer=row.fields["answer"],
        regions=tuple(regions),
    )
