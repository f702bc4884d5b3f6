from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.errors import StorageError
from amvl_core.contracts.sample import Region, StoredSample
from amvl_core.data.reader import stored_sample
from data_prep.shards import SCHEMA, ShardRow, ShardWriter, check, copy_without, sha256


def rows(count: int) -> list[ShardRow]:
    return [
        ShardRow(
            StoredSample(
                sample_id=f"s/{i}",
                source="s",
                task="t",
                question="<image>é?",
                steps=("One.", "Two."),
                step_images=(0, None),
                answer=str(i),
                images=(bytes([i % 256]) * 50,),
                regions=(Region("a", (1.0, 2.0, 3.5, 4.0)),),
                extra={"part": "é"} if i % 2 else {},
            ),
            image_sizes=[(16, 8 + i)],
            num_tokens=20 + i,
        )
        for i in range(count)
    ]


def write(path: Path, what: list[ShardRow]) -> bytes:
    writer = ShardWriter(path)
    for row in what:
        writer.write(row)
    writer.close()
    return path.read_bytes()


def test_a_shard_reads_back_with_the_schema_and_row_groups(tmp_path: Path) -> None:
    data = write(tmp_path / "shard", rows(70))
    assert sha256(tmp_path / "shard") == hashlib.sha256(data).hexdigest()
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.schema_arrow == SCHEMA
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [32, 32, 6]
    last = file.read().to_pylist()[-1]
    assert last["image_sizes"] == [{"width": 16, "height": 77}]
    assert last["num_tokens"] == 89
    assert stored_sample(last) == rows(70)[-1].sample


def test_a_shard_that_was_changed_since_is_refused_with_what_to_do(tmp_path: Path) -> None:
    shard = tmp_path / "train-00000.parquet"
    data = write(shard, rows(40))
    check(str(shard), 40)
    for broken, said in ((data[:-3], "is no whole Parquet file"), (b"abc", "is no whole Parquet file")):
        shard.write_bytes(broken)
        with pytest.raises(StorageError, match=said + r".*remove it, .*/train-00000\.json"):
            check(str(shard), 40)
    write(shard, rows(3))
    with pytest.raises(StorageError, match="has 3 rows, and should have 40"):
        check(str(shard), 40)
    shard.unlink()
    with pytest.raises(StorageError, match=r"cannot read .*train-00000\.parquet: it does not exist"):
        check(str(shard), 40)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a", rows(40))
    assert write(tmp_path / "b", rows(40)) == first
    assert write(tmp_path / "c", rows(41)[1:]) != first


@pytest.mark.parametrize("left_out", [{0}, {5, 31, 32, 33, 69}, set(range(40)), set(range(69))])
def test_a_copy_without_rows_is_the_shard_written_without_them(tmp_path: Path, left_out: set[int]) -> None:
    write(tmp_path / "all", rows(70))
    expected = write(tmp_path / "expected", [row for i, row in enumerate(rows(70)) if i not in left_out])
    count, digest = copy_without(str(tmp_path / "all"), str(tmp_path / "copy"), left_out)
    assert (tmp_path / "copy").read_bytes() == expected
    assert (count, digest) == (70 - len(left_out), hashlib.sha256(expected).hexdigest())


def test_nothing_is_written_where_no_row_is_left(tmp_path: Path) -> None:
    write(tmp_path / "all", rows(3))
    assert copy_without(str(tmp_path / "all"), str(tmp_path / "copy"), range(3))[0] == 0
    assert not (tmp_path / "copy").exists()
