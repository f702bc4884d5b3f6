from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pyarrow.parquet as pq

from amvl_core.sample import Region, Segment
from data_prep.shards import SCHEMA, ShardRow, encode_shard, extra_json, write_shard


def rows(count: int) -> list[ShardRow]:
    return [
        ShardRow(
            sample_id=f"s/{i}",
            source="s",
            segments=[Segment("prompt", "<image>é?"), Segment("latent", num_slots=4), Segment("answer", str(i))],
            images=[bytes([i % 256]) * 50],
            image_sizes=[(16, 8 + i)],
            num_tokens=20 + i,
            extra=extra_json("t", str(i), ["One."], [Region("a", (1.0, 2.0, 3.5, 4.0))]),
        )
        for i in range(count)
    ]


def test_a_shard_reads_back_with_the_schema_and_row_groups(tmp_path: Path) -> None:
    shard = write_shard(str(tmp_path), "train", 7, rows(70))
    data = (tmp_path / shard.file).read_bytes()
    assert (shard.file, shard.rows, shard.split) == ("train-00007.parquet", 70, "train")
    assert shard.sha256 == hashlib.sha256(data).hexdigest()
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.schema_arrow == SCHEMA
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [32, 32, 6]
    last = file.read().to_pylist()[-1]
    assert last["segments"][0] == {"kind": "prompt", "text": "<image>é?", "num_slots": 0}
    assert last["segments"][1] == {"kind": "latent", "text": "", "num_slots": 4}
    assert last["images"] == [bytes([69]) * 50]
    assert last["image_sizes"] == [{"width": 16, "height": 77}]
    assert last["num_tokens"] == 89
    assert json.loads(last["extra"]) == {
        "task": "t",
        "answer": "69",
        "steps": ["One."],
        "regions": [{"label": "a", "box": [1.0, 2.0, 3.5, 4.0], "image": 0}],
    }


def test_the_same_rows_give_the_same_bytes() -> None:
    assert encode_shard(rows(40)) == encode_shard(rows(40))
    assert encode_shard(rows(40)) != encode_shard(rows(41)[1:])
