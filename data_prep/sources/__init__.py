"""Published formats: one converter per kind, raw row -> Conversation, and `detect`, which tells them apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from amvl_core.config import (
    ArchiveSource,
    ChatJsonlSource,
    EasyVqaSource,
    NlvrSource,
    Source,
    VspMazeSource,
)
from amvl_core.errors import DataError
from amvl_core.sample import Conversation, Split
from data_prep.sources import chat_jsonl, easy_vqa, nlvr, vsp_maze
from data_prep.sources.archive import Archive, open_archive
from data_prep.sources.row import RawRow


@dataclass(frozen=True)
class Converter:
    """`rows` lists an archive without reading images; `convert` makes a row and its images a Conversation."""

    rows: Callable[[Any, Archive], Iterator[RawRow]]
    convert: Callable[[Any, RawRow, Sequence[bytes]], Conversation]


# Generated samples (kind `microworld`) need no archive and no conversion: `data_prep/microworld/`.
CONVERTERS: dict[str, Converter] = {
    "easy_vqa": Converter(easy_vqa.rows, easy_vqa.convert),
    "nlvr": Converter(nlvr.rows, nlvr.convert),
    "vsp_maze": Converter(vsp_maze.rows, vsp_maze.convert),
    "chat_jsonl": Converter(chat_jsonl.rows, chat_jsonl.convert),
}

UNDERSTOOD = """  easy-VQA      train/questions.json and test/questions.json
  NLVR          dev/dev.json and test/test.json
  VSP maze      maze/task1/maps/... or maze/task4/maps/...
  chat JSONL    train.jsonl, optionally test.jsonl, and images (one's own data)"""


def source_name(source: Source) -> str:
    """What reports and score tables call a source."""
    return source.name if isinstance(source, ChatJsonlSource) else source.kind


def list_rows(source: ArchiveSource, kind: str, archive: Archive, seed: int) -> list[RawRow]:
    """The rows of an archive in published order, reduced to `train_limit` and `test_limit` by `seed`."""
    rows = list(CONVERTERS[kind].rows(source, archive))
    limited = _limit(rows, "train", source.train_limit, seed)
    return _limit(limited, "test", source.test_limit, seed)


def _limit(rows: list[RawRow], split: Split, limit: int | None, seed: int) -> list[RawRow]:
    """A subset that does not change where other rows come and go: those whose hashed id is smallest."""
    ids = [row.sample_id for row in rows if row.split == split]
    if limit is None or limit >= len(ids):
        return rows
    chosen = set(sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:limit])
    return [row for row in rows if row.split != split or row.sample_id in chosen]


def detect(uri: str) -> Source:
    """The source configuration for what lies at `uri`: a folder, .tar.gz or .zip of a format that is understood.

    Raises DataError if it is missing, damaged, or of no such format.
    """
    with open_archive(uri) as archive:
        if archive.find("train/questions.json"):
            return EasyVqaSource(uri=uri)
        if archive.find("dev/dev.json"):
            return NlvrSource(uri=uri)
        if archive.find("train.jsonl"):
            return ChatJsonlSource(uri=uri, name=_name(uri))
        if any(re.search(r"(^|/)maze/task[14]/maps/", name) for name in archive.names()):
            return VspMazeSource(uri=uri)
    raise DataError(f"{uri} holds no data that is understood; a folder, .tar.gz or .zip must hold one of\n{UNDERSTOOD}")


def _name(uri: str) -> str:
    """A short name from the last part of `uri`: `s3://bucket/My Set.tar.gz` is `my_set`."""
    stem = uri.rstrip("/").rsplit("/", 1)[-1].lower()
    stem = re.sub(r"\.(tar(\.\w+)?|tgz|zip)$", "", stem)
    return re.sub(r"[^a-z0-9]+", "_", stem).strip("_") or "chat"
