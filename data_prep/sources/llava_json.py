"""One's own data as LLaVA writes it; the format is that of `amvl_core.contracts.config.LlavaJsonSource`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, NotRequired

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from amvl_core.contracts.config import LlavaJsonSource
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Split
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import json_items
from data_prep.sources.pairs import pairs
from data_prep.sources.raw_row import NOTHING_ELSE, RawRow, Rejected, checked, inside

SPLITS: tuple[Split, Split] = ("train", "test")

ROLES = {"human": "user", "gpt": "assistant"}

Turn = TypedDict("Turn", {"from": str, "value": str})


with_config(NOTHING_ELSE)(Turn)


@with_config(NOTHING_ELSE)
class Item(TypedDict):
    """One conversation; without `image` it is about none. What else is published with some sets is not read."""

    image: NotRequired[str | list[str]]
    conversations: list[Turn]
    id: NotRequired[Any]
    model: NotRequired[Any]
    source: NotRequired[Any]
    data_source: NotRequired[Any]
    dataset: NotRequired[Any]
    metadata: NotRequired[Any]
    width: NotRequired[Any]
    height: NotRequired[Any]


ITEM = TypeAdapter(Item)


def rows(source: LlavaJsonSource, archive: Archive) -> Iterator[RawRow]:
    """Every item of `train.json` and, if there is one, `test.json`. Raises DataError without a `train.json`."""
    for split in SPLITS:
        name = archive.find(f"{split}.json")
        if name is None and split == "train":
            raise DataError(f"{source.uri} has no train.json; write a JSON list of conversations into it")
        if name is not None:
            for number, value in json_items(archive, name):
                sample_id = f"{source.name}/{split}/{number:07d}"
                try:
                    yield from _item_rows(sample_id, split, posixpath.dirname(name), value)
                except Rejected as rejected:
                    yield RawRow(sample_id, split, (), None, rejected.drop)


def _item_rows(sample_id: str, split: Split, folder: str, value: object) -> list[RawRow]:
    """A row for each question with its answer; the ids of several are numbered."""
    fields = checked(ITEM, value)
    image = fields.get("image", [])
    images = [inside(folder, path) for path in ([image] if isinstance(image, str) else image)]
    turns = [(ROLES.get(turn["from"], turn["from"]), turn["value"]) for turn in fields["conversations"]]
    found = pairs(turns, images)
    return [
        RawRow(
            sample_id if len(found) == 1 else f"{sample_id}-{number}",
            split,
            pair.images,
            {"question": pair.question, "answer": pair.answer},
        )
        for number, pair in enumerate(found)
    ]


def convert(source: LlavaJsonSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One question with its answer; the task is the source's name."""
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
