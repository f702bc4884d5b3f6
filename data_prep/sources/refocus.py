"""ReFocus (huggingface.co/datasets/ReFocus/ReFocus_Data): charts and tables, edited on the way to the answer.

`data/<split>-....parquet` holds images beside the text. The raw files, read where there is no Parquet file, hold paths
instead, and boxes in several shapes; the older of the two raw forms is a conversation whose turns show images.
Where the boxes of a row lie between 0 and 1, as those of tables do, they are shares of width and height.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import RefocusSource
from data_prep.filters import MALFORMED_ROW, MISSING_IMAGE
from data_prep.sources import text
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import json_lines
from data_prep.sources.pictures import Box, PublishedBox, image_size, regions
from data_prep.sources.raw_row import Cell, ImageRef, RawRow, Rejected, attempt, checked, near, tables
from data_prep.sources.table import TableRow

FOCUS = "focus"


class Fields(TypedDict):
    """The new form, in Parquet and raw; a raw image is a path, empty where there is none."""

    id: str
    question: str
    answer: str
    thoughts: list[str]
    source: NotRequired[str | None]
    split: NotRequired[str | None]
    image: NotRequired[str | None]
    edited_image: NotRequired[str | None]
    focus_areas_bbox: NotRequired[Any]
    x_values: NotRequired[list[str] | None]
    y_values: NotRequired[list[str] | None]
    x_values_bbox: NotRequired[Any]
    y_values_bbox: NotRequired[Any]


class Answered(TypedDict):
    """A turn of the older form: what was said to `images`, the last of which is new."""

    response: str
    images: list[str]


class OldFields(TypedDict):
    """The older raw form; `id` begins with the split."""

    id: str
    query: str
    answer: str | list[str]
    conversations: list[Answered]
    source: NotRequired[str | None]
    focus_areas: NotRequired[Any]
    x_values_bbox: NotRequired[Any]
    y_values_bbox: NotRequired[Any]


FIELDS, OLD_FIELDS, BOX = TypeAdapter(Fields), TypeAdapter(OldFields), TypeAdapter(PublishedBox)
COLUMNS = tuple(name for name in Fields.__annotations__ if name not in ("image", "edited_image"))
IMAGES = ("image", "edited_image")

_SIDES = {"x1", "y1", "x2", "y2"}
_NUMBER = re.compile(r"^\s*THOUGHT \d+:\s*")


def is_table(columns: Sequence[str]) -> bool:
    """Whether a Parquet file with these columns is one of ReFocus."""
    return {"thoughts", "edited_image", "focus_areas_bbox"} <= set(columns)


def is_raw(fields: object) -> bool:
    """Whether a line of a raw file is one of ReFocus, of either form."""
    return isinstance(fields, dict) and (
        {"thoughts", "focus_areas_bbox"} <= fields.keys() or {"query", "focus_areas", "conversations"} <= fields.keys()
    )


def rows(source: RefocusSource, archive: Archive) -> Iterator[RawRow]:
    """Every row of the Parquet files, else of the raw files. Raises DataError if there are neither."""
    found = tables(archive, is_table)
    raw = [name for name in archive.names() if name.endswith(".jsonl")]
    if not found and not raw:
        raise DataError(f"{source.uri} holds neither Parquet files of ReFocus nor its raw .jsonl files")
    for name, table in found:
        where, split = _place(source, name)
        if isinstance(table, DataError):
            raise table
        for number, row in enumerate(table.rows(COLUMNS, IMAGES)):
            yield attempt(f"{where}/{number:07d}", split, _table_row, name, row)
    for name in raw if not found else ():
        where, split = _place(source, name)
        for number, value in json_lines(archive, name):
            yield attempt(f"{where}/{number:07d}", split, _raw_row, posixpath.dirname(name), archive, value)


def _place(source: RefocusSource, name: str) -> tuple[str, Split]:
    """What the ids of a file's rows begin with, and the split of those that do not say."""
    return f"{source.name}/{posixpath.splitext(name)[0]}", _split(posixpath.basename(name))


def _split(name: str) -> Split:
    return "train" if name.startswith("train") else "test"


def _table_row(sample_id: str, split: Split, member: str, row: TableRow) -> RawRow:
    if row.values is None:
        raise Rejected(MALFORMED_ROW, row.unread(member))
    images = {column: Cell(member, row.group, row.row, column) for column in row.images}
    return _row(sample_id, split, checked(FIELDS, row.values), images.get("image"), images.get("edited_image"))


def _raw_row(sample_id: str, split: Split, folder: str, archive: Archive, value: object) -> RawRow:
    if isinstance(value, dict) and value.get("conversations") is not None:
        return _old_row(sample_id, split, folder, archive, checked(OLD_FIELDS, value))
    fields = checked(FIELDS, value)
    paths = (fields.get("image"), fields.get("edited_image"))
    image, edited = (near(archive, folder, path) if path else None for path in paths)
    return _row(sample_id, split, fields, image, edited)


def _row(sample_id: str, split: Split, fields: Fields, image: ImageRef | None, edited: ImageRef | None) -> RawRow:
    if image is None:
        raise Rejected(MISSING_IMAGE, "image is null")
    parts = [text.without_action(thought) for thought in (_bare(thought) for thought in fields["thoughts"])]
    steps = [said for said, _ in parts]
    if edited is not None:
        # The edited image is what the code of the last action drew.
        acted = [number for number, (_, action) in enumerate(parts) if "```" in action]
        steps = steps or [""]
        steps[acted[-1] if acted else 0] += IMAGE_PLACEHOLDER
    plain = {
        "question": fields["question"],
        "answer": fields["answer"],
        "steps": [step for step in steps if step],
        "task": fields.get("source") or "refocus",
        "focus": fields.get("focus_areas_bbox"),
        "axes": [(fields.get(f"{axis}_values"), fields.get(f"{axis}_values_bbox")) for axis in "xy"],
    }
    split = _split(fields.get("split") or split)
    return RawRow(sample_id, split, (image,) if edited is None else (image, edited), plain)


def _old_row(sample_id: str, split: Split, folder: str, archive: Archive, fields: OldFields) -> RawRow:
    images: list[str] = []
    steps: list[str] = []
    for number, turn in enumerate(fields["conversations"]):
        new = [member for path in turn["images"] if (member := near(archive, folder, path)) not in images]
        images += new
        if number > 0 and new:
            steps[-1] += IMAGE_PLACEHOLDER * len(new)
        steps.append(text.without_action(_bare(turn["response"]))[0])
    first = len(fields["conversations"][0]["images"]) if fields["conversations"] else 0
    if first != 1:
        raise Rejected(MISSING_IMAGE, f"the first turn shows {first} images, not the one that the question is about")
    answer = fields["answer"]
    plain = {
        "question": fields["query"],
        "answer": answer if isinstance(answer, str) else ", ".join(answer),
        "steps": [step for step in steps if step],
        "task": fields.get("source") or "refocus",
        "focus": fields.get("focus_areas"),
        "axes": [(None, fields.get(f"{axis}_values_bbox")) for axis in "xy"],
    }
    return RawRow(sample_id, _split(fields["id"]), tuple(images), plain)


def _bare(thought: str) -> str:
    return _NUMBER.sub("", thought)


def convert(source: RefocusSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One question; the areas that were focused on are the regions. Raises Rejected where one has no area."""
    size = image_size(images[0])
    focus = _boxes(row.fields["focus"])
    axes = [pair for values, boxes in row.fields["axes"] for pair in _labelled(values, boxes)]
    everything = [*focus, *(box for _, box in axes)]
    if all(abs(value) <= 1 for box in everything for value in box):
        focus, shares = [_scaled(box, size) for box in focus], axes
        axes = [(label, _scaled(box, size)) for label, box in shares]
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=row.fields["task"],
        images=tuple(images),
        question=IMAGE_PLACEHOLDER + row.fields["question"],
        steps=tuple(row.fields["steps"]),
        answer=row.fields["answer"],
        regions=regions(_named(focus, axes), size),
    )


def _scaled(box: Box, size: tuple[int, int]) -> Box:
    (x1, y1, x2, y2), (width, height) = box, size
    return (x1 * width, y1 * height, x2 * width, y2 * height)


def _named(focus: list[Box], axes: list[tuple[str, Box]]) -> list[tuple[str, Box]]:
    """A focused area is called what the axis value with the same box is called."""
    labels: defaultdict[Box, list[str]] = defaultdict(list)
    for label, box in reversed(axes):
        labels[box].append(label)
    return [(labels[box].pop() if labels[box] else FOCUS, box) for box in focus]


def _labelled(values: list[str] | None, boxes: Any) -> list[tuple[str, Box]]:
    if isinstance(boxes, dict) and not boxes.keys() >= _SIDES:
        return [(label, box) for label, value in boxes.items() for box in _boxes(value)]
    # Labels that no box belongs to are left out.
    return list(zip(values or [], _boxes(boxes), strict=False))


def _boxes(value: Any) -> list[Box]:
    """Boxes of any published shape: x1, y1, x2, y2 as lists or numbers, a list of such, or a list of four numbers."""
    if value is None or value == {}:
        return []
    if isinstance(value, dict):
        if not value.keys() >= _SIDES:
            return [box for inner in value.values() for box in _boxes(inner)]
        sides = [value[side] if isinstance(value[side], list) else [value[side]] for side in ("x1", "y1", "x2", "y2")]
        if len({len(side) for side in sides}) != 1:
            raise Rejected(MALFORMED_ROW, "x1, y1, x2 and y2 of the boxes are not equally many")
        return [_box(numbers) for numbers in zip(*sides, strict=True)]
    if isinstance(value, list):
        if value and not isinstance(value[0], (dict, list)):
            return [_box(value)]
        return [box for item in value for box in _boxes(item)]
    raise Rejected(MALFORMED_ROW, f"{str(value)[:60]!r} is no box")


def _box(numbers: Sequence[Any]) -> Box:
    x1, y1, x2, y2 = checked(BOX, list(numbers))
    return (x1, y1, x2, y2)
