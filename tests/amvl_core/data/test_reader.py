import hashlib
import multiprocessing
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.data import reader as reader_module
from amvl_core.data.disk_cache import DiskCache
from amvl_core.data.order import epoch_order
from amvl_core.data.reader import ShardReader
from tests.shards import row, write

KIB = 1024


def small_rows(count: int, start: int = 0) -> list:
    return [row(number, image_bytes=KIB) for number in range(start, start + count)]


def stored_bytes(folder: str) -> int:
    """Of all row groups, without the footers."""
    total = 0
    for name in storage.list_names(folder):
        with storage.opened(storage.join(folder, name)) as file:
            metadata = pq.ParquetFile(file).metadata
            for group in range(metadata.num_row_groups):
                columns = metadata.row_group(group)
                total += sum(columns.column(i).total_compressed_size for i in range(columns.num_columns))
    return total


def test_rows_columns_and_sizes_run_across_the_shards(tmp_path) -> None:
    reader = ShardReader(write(str(tmp_path), [small_rows(40), small_rows(33, 40)]), "train")
    assert [reader[i].sample_id for i in (0, 39, 40, 72)] == ["train-0", "train-39", "train-40", "train-72"]
    assert reader.column("sample_id").tolist() == [f"train-{i}" for i in range(73)]
    sizes = reader.sizes(6)
    assert sizes.block_rows.tolist() == [32, 8, 32, 1]
    assert sizes.num_tokens.tolist() == [36 + i % 7 for i in range(73)]
    with pytest.raises(IndexError):
        reader[73]


def test_ranks_that_read_a_share_of_the_index_each_find_what_one_finds(tmp_path) -> None:
    shards = [small_rows(50, 50 * number) for number in range(5)]
    record = write(str(tmp_path), shards)
    reader = ShardReader(record, "train")
    alone = reader.sizes(6, 2, heldout=20, seed=3)
    # Written out: the hash of each name.
    hashes = {number: hashlib.sha256(f"3/train-{number}".encode()).hexdigest() for number in range(250)}
    assert alone.heldout.tolist() == sorted(sorted(hashes, key=lambda number: hashes[number])[:20])
    for world_size in (2, 7):
        parts = [ShardReader(record, "train").index(rank, world_size, 20, 3) for rank in range(world_size)]
        found = reader.sizes_of(parts, 6, 2, heldout=20)
        assert all((getattr(found, name) == getattr(alone, name)).all() for name in found.__dataclass_fields__)


def test_few_files_stay_open_and_every_row_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reader_module, "OPEN_FILES", 2)
    monkeypatch.setattr(reader_module, "CACHE_BYTES", KIB)
    record = write(str(tmp_path), [small_rows(40, 40 * number) for number in range(6)])
    plain, told = ShardReader(record, "train"), ShardReader(record, "train")
    told.sizes(0)
    descriptors = len(psutil.Process().open_files())
    for reader in (plain, told):
        for index in np.random.default_rng(0).permutation(240).tolist():
            assert reader[index].sample_id == f"train-{index}"
    assert len(psutil.Process().open_files()) - descriptors <= 2 * 2


def test_a_shard_with_other_rows_than_its_record_says_is_named(tmp_path) -> None:
    record = write(str(tmp_path), [small_rows(40)])
    wrong = record.model_copy(update={"shards": [record.shards[0].model_copy(update={"rows": 41})]})
    for read in (lambda reader: reader[3], lambda reader: reader.sizes(0)):
        with pytest.raises(StorageError, match=r"train-00000.parquet has 40 rows, and 41 by its record"):
            read(ShardReader(wrong, "train"))


def test_rows_without_their_images_are_the_rows(tmp_path) -> None:
    reader = ShardReader(write(str(tmp_path), [small_rows(40), small_rows(33, 40)]), "train")
    assert list(reader.without_images()) == [replace(reader[i], images=()) for i in range(73)]


def test_a_dataset_without_rows_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="no rows to train on"):
        ShardReader(write(str(tmp_path), []), "train").sizes(0)


def test_a_damaged_shard_is_named(tmp_path) -> None:
    record = write(str(tmp_path), [small_rows(64)])
    file = tmp_path / record.shards[0].file
    data = bytearray(file.read_bytes())
    data[100:20_000] = b"\xff" * 19_900
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"train-00000.parquet cannot be read .*prepare the data again"):
        ShardReader(record, "train")[0]


def test_the_processes_of_a_machine_read_each_row_group_once(s3_bucket, tmp_path, monkeypatch) -> None:
    """From an object store, in training order; a row group for each row, as without a cache, would be 32 times it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("amvl_core.data.reader.CACHE_BYTES", 64 * KIB)  # one row group
    root = f"{s3_bucket}/reader"
    record = write(root, [small_rows(320), small_rows(320, 320)])
    readers = [ShardReader(record, "train") for _ in range(4)]
    order = epoch_order(0, 0, readers[0].sizes(0))[:]
    names = [readers[place % 4][int(index)].sample_id for place, index in enumerate(order)]
    assert sorted(names) == sorted(f"train-{i}" for i in range(640))
    assert sum(reader.bytes_read for reader in readers) == stored_bytes(root)


def read_in_turn(folder: str, name: str) -> None:
    def read() -> pa.Table:
        with open(f"{folder}/reads", "a") as file:
            file.write("read\n")
        time.sleep(0.3)  # long enough for the others to come
        return pa.table({"a": [name] * 1000})

    assert DiskCache(Path(folder) / "cache", 10**9).get(name, read).column("a")[999].as_py() == name


def test_many_processes_read_a_table_once(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    names = [f"{number % 3:064x}" for number in range(9)]
    processes = [context.Process(target=read_in_turn, args=(str(tmp_path), name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 9
    assert (tmp_path / "reads").read_text().count("read") == 3


def test_the_oldest_tables_go_and_those_in_use_stay_readable(tmp_path) -> None:
    cache = DiskCache(tmp_path, 40_000)
    names = [f"{number:064x}" for number in range(12)]
    tables = [cache.get(name, lambda n=number: pa.table({"a": np.full(1000, n)})) for number, name in enumerate(names)]
    held = cache.get(names[-1], lambda: pytest.fail("it is there"))
    left = sorted(file.stem for file in tmp_path.glob("*.arrow"))
    assert names[-1] in left and names[0] not in left
    assert sum(file.stat().st_size for file in tmp_path.glob("*.arrow")) <= 40_000
    for number in range(20, 40):
        cache.get(f"{number:064x}", lambda: pa.table({"a": np.zeros(1000)}))
    assert names[-1] not in {file.stem for file in tmp_path.glob("*.arrow")}
    assert held.column("a").to_pylist() == [11] * 1000 == tables[-1].column("a").to_pylist()


def test_a_torn_file_is_read_again(tmp_path) -> None:
    cache, name = DiskCache(tmp_path, 10**9), "a" * 64
    cache.get(name, lambda: pa.table({"a": [1]}))
    file = tmp_path / f"{name}.arrow"
    for damaged in (b"", file.read_bytes()[:50]):
        file.write_bytes(damaged)
        assert cache.get(name, lambda: pa.table({"a": [2]})).column("a").to_pylist() == [2]


def test_a_folder_that_cannot_be_used_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot keep row groups in .*file: .*set TMPDIR"):
        DiskCache(tmp_path / "file", 10).get("a" * 64, lambda: pa.table({"a": [1]}))


@pytest.mark.parametrize("kind", ["link", "another user's", "of a group", "of all"])
def test_nothing_is_kept_where_others_may_write(kind: str, tmp_path, monkeypatch) -> None:
    folder, planted = tmp_path / "cache", tmp_path / "planted"
    DiskCache(planted, 10**9).get("a" * 64, lambda: pa.table({"a": ["planted"]}))
    if kind == "link":
        folder.symlink_to(planted)
    else:
        planted.rename(folder)
        folder.chmod({"of a group": 0o770, "of all": 0o1777}.get(kind, 0o700))
    if kind == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    cache = DiskCache(folder, 10**9)
    with pytest.warns(RuntimeWarning, match="cache is a link, .*remove it, or set TMPDIR") as said:
        tables = [cache.get("a" * 64, lambda: pa.table({"a": ["read"]})) for _ in range(2)]
    assert [table.column("a").to_pylist() for table in tables] == [["read"]] * 2
    assert len(said) == 1


def test_a_lock_that_is_a_link_is_not_followed(tmp_path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "aa.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="cannot keep row groups in"):
        DiskCache(tmp_path, 10**9).get("a" * 64, lambda: pa.table({"a": [1]}))
    assert (tmp_path / "precious").read_text() == "precious"
