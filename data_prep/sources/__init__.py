"""Published formats: one converter per kind, raw row -> Conversation, and `detect`, which tells them apart."""

from __future__ import annotations

import hashlib
import heapq
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Split
from amvl_core.contracts.sources import (
    ArchiveSource,
    ChatJsonlSource,
    CogcomSource,
    EasyVqaSource,
    LlavaJsonSource,
    MonetSource,
    NlvrSource,
    OneThinkerSource,
    RefocusSource,
    Source,
    VisualCotSource,
    VspMazeSource,
    ZebraCotSource,
)
from data_prep.filters import Drop
from data_prep.sources import (
    cogcom,
    easy_vqa,
    monet,
    nlvr,
    onethinker,
    own_chats,
    refocus,
    visual_cot,
    vsp_maze,
    zebra_cot,
)
from data_prep.sources.archive import open_archive
from data_prep.sources.archive_members import Archive, several
from data_prep.sources.jsonfiles import json_items, json_lines
from data_prep.sources.raw_row import RawRow, Rejected, once, tables
from data_prep.sources.table import Table


@dataclass(frozen=True)
class Converter:
    """`rows` lists an archive without reading images; `convert` makes a row and its images a Conversation.

    `rows` lists what is wrong with a row as its drop, `convert` raises it as Rejected. `named` says that ids are taken
    from the data, so that two rows may have the same.
    """

    rows: Callable[[Any, Archive], Iterator[RawRow]]
    convert: Callable[[Any, RawRow, Sequence[bytes]], Conversation]
    named: bool = False


# Generated samples (kind `microworld`) need no archive and no conversion: `data_prep/microworld/`.
CONVERTERS: dict[str, Converter] = {
    "easy_vqa": Converter(easy_vqa.rows, easy_vqa.convert),
    "nlvr": Converter(nlvr.rows, nlvr.convert, named=True),
    "vsp_maze": Converter(vsp_maze.rows, vsp_maze.convert, named=True),
    "visual_cot": Converter(visual_cot.rows, visual_cot.convert),
    "refocus": Converter(refocus.rows, refocus.convert),
    "cogcom": Converter(cogcom.rows, cogcom.convert),
    "zebra_cot": Converter(zebra_cot.rows, zebra_cot.convert),
    "monet": Converter(monet.rows, monet.convert),
    "onethinker": Converter(onethinker.rows, onethinker.convert),
    "chat_jsonl": Converter(own_chats.rows, own_chats.convert),
    "llava_json": Converter(own_chats.rows, own_chats.convert),
}

LOOKED_INTO = 32
"""JSON files of any name that `detect` opens: a folder may hold one for each of a million images."""

UNDERSTOOD = """  easy-VQA      train/questions.json and test/questions.json
  NLVR          dev/dev.json and test/test.json
  VSP maze      maze/task1/maps/... or maze/task4/maps/...
  Visual-CoT    viscot_363k.json, metadata/ or cot_with_detailed_reasoning_steps/, and cot_image_data/
  ReFocus       its Parquet files, or its raw .jsonl files and images
  CogCoM        com.jsonl, com_math.jsonl or com_test.jsonl, and images
  Zebra-CoT     its Parquet files
  Monet-SFT     its .json lists and images
  OneThinker    onethinker_sft_image.json and images
  one's own     train.jsonl, train.json or train.parquet, optionally test.jsonl ..., and images"""


def source_name(source: Source) -> str:
    """What reports and score tables call a source."""
    return source.name if isinstance(source, ArchiveSource) else source.kind


def convert(source: ArchiveSource, kind: str, row: RawRow, images: Sequence[bytes]) -> Conversation | Drop:
    """One row with its images, in their order; or why it cannot become a sample."""
    try:
        return CONVERTERS[kind].convert(source, row, images)
    except Rejected as rejected:
        return rejected.drop


def list_rows(source: ArchiveSource, kind: str, archive: Archive, seed: int) -> Iterator[RawRow]:
    """The rows of an archive in published order, reduced to `train_limit` and `test_limit` by `seed`.

    They are read as they are asked for, without images: a million rows need no more memory than one. Where there is
    a limit the archive is gone through twice, and the ids of the rows that are drawn are held.
    """
    limits: dict[Split, int | None] = {"train": source.train_limit, "test": source.test_limit}
    chosen = {
        split: _chosen(_rows(source, kind, archive), split, limit, seed)
        for split, limit in limits.items()
        if limit is not None
    }
    for row in _rows(source, kind, archive):
        if row.split not in chosen or row.sample_id in chosen[row.split]:
            images = tuple(archive.located(image) if isinstance(image, str) else image for image in row.images)
            yield row if images == row.images else replace(row, images=images)


def _rows(source: ArchiveSource, kind: str, archive: Archive) -> Iterator[RawRow]:
    rows = CONVERTERS[kind].rows(source, archive)
    return once(rows) if CONVERTERS[kind].named else rows


def _chosen(rows: Iterator[RawRow], split: Split, limit: int, seed: int) -> set[str]:
    """Ids that do not change where other rows come and go: those whose hash is smallest."""
    ids = (row.sample_id for row in rows if row.split == split)
    return set(heapq.nsmallest(limit, ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()))


def detect(uri: str) -> Source:
    """The source configuration for what lies at `uri`: a folder, .tar.gz, .zip or .parquet of a format it understands.

    Raises DataError if it is missing, damaged, or of no such format.
    """
    with open_archive(uri) as archive:
        source = _by_name(uri, archive) or _by_content(uri, archive)
        there = _what_is_there(archive) if source is None else []
    if source is None:
        raise DataError(
            f"{uri} holds no data that is understood; a folder, .tar.gz, .zip or .parquet must hold one of\n"
            + "\n".join([UNDERSTOOD, *there])
        )
    return source


def _what_is_there(archive: Archive) -> list[str]:
    """What may have been meant: a line for each of the first files."""
    said = [
        f"{name} has the columns {', '.join(table.columns)}" if isinstance(table, Table) else str(table)
        for name, table in tables(archive, bool)
    ]
    names = [name for name in own_chats.likely(archive) if not name.endswith(".parquet")]
    return [*said, *(f"{name} is there: call what trains train.jsonl, what tests test.jsonl" for name in names)][:4]


def _by_name(uri: str, archive: Archive) -> Source | None:
    """Formats that are known by what their files are called."""
    if archive.only("train/questions.json"):
        return EasyVqaSource(uri=uri)
    if archive.only("dev/dev.json"):
        return NlvrSource(uri=uri)
    if any(archive.only(file) for file, _ in cogcom.FILES):
        return CogcomSource(uri=uri)
    if archive.only(onethinker.FILE):
        return OneThinkerSource(uri=uri)
    for form in get_args(VisualCotSource.model_fields["annotations"].annotation):
        if visual_cot.files(archive, form):
            return VisualCotSource(uri=uri, annotations=form)
    if any(re.search(r"(^|/)maze/task[14]/maps/", name) for name in archive.names()):
        return VspMazeSource(uri=uri)
    return None


def _by_content(uri: str, archive: Archive) -> Source | None:
    """Formats whose files are called like many others: some of each kind are looked into."""
    raw = next((name for name in archive.names() if name.endswith(".jsonl")), None)
    columns = [table.columns for _, table in tables(archive, bool) if isinstance(table, Table)]
    if any(map(refocus.is_table, columns)):
        return RefocusSource(uri=uri)
    if any(map(zebra_cot.is_table, columns)):
        return ZebraCotSource(uri=uri)
    if raw is not None:
        _, line = next(json_lines(archive, raw), (0, None))
        if refocus.is_raw(line):
            return RefocusSource(uri=uri)
    own: dict[str, list[str]] = {ending: own_chats.files(archive, "train", ending) for ending in ("jsonl", "parquet")}
    if not any(own.values()) and _is_monet(archive):
        return MonetSource(uri=uri)
    own["json"] = own_chats.files(archive, "train", "json")
    found = [names[0] for names in own.values() if names]
    if len(found) > 1:
        raise several(uri, found)
    if own["json"]:
        return LlavaJsonSource(uri=uri, name=_name(uri))
    return ChatJsonlSource(uri=uri, name=_name(uri)) if found else None


def _is_monet(archive: Archive) -> bool:
    """Whether one of the JSON lists begins with an item of Monet: every `train.json` is looked into, and a few more."""
    names = [name for name in archive.names() if name.endswith(".json")]
    likely = [name for name in names if posixpath.basename(name) == "train.json"]
    others = [name for name in names if posixpath.basename(name) != "train.json"]
    for name in likely + others[:LOOKED_INTO]:
        try:
            _, item = next(json_items(archive, name), (0, None))
        except DataError:  # no list
            continue
        if monet.is_item(item):
            return True
    return False


def _name(uri: str) -> str:
    """A short name from the last part of `uri`: `s3://bucket/My Set.tar.gz` is `my_set`."""
    stem = uri.rstrip("/").rsplit("/", 1)[-1].lower()
    stem = re.sub(r"\.(tar(\.\w+)?|tgz|zip|parquet)$", "", stem)
    return re.sub(r"[^a-z0-9]+", "_", stem).strip("_") or "chat"
