"""Deterministic Parquet shards: the same rows give the same bytes, whoever writes them and how many write at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core import storage
from amvl_core.records import Shard
from amvl_core.sample import Region, Segment, Split

SCHEMA_VERSION = 1

ROW_GROUP_ROWS = 32
"""What a reader must read to get at one sample: small enough for random access over a network."""

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("segments", pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string()), ("num_slots", pa.int32())]))),
        ("images", pa.list_(pa.binary())),
        ("image_sizes", pa.list_(pa.struct([("width", pa.int32()), ("height", pa.int32())]))),
        ("num_tokens", pa.int32()),
        ("extra", pa.string()),
    ]
)


@dataclass(frozen=True)
class ShardRow:
    """One sample as it is stored; `image_sizes` are (width, height) in pixels."""

    sample_id: str
    source: str
    segments: Sequence[Segment]
    images: Sequence[bytes]
    image_sizes: Sequence[tuple[int, int]]
    num_tokens: int
    extra: str


def shard_name(split: Split, number: int) -> str:
    """`train-00000.parquet`."""
    return f"{split}-{number:05d}.parquet"


def extra_json(task: str, answer: str, steps: Sequence[str], regions: Sequence[Region]) -> str:
    """The `extra` column: canonical JSON of what scoring and analysis need beside the segments."""
    fields = {
        "task": task,
        "answer": answer,
        "steps": list(steps),
        "regions": [asdict(region) for region in regions],
    }
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def encode_shard(rows: Sequence[ShardRow]) -> bytes:
    """The Parquet file of `rows`, in their order, in row groups of `ROW_GROUP_ROWS`."""
    sink = pa.BufferOutputStream()
    # Every choice that shapes the bytes is spelled out, so that a library's new default cannot change a dataset.
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
    ) as writer:
        for start in range(0, len(rows), ROW_GROUP_ROWS):
            writer.write_table(_table(rows[start : start + ROW_GROUP_ROWS]), row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def write_shard(uri: str, split: Split, number: int, rows: Sequence[ShardRow]) -> Shard:
    """Writes one shard below the folder `uri`, whole or not at all; a StorageError says what was refused."""
    name = shard_name(split, number)
    data = encode_shard(rows)
    storage.write_bytes(storage.join(uri, name), data)
    return Shard(file=name, split=split, rows=len(rows), sha256=hashlib.sha256(data).hexdigest())


def _table(rows: Sequence[ShardRow]) -> pa.Table:
    columns = {
        "sample_id": [row.sample_id for row in rows],
        "source": [row.source for row in rows],
        "segments": [[asdict(segment) for segment in row.segments] for row in rows],
        "images": [list(row.images) for row in rows],
        "image_sizes": [[{"width": width, "height": height} for width, height in row.image_sizes] for row in rows],
        "num_tokens": [row.num_tokens for row in rows],
        "extra": [row.extra for row in rows],
    }
    return pa.table(columns, schema=SCHEMA)
