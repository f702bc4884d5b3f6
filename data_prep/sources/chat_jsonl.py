"""One's own data as chat JSON lines; the format is that of `amvl_core.config.ChatJsonlSource`."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from amvl_core.config import ChatJsonlSource
from amvl_core.errors import DataError
from amvl_core.sample import Conversation, Split
from data_prep.filters import MISSING_IMAGE, Drop
from data_prep.sources.archive import Archive, resolve
from data_prep.sources.row import RawRow, malformed

SPLITS: tuple[Split, Split] = ("train", "test")


def rows(source: ChatJsonlSource, archive: Archive) -> Iterator[RawRow]:
    """Every line of `train.jsonl` and, if there is one, `test.jsonl`. Raises DataError without a `train.jsonl`."""
    for split in SPLITS:
        member = archive.find(f"{split}.jsonl")
        if member is None and split == "train":
            raise DataError(f"{source.uri} has no train.jsonl; write one JSON object per line into it")
        if member is not None:
            yield from _split_rows(source, split, posixpath.dirname(member), archive.read(member))


def _split_rows(source: ChatJsonlSource, split: Split, folder: str, data: bytes) -> Iterator[RawRow]:
    seen: set[str] = set()
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        fallback = f"line-{number:07d}"
        row = _row(source.name, split, folder, fallback, line)
        # Sample ids key predictions and reports, so they must be unique even where the ids of a file are not.
        if row.sample_id in seen:
            row = malformed(f"{source.name}/{split}/{fallback}", split, f"its id {row.sample_id} was seen before")
        seen.add(row.sample_id)
        yield row


def _row(name: str, split: Split, folder: str, fallback: str, line: bytes) -> RawRow:
    sample_id = f"{name}/{split}/{fallback}"
    try:
        fields = json.loads(line)
    except ValueError as error:
        return malformed(sample_id, split, f"not valid JSON: {error}")
    problem = _problem(fields)
    if problem:
        return malformed(sample_id, split, problem)
    if "id" in fields:
        sample_id = f"{name}/{split}/{fields['id']}"
    images = [resolve(folder, image) for image in fields.get("images", [])]
    if None in images:
        outside = fields["images"][images.index(None)]
        return RawRow(sample_id, split, (), None, Drop(MISSING_IMAGE, f"{outside!r} is outside of the archive"))
    return RawRow(sample_id, split, tuple(image for image in images if image is not None), fields)


def _problem(fields: Any) -> str | None:
    """What a line lacks, or None."""
    if not isinstance(fields, dict):
        return "not a JSON object"
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return "messages is not a list of objects"
    roles = [message.get("role") for message in messages]
    if roles != ["user", "assistant"]:
        return f"messages must be one of user and one of assistant, not {roles}"
    if not all(isinstance(message.get("content"), str) for message in messages):
        return "the content of a message is not a string"
    for key in ("images", "steps"):
        value = fields.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return f"{key} is not a list of strings"
    if not isinstance(fields.get("id", ""), (str, int)) or not isinstance(fields.get("task", ""), str):
        return "id or task is not a string"
    return None


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
