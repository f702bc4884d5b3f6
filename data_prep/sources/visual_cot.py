"""Visual-CoT (huggingface.co/datasets/deepcs233/Visual-CoT): questions with the box that holds the answer.

It is published three times, and `VisualCotSource.annotations` says which of them is read:
- `conversations`: `viscot_363k.json`, where a box and the crop of it are the reasoning step before the answer;
- `metadata`: `metadata/<set>_cot_<split>.jsonl`, one question, answer and boxes a line, without steps;
- `detailed`: `cot_with_detailed_reasoning_steps/<set>_cot_<split>.jsonl`, the same with numbered sentences as steps.

Images lie in `cot_image_data/<set>/...`. The conversations call that folder `cot`, and two of its folders go by
several names.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import VisualCotSource
from data_prep.filters import MALFORMED_ROW
from data_prep.sources import text
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import json_items, json_lines
from data_prep.sources.pictures import PublishedBox, crop, image_size, regions
from data_prep.sources.raw_row import RawRow, Rejected, attempt, checked, inside, numbered

CONVERSATIONS = "viscot_363k.json"
FOLDERS = {"metadata": "metadata", "detailed": "cot_with_detailed_reasoning_steps"}
IMAGE_FOLDERS = ("cot_image_data", "cot")
OTHER_NAMES = {"v7w": "visual7w", "visual7w": "v7w", "textcap": "textvqa", "textcaps": "textvqa"}
INSTRUCTION = " Please provide the bounding box coordinate of the region that can help you answer the question better."
REGION = "region"

Turn = TypedDict("Turn", {"from": str, "value": str})


class Item(TypedDict):
    """One entry of `viscot_363k.json`."""

    dataset: str
    split: str
    image: list[str]
    conversations: list[Turn]


class Operation(TypedDict):
    """One step of GQA's program for a question; `select` names an object, with its id in brackets."""

    operation: str
    argument: str


class Line(TypedDict):
    """One line of the metadata; `thought` and `reasoning` are there in the detailed files only."""

    dataset: str
    split: str
    question: str
    answer: str
    image: str
    bboxs: list[PublishedBox]
    thought: NotRequired[str | None]
    reasoning: NotRequired[list[Operation] | None]


ITEM, LINE = TypeAdapter(Item), TypeAdapter(Line)
_CROP = re.compile(r"^(?P<path>.*)###\[(?P<box>[^\]]*)\]$")
_ID = re.compile(r"\s*\([\d,\s-]*\)\s*$")


def files(archive: Archive, annotations: str) -> list[str]:
    """The annotation files of one of the three forms that an archive holds."""
    if annotations == "conversations":
        found = archive.only(CONVERSATIONS)
        return [found] if found else []
    pattern = re.compile(rf"(^|/){FOLDERS[annotations]}/\w+_cot_(train|val|test)\.jsonl$")
    return [name for name in archive.names() if pattern.search(name)]


def rows(source: VisualCotSource, archive: Archive) -> Iterator[RawRow]:
    """Every entry, file after file. Raises DataError if there is no such file."""
    names = files(archive, source.annotations)
    if not names:
        raise DataError(f"{source.uri} holds no Visual-CoT annotations of the form {source.annotations!r}")
    folders = _ImageFolders(archive)
    stems = numbered([posixpath.splitext(posixpath.basename(name))[0] for name in names])
    for name, stem in zip(names, stems, strict=True):
        values = (json_lines if source.annotations != "conversations" else json_items)(archive, name)
        for number, value in values:
            split: Split = "train" if "_train" in stem or stem.startswith("viscot") else "test"
            yield attempt(f"{source.name}/{stem}/{number:07d}", split, _row, source.annotations, value, folders)


def _row(sample_id: str, split: Split, annotations: str, value: object, folders: _ImageFolders) -> RawRow:
    fields: Item | Line
    if annotations == "conversations":
        fields = checked(ITEM, value)
        path = fields["image"][0].partition("###")[0] if fields["image"] else ""
        image = path.removeprefix("cot/")
    else:
        fields = checked(LINE, value)
        image = f"{fields['dataset']}/{fields['image']}"
    return RawRow(sample_id, "train" if fields["split"] == "train" else "test", (folders.member(image),), fields)


class _ImageFolders:
    """Where the images of each set are, whatever the annotations call the folder."""

    def __init__(self, archive: Archive) -> None:
        found = [folder for name in IMAGE_FOLDERS if (folder := archive.find_folder(name)) is not None]
        self._root = found[0] if found else IMAGE_FOLDERS[0]
        self._folders = archive.folders

    def member(self, path: str) -> str:
        """The member of an image `<set>/...`. Raises Rejected if that is outside of the archive."""
        folder, _, rest = path.partition("/")
        if f"{self._root}/{folder}" not in self._folders:
            folder = OTHER_NAMES.get(folder, folder)
        return inside(self._root, f"{folder}/{rest}")


def convert(source: VisualCotSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One question; boxes become regions, clipped to the image. Raises Rejected where one has no area on it."""
    if source.annotations == "conversations":
        return _converse(source, row, images[0])
    fields: Line = row.fields
    boxes = list(zip(_labels(fields), fields["bboxs"], strict=True))
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=fields["dataset"],
        images=tuple(images),
        question=IMAGE_PLACEHOLDER + fields["question"],
        steps=tuple(text.numbered(fields.get("thought") or "")),
        answer=fields["answer"],
        regions=regions(boxes, image_size(images[0])),
    )


def _labels(fields: Line) -> list[str]:
    """What the program of the question selects, where that is as much as there are boxes."""
    selected = [step for step in fields.get("reasoning") or [] if step["operation"] == "select"]
    if len(selected) == len(fields["bboxs"]):
        return [_ID.sub("", step["argument"]) for step in selected]
    return [REGION] * len(fields["bboxs"])


def _converse(source: VisualCotSource, row: RawRow, image: bytes) -> Conversation:
    """The published box text and the crop are the only step. Where several boxes were meant, the box is their union."""
    fields: Item = row.fields
    speakers = [turn["from"] for turn in fields["conversations"]]
    found = _CROP.match(fields["image"][1]) if len(fields["image"]) == 2 else None
    if speakers != ["human", "gpt", "human", "gpt"] or found is None:
        raise Rejected(MALFORMED_ROW, f"{len(fields['image'])} images and the turns {speakers}, not a box and a crop")
    try:
        box = [float(value) for value in found["box"].split(",")]
        x1, y1, x2, y2 = box
    except ValueError as error:
        raise Rejected(MALFORMED_ROW, f"the box of the crop is [{found['box'][:60]}], not four numbers") from error
    question, seen, _, answer = (turn["value"] for turn in fields["conversations"])
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=fields["dataset"],
        images=(image, crop(image, (x1, y1, x2, y2))),
        question=question.removesuffix(INSTRUCTION),
        steps=(seen + IMAGE_PLACEHOLDER,),
        answer=answer,
        regions=regions([(REGION, box)], image_size(image)),
    )
