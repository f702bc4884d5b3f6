"""One's own data: rows of questions with answers as JSON lines, a JSON list or Parquet (docs/data.md)."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Region, Split
from amvl_core.contracts.sources import ChatJsonlSource, LlavaJsonSource
from data_prep.filters import MALFORMED_ROW, Drop
from data_prep.sources import own_fields
from data_prep.sources.archive_members import COMPRESSED, Archive, several
from data_prep.sources.jsonfiles import json_values
from data_prep.sources.own_places import Places
from data_prep.sources.pairs import in_order, pairs
from data_prep.sources.pictures import clipped, image_size
from data_prep.sources.raw_row import Cell, RawRow, Rejected, tables
from data_prep.sources.table import Stored, Table

OwnSource = ChatJsonlSource | LlavaJsonSource

SPLITS: tuple[Split, Split] = ("train", "test")
ENDINGS = {"chat_jsonl": ("jsonl", "parquet", "json"), "llava_json": ("json", "jsonl", "parquet")}
"""The files that each kind looks for, in this order; what they hold may be the same."""

_COMPRESSED = rf"({'|'.join(re.escape(ending) for ending in COMPRESSED.values())})?"
_NUMBERED = re.compile(r"(line|item|row)-\d{7}")
"""Begins the id of a row that has none."""

REPEATED = "the id is that of an earlier row; its place in the file was added to it"

_LIKELY = re.compile(rf"(.*/)?(train|trn|test|val|valid|dev|eval)[^/]*\.(jsonl?|parquet){_COMPRESSED}", re.IGNORECASE)


def is_table(columns: Sequence[str]) -> bool:
    """Whether a Parquet file with these columns holds rows of one's own."""
    return any(name in columns for name in own_fields.TURNS)


def files(archive: Archive, split: Split, ending: str) -> list[str]:
    """The files of a split: one, or Parquet files of one folder. Raises DataError where several may be meant."""
    if ending != "parquet":
        name = archive.only(f"{split}.{ending}")
        return [name] if name else []
    own = tables(archive, is_table)
    # Damaged ones are of a data set that is seen by others.
    sound = any(isinstance(table, Table) for _, table in own)
    found = [name for name, _ in own if sound and _split(archive, name) == split]
    folders: dict[str, str] = {posixpath.dirname(name): name for name in reversed(found)}
    if len(folders) > 1:
        raise several(archive.uri, sorted(folders.values()))
    return found


def _split(archive: Archive, name: str) -> Split | None:
    """`train-00000-of-00002.parquet` and `train/0000.parquet` say their split.

    A file that is the source trains whatever it is called, one that is alone in its folder unless it is called test.
    """
    folder, file = posixpath.split(name)
    alone = archive.names() == [name]
    if alone and posixpath.basename(archive.uri) == name:
        return "train"
    for split in SPLITS:
        if re.match(rf"{split}\b|{split}_", file) or posixpath.basename(folder) == split:
            return split
    return "train" if alone else None


def likely(archive: Archive) -> list[str]:
    """Files that may have been meant for `train` or `test`."""
    return [name for name in archive.names() if _LIKELY.fullmatch(name)]


def rows(source: OwnSource, archive: Archive) -> Iterator[RawRow]:
    """Every row of the training file and, if there is one, of the test file. Raises DataError without the first."""
    of = {split: [files(archive, split, ending) for ending in ENDINGS[source.kind]] for split in SPLITS}
    found = {split: next(filter(None, named), []) for split, named in of.items()}
    if not found["train"]:
        raise _no_rows(source, archive)
    read = {name for names in found.values() for name in names}
    others = [name for named in of.values() for names in named for name in names if name not in read]
    notes = tuple(f"{name} is not read: {source.kind} looks for another file first" for name in others[:3])
    if not found["test"]:
        others = [name for name in likely(archive) if name not in (*read, *others)]
        notes += tuple(f"{name} is not read; the file of the test rows is called test" for name in others[:3])
    places, seen = Places(archive), set[bytes]()
    for split in SPLITS:
        own = f"{source.name}/{split}/"
        for number, file, value in _values(archive, found[split]):
            made = _unique(_rows(own, number, source.name, split, places, file, value), own, number, seen)
            if notes:
                made[0] = replace(made[0], notes=made[0].notes + notes)
                notes = ()
            yield from made


def _no_rows(source: OwnSource, archive: Archive) -> DataError:
    ending = ENDINGS[source.kind][0]
    there = ", ".join(likely(archive)[:3])
    hint = f"; {there} is there: call what trains train.{ending}, what tests test.{ending}" if there else ""
    return DataError(f"{source.uri} has no train.{ending}; write a row for each question into it{hint}")


def _values(archive: Archive, found: list[str]) -> Iterator[tuple[str, str, Any]]:
    """(`line-0000001`, `item-...` or `row-...`, the file, value or Drop)."""
    number = 0
    for file in found:
        if not file.endswith(".parquet"):
            yield from ((f"{kind}-{place:07d}", file, value) for kind, place, value in json_values(archive, file))
            continue
        for value in _table_values(archive, file):
            number += 1
            yield f"row-{number:07d}", file, value


def _table_values(archive: Archive, file: str) -> Iterator[Any]:
    table = archive.table(file)
    images = [name for name in own_fields.IMAGES if name in table.columns]
    wanted = [name for name in (*own_fields.READ, *own_fields.NEEDED) if name in table.columns and name not in images]
    unread = {name: True for name in table.columns if name not in wanted and name not in images}
    for row in table.own_rows(wanted, images):
        if row.values is None:
            yield Drop(MALFORMED_ROW, row.unread(file))
            continue
        place = (file, row.group, row.row)
        yield {**row.values, **{name: _cells(row.values[name], *place, name) for name in images}, **unread}


def _cells(value: Any, member: str, group: int, row: int, column: str) -> Any:
    if isinstance(value, list):
        return [_cells(item, member, group, row, column) for item in value]
    return Cell(member, group, row, column, value.index) if isinstance(value, Stored) else value


def _rows(own: str, number: str, task: str, split: Split, places: Places, file: str, value: object) -> list[RawRow]:
    """A row for each question with its answer; the ids of several are numbered. Their ids begin with `own`."""
    sample_id = own + number
    notes: tuple[str, ...] = ()
    try:
        chat = own_fields.read(value)
        notes = tuple(f"the field {field!r} is not read" for field in chat.unread)
        images, videos = (
            [places.member(file, named, where) if isinstance(named, str) else named for where, named in found]
            for found in (chat.images, chat.videos)
        )
        shown = in_order(chat.turns, chat.steps or [], images, videos, chat.turns_field)
        found = pairs(chat.turns, shown, chat.turns_field)
        if len(found) > 1 and (chat.steps or chat.regions):
            raise Rejected(
                MALFORMED_ROW, f"steps and regions are those of one answer, {chat.turns_field} has {len(found)}"
            )
        for where, area in enumerate(chat.regions or []):
            if (image := area.get("image", 0)) >= len(found[0].images):
                detail = f"regions.{where}.image: there is no image {image}, there are {len(found[0].images)} from 0"
                raise Rejected(MALFORMED_ROW, detail)
    except Rejected as rejected:
        return [RawRow(sample_id, split, (), None, rejected.drop, notes)]
    if chat.name is not None:
        sample_id = own + (f"id-{chat.name}" if _NUMBERED.match(chat.name) else chat.name)
    rest = {"task": task if chat.task is None else chat.task, "steps": chat.steps or [], "regions": chat.regions or []}
    return [
        RawRow(
            sample_id if len(found) == 1 else f"{sample_id}-{question}",
            split,
            pair.images,
            {"question": pair.question, "answer": pair.answer, **rest},
            notes=() if question else notes,
        )
        for question, pair in enumerate(found)
    ]


def _unique(made: list[RawRow], own: str, number: str, seen: set[bytes]) -> list[RawRow]:
    """The rows of one line, item or row; where another row has the id of one of them, the number follows their ids.

    Ids key predictions and reports. A few bytes of each are enough to tell: `seen`.
    """
    if made[0].sample_id.startswith(own + number):
        return made
    ids = [row.sample_id for row in made]
    while any(_digest(name) in seen for name in ids):
        ids = [f"{name}-{number}" for name in ids]
    seen.update(map(_digest, ids))
    if ids[0] == made[0].sample_id:
        return made
    renamed = [replace(row, sample_id=name) for row, name in zip(made, ids, strict=True)]
    return [replace(renamed[0], notes=(*renamed[0].notes, REPEATED)), *renamed[1:]]


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def convert(source: OwnSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
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
