"""Deterministic Parquet shards: the same rows give the same bytes, whoever writes them and how many write at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core.contracts import storage
from amvl_core.contracts.errors import StorageError
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.sample import Split, StoredSample

SCHEMA_VERSION = 3

ROW_GROUP_ROWS = 32
"""What a reader must read to get at one sample: small enough for random access over a network."""

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("question", pa.string()),
        ("steps", pa.list_(pa.struct([("text", pa.string()), ("image", pa.int32())]))),
        ("answer", pa.string()),
        ("images", pa.list_(pa.binary())),
        ("image_sizes", pa.list_(pa.struct([("width", pa.int32()), ("height", pa.int32())]))),
        (
            "regions",
            pa.list_(pa.struct([("label", pa.string()), ("box", pa.list_(pa.float64())), ("image", pa.int32())])),
        ),
        ("videos", pa.list_(pa.struct([("frames", pa.int32()), ("fps", pa.float64())]))),
        ("num_tokens", pa.int32()),
        ("extra", pa.string()),
    ]
)
"""`num_tokens` counts question, steps, answer and images; what a method adds is added at load. `extra` is JSON."""


@dataclass(frozen=True)
class ShardRow:
    """One sample as it is stored; `image_sizes` are (width, height) in pixels."""

    sample: StoredSample
    image_sizes: Sequence[tuple[int, int]]
    num_tokens: int


def shard_name(split: Split, number: int) -> str:
    """`train-00000.parquet`."""
    return f"{split}-{number:05d}.parquet"


class ShardWriter:
    """Writes a Parquet file row by row, in row groups of `ROW_GROUP_ROWS`: no more rows than that are in memory."""

    def __init__(self, file: Path) -> None:
        self.rows = 0
        self._waiting: list[ShardRow] = []
        self._file = parquet_writer(file, SCHEMA)

    def write(self, row: ShardRow) -> None:
        """Adds a row behind the others."""
        self.rows += 1
        self._waiting.append(row)
        if len(self._waiting) == ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Writes what is waiting and the file's footer."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(shard_table(self._waiting), row_group_size=ROW_GROUP_ROWS)
        self._waiting = []


def parquet_writer(file: Path, schema: pa.Schema) -> Any:
    """Every choice that shapes the bytes is spelled out, so that a library's new default cannot change a dataset."""
    return pq.ParquetWriter(
        file,
        schema,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
    )


def check(uri: str, rows: int) -> None:
    """Raises StorageError where the shard at `uri` is missing, or is not one of `rows` rows; reads its footer only."""
    found: int | None = None
    with storage.opened(uri) as file, suppress(pa.ArrowInvalid):
        found = pq.read_metadata(file).num_rows
    if found != rows:
        what = "is no whole Parquet file" if found is None else f"has {found:,} rows"
        record = uri.removesuffix(".parquet") + ".json"
        raise StorageError(
            f"{uri} {what}, and should have {rows:,} rows: it was changed after it was written; remove it, {record} "
            "and the record.json beside it, and run again"
        )


def copy_without(source: str, target: str, left_out: Collection[int]) -> tuple[int, str]:
    """The shard at `source` without the rows numbered `left_out`, at `target`: how many are left, and its SHA-256.

    No image is decoded. Nothing is written where no row is left.
    """
    with storage.opened(source) as file:
        shard = ParquetStream(file)
        kept = sorted(set(range(shard.metadata.num_rows)).difference(left_out))
        if not kept:
            return 0, ""
        with storage.writing(target) as temporary:
            with parquet_writer(temporary, SCHEMA) as writer:
                for table in _regrouped(shard, kept):
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            return len(kept), sha256(temporary)


def _regrouped(shard: Any, kept: Sequence[int]) -> Iterator[pa.Table]:
    """The rows `kept` in full row groups, so that the file is the one that would have been written without the rest."""
    waiting = SCHEMA.empty_table()
    start = 0
    wanted = set(kept)
    for group in range(shard.num_row_groups):
        table = shard.read_row_group(group)
        rows = [row for row in range(table.num_rows) if start + row in wanted]
        start += table.num_rows
        waiting = pa.concat_tables([waiting, table.take(pa.array(rows, pa.int64()))]).combine_chunks()
        while waiting.num_rows >= ROW_GROUP_ROWS:
            yield waiting.slice(0, ROW_GROUP_ROWS)
            waiting = waiting.slice(ROW_GROUP_ROWS)
    if waiting.num_rows:
        yield waiting


def sha256(file: Path) -> str:
    """Hex digest of a local file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shard_table(rows: Sequence[ShardRow]) -> pa.Table:
    """Rows as they are stored."""
    return pa.Table.from_pylist([_columns(row) for row in rows], schema=SCHEMA)


def _columns(row: ShardRow) -> dict[str, Any]:
    sample = row.sample
    return {
        "sample_id": sample.sample_id,
        "source": sample.source,
        "task": sample.task,
        "question": sample.question,
        "steps": [{"text": text, "image": image} for text, image in zip(sample.steps, sample.step_images, strict=True)],
        "answer": sample.answer,
        "images": list(sample.images),
        "image_sizes": [{"width": width, "height": height} for width, height in row.image_sizes],
        "regions": [{"label": part.label, "box": list(part.box), "image": part.image} for part in sample.regions],
        "videos": [video._asdict() for video in sample.videos],
        "num_tokens": row.num_tokens,
        "extra": json.dumps(dict(sample.extra), ensure_ascii=False, sort_keys=True, separators=(",", ":")),
    }
