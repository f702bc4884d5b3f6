"""One's own data as LLaVA writes it; the format is that of `amvl_core.config.LlavaJsonSource`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.config import LlavaJsonSource
from amvl_core.errors import DataError
from amvl_core.sample import Conversation, Split
from data_prep.filters import MALFORMED_ROW
from data_prep.sources.jsonfiles import json_items
from data_prep.sources.members import Archive
from data_prep.sources.row import RawRow, Rejected, attempt, checked, inside

SPLITS: tuple[Split, Split] = ("train", "test")

Turn = TypedDict("Turn", {"from": str, "value": str})


class Item(TypedDict):
    """One conversation; without `image` it is about none."""

    image: NotRequired[str | list[str]]
    conversations: list[Turn]


ITEM = TypeAdapter(Item)


def rows(source: LlavaJsonSource, archive: Archive) -> Iterator[RawRow]:
    """Every item of `train.json` and, if there is one, `test.json`. Raises DataError without a `train.json`."""
    for split in SPLITS:
        name = archive.find(f"{split}.json")
        if name is None and split == "train":
            raise DataError(f"{source.uri} has no train.json; write a JSON list of conversations into it")
        if name is not None:
            for number, value in json_items(archive, name):
                yield attempt(f"{source.name}/{split}/{number:07d}", split, _row, posixpath.dirname(name), value)


def _row(sample_id: str, split: Split, folder: str, value: object) -> RawRow:
    fields = checked(ITEM, value)
    speakers = [turn["from"] for turn in fields["conversations"]]
    if speakers != ["human", "gpt"]:
        raise Rejected(MALFORMED_ROW, f"conversations must be one of human and one of gpt, not {speakers[:6]}")
    image = fields.get("image", [])
    images = tuple(inside(folder, path) for path in ([image] if isinstance(image, str) else image))
    question, answer = (turn["value"] for turn in fields["conversations"])
    return RawRow(sample_id, split, images, {"question": question, "answer": answer})


def convert(source: LlavaJsonSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """What the human says is the question, the reply the answer; the task is the source's name."""
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=source.name,
        images=tuple(images),
        question=row.fields["question"],
        steps=(),
        answer=row.fields["answer"],
    )
