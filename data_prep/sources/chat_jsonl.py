"""One's own data as chat JSON lines; the format is that of `amvl_core.config.ChatJsonlSource`."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from typing import NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.config import ChatJsonlSource
from amvl_core.errors import DataError
from amvl_core.sample import Conversation, Split
from data_prep.filters import MALFORMED_ROW
from data_prep.sources.jsonfiles import json_lines
from data_prep.sources.members import Archive
from data_prep.sources.row import RawRow, Rejected, attempt, checked, inside, malformed

SPLITS: tuple[Split, Split] = ("train", "test")
LINE = "line-"
"""Begins the id of a line that has none."""


class Message(TypedDict):
    """What one of the roles says."""

    role: str
    content: str


class Fields(TypedDict):
    """One line; `images` are paths from the folder of the file."""

    messages: list[Message]
    images: NotRequired[list[str]]
    steps: NotRequired[list[str]]
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
        row = attempt(fallback, split, _row, name, posixpath.dirname(member), value)
        if row.sample_id != fallback:
            digest = hashlib.blake2b(row.sample_id.encode(), digest_size=8).digest()
            if digest in seen or row.sample_id.startswith(f"{name}/{split}/{LINE}"):
                row = malformed(fallback, split, f"its id {row.sample_id} is that of another row")
            seen.add(digest)
        yield row


def _row(sample_id: str, split: Split, name: str, folder: str, value: object) -> RawRow:
    fields = checked(FIELDS, value)
    roles = [message["role"] for message in fields["messages"]]
    if roles != ["user", "assistant"]:
        raise Rejected(MALFORMED_ROW, f"messages must be one of user and one of assistant, not {roles[:6]}")
    images = tuple(inside(folder, image) for image in fields.get("images", []))
    if "id" in fields:
        sample_id = f"{name}/{split}/{fields['id']}"
    return RawRow(sample_id, split, images, fields)


def convert(source: ChatJsonlSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """The user's message is the question, the assistant's the answer; without a `task` it is the source's name."""
    question, answer = (message["content"] for message in row.fields["messages"])
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=row.fields.get("task", source.name),
        images=tuple(images),
        question=question,
        steps=tuple(row.fields.get("steps", [])),
        answer=answer,
    )
