r"""Monet-SFT-125K (huggingface.co/datasets/NOVAglow646/Monet-SFT-125K): chats in Qwen's form, with images in replies.

Each subset has a folder with its `train.json` and its images, whose paths count from the top of the set
(`Visual_CoT/cot_images/...`). The files are JSON lists of `{"data": [{"role", "content": [{"type": "text" | "image",
...}]}], "metadata": ...}`. Latent markers stand before each image of the assistant and are left out, as are the tags of
observations; the last `\boxed{}` is the answer.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import MonetSource
from data_prep.filters import MALFORMED_ROW, MISSING_IMAGE, NO_ANSWER
from data_prep.sources import text
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import is_list, json_items
from data_prep.sources.raw_row import RawRow, Rejected, attempt, checked, near

INSTRUCTION = "\nPut your final answer within \\boxed{}."
_MARKERS = re.compile(r"<abs_vis_token></abs_vis_token>|</?observation>")


class Part(TypedDict):
    """A stretch of text, or an image by its path."""

    type: Literal["text", "image"]
    text: NotRequired[str | None]
    image: NotRequired[str | None]


class Message(TypedDict):
    """What one of the roles says."""

    role: Literal["system", "user", "assistant"]
    content: list[Part]


class Item(TypedDict):
    """One chat."""

    data: list[Message]
    metadata: NotRequired[Any]


ITEM = TypeAdapter(Item)


def is_item(value: object) -> bool:
    """Whether an item of a JSON list is one of Monet."""
    return isinstance(value, dict) and isinstance(value.get("data"), list)


def rows(source: MonetSource, archive: Archive) -> Iterator[RawRow]:
    """Every chat of every JSON list; all are for training. Raises DataError if there is no JSON list."""
    lists = [name for name in archive.names() if name.endswith(".json") and is_list(archive, name)]
    if not lists:
        raise DataError(f"{source.uri} holds no .json list of Monet-SFT-125K")
    for name in lists:
        for number, value in json_items(archive, name):
            sample_id = f"{source.name}/{posixpath.splitext(name)[0]}/{number:07d}"
            yield attempt(sample_id, "train", _row, archive, posixpath.dirname(name), value)


def _row(sample_id: str, split: Split, archive: Archive, folder: str, value: object) -> RawRow:
    fields = checked(ITEM, value)
    messages = [message for message in fields["data"] if message["role"] != "system"]
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise Rejected(MALFORMED_ROW, f"not one of user and one of assistant, but {len(messages)} messages")
    parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
    images = tuple(_member(archive, folder, part) for part in parts)
    question, reply = ("".join(_said(part) for part in message["content"]) for message in messages)
    metadata = fields.get("metadata")
    task = metadata.get("dataset_name") if isinstance(metadata, dict) else None
    plain = {"question": question, "reply": reply, "task": task if isinstance(task, str) else "monet"}
    return RawRow(sample_id, split, images, plain)


def _member(archive: Archive, folder: str, part: Part) -> str:
    path = part.get("image")
    if not path:
        raise Rejected(MISSING_IMAGE, "an image is null")
    return near(archive, folder, path)


def _said(part: Part) -> str:
    return IMAGE_PLACEHOLDER if part["type"] == "image" else part.get("text") or ""


def convert(source: MonetSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One chat; paragraphs before the answer are the steps. Raises Rejected where nothing is boxed."""
    found = text.boxed(_MARKERS.sub("", row.fields["reply"]))
    if found is None:
        raise Rejected(NO_ANSWER, "the reply has no \\boxed{} answer")
    reasoning, answer = found
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=row.fields["task"],
        images=tuple(images),
        question=row.fields["question"].removesuffix(INSTRUCTION),
        steps=tuple(text.paragraphs(reasoning)),
        answer=answer,
    )
