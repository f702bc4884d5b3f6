"""Random access to the rows of a prepared dataset, local or on S3.

A row group is read whole. It is kept in memory, up to `CACHE_BYTES`. What comes over a network is also kept on the
machine's own disk, where all its processes find it. Training asks for rows in an order that stays within a window of
row groups for a while (`amvl_core/data/order.py`). So a machine reads each row group about once per epoch. Of the
shards' footers nothing is kept but the rows of each row group.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from heapq import nsmallest
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.contracts.records import DatasetRecord
from amvl_core.contracts.sample import Region, Split, StoredSample, Video
from amvl_core.data.disk_cache import DiskCache
from amvl_core.data.heldout import Hashed, heldout_rows, smallest_hashes
from amvl_core.data.order import Sizes

CACHE_BYTES = 256 * 2**20
DISK_CACHE_BYTES = 8 * 2**30
"""Two windows of 512 row groups of 8 MiB; the folder is below TMPDIR."""
CONNECTIONS = 16
OPEN_FILES = 256
"""A dataset may have more shards than a process may have open files."""
FILES_AT_ONCE = 1024
"""Of the index, before what they gave is joined."""


class Index(NamedTuple):
    """What the order needs to know of some shards: tokens of each row, rows of each row group, smallest hashes."""

    num_tokens: np.ndarray
    group_rows: np.ndarray
    hashed: list[Hashed]


class ShardReader:
    """Rows of one split, numbered across its shards in order.

    `bytes_read` counts what this process has asked of the storage for rows, as stored there.
    """

    def __init__(self, dataset: DatasetRecord, split: Split) -> None:
        self.shards = dataset.files(split)
        self.uris = [storage.join(dataset.uri, shard.file) for shard in self.shards]
        self.starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        folder = Path(tempfile.gettempdir()) / f"amvl-row-groups-{os.getuid()}"
        self.disk = None if storage.is_local(dataset.uri) else DiskCache(folder, DISK_CACHE_BYTES)
        self.bytes_read = 0
        self._bounds: dict[int, np.ndarray] = {}
        self.forget()

    def forget(self) -> None:
        """Drops open files and what is in memory. A forked process must not share a connection with its parent."""
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached = 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in the process that opened them."""
        return {**self.__dict__, "_files": OrderedDict(), "_groups": OrderedDict(), "_cached": 0}

    def column(self, name: str) -> np.ndarray:
        """One whole column, in row order."""
        parts = self._of_each_file(lambda _, opened: opened.read([name]).column(name).to_numpy())
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def without_images(self) -> Iterator[StoredSample]:
        """Every row without its images, in order; read a row group at a time."""
        for file in range(len(self.uris)):
            for group in range(self._file(file).metadata.num_row_groups):
                table = self._reading(file, partial(_without_images, group))
                yield from (stored_sample({**row, "images": ()}) for row in table.to_pylist())

    def sizes(self, added_tokens: int, sequences: int = 1, heldout: int = 0, seed: int = 0) -> Sizes:
        """What the order of training depends on, where one process reads all of the index; see `sizes_of`."""
        return self.sizes_of([self.index(0, 1, heldout, seed)], added_tokens, sequences, heldout)

    def index(self, rank: int, world_size: int, heldout: int, seed: int) -> Index:
        """Of this rank's share of the shards, from footers and two columns; a DataError where there are no rows.

        So many samples as `heldout` says are to be held out by `seed`.
        """
        if not len(self):
            raise DataError("the prepared dataset has no rows to train on; look at its report for what was dropped")
        first, last = (len(self.uris) * number // world_size for number in (rank, rank + 1))
        tokens, groups, hashed = [np.empty(0, np.int32)], [np.empty(0, np.int32)], list[Hashed]()
        for start in range(first, last, FILES_AT_ONCE):
            files = range(start, min(start + FILES_AT_ONCE, last))
            found = self._of_each_file(partial(self._index_of_file, heldout, seed), files)
            tokens.append(np.concatenate([part.num_tokens for part in found]))
            groups.append(np.concatenate([part.group_rows for part in found]))
            hashed = nsmallest(heldout, chain(hashed, *(part.hashed for part in found)))
        return Index(np.concatenate(tokens), np.concatenate(groups), hashed)

    def _index_of_file(self, heldout: int, seed: int, file: int, opened: pq.ParquetFile) -> Index:
        columns = opened.read(["num_tokens", *(["sample_id"] if heldout else [])])
        names = columns.column("sample_id").to_pylist() if heldout else ()
        return Index(
            columns.column("num_tokens").to_numpy(),
            np.diff(self._group_bounds(file, opened)),
            smallest_hashes(names, int(self.starts[file]), heldout, seed),
        )

    def sizes_of(self, parts: Sequence[Index], added_tokens: int, sequences: int = 1, heldout: int = 0) -> Sizes:
        """What the order of training depends on, from the `index` of every rank, in their order.

        `added_tokens` is what the stage's method adds to a sample, of which it runs so many `sequences`. From here on
        no footer is read for a row group that is on the disk or in memory.
        """
        group_rows = np.concatenate([part.group_rows for part in parts]).astype(np.int64)
        bounds = np.append(0, np.cumsum(group_rows))
        for file, (first, last) in enumerate(pairwise(np.searchsorted(bounds, self.starts).tolist())):
            self._bounds[file] = (bounds[first : last + 1] - bounds[first]).astype(np.int32)
        hashed = chain.from_iterable(part.hashed for part in parts)
        tokens = np.concatenate([part.num_tokens for part in parts])
        tokens *= sequences
        tokens += added_tokens
        return Sizes(tokens, group_rows, heldout_rows(hashed, heldout, len(self)))

    def __getitem__(self, index: int) -> StoredSample:
        """Row `index`."""
        file = int(np.searchsorted(self.starts, index, side="right")) - 1
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group, offset = self._locate(file, index - int(self.starts[file]))
        return stored_sample(self._group(file, group).slice(offset, 1).to_pylist()[0])

    def _locate(self, file: int, row: int) -> tuple[int, int]:
        """The row group and the place in it of a row of a file."""
        if file not in self._bounds:
            self._bounds[file] = self._group_bounds(file, self._file(file))
        bounds = self._bounds[file]
        group = int(np.searchsorted(bounds, row, side="right")) - 1
        return group, row - int(bounds[group])

    def _group_bounds(self, file: int, opened: pq.ParquetFile) -> np.ndarray:
        """The first row of each row group of a file, and one past the last row."""
        metadata, rows = opened.metadata, self.shards[file].rows
        if metadata.num_rows != rows:
            raise StorageError(
                f"{self.uris[file]} has {metadata.num_rows} rows, and {rows} by its record; prepare the data again"
            )
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.cumsum([0, *groups], dtype=np.int32)

    def _of_each_file(
        self, read: Callable[[int, pq.ParquetFile], Any], files: Sequence[int] | None = None
    ) -> list[Any]:
        """`read` of every shard, many at once, because over a network the time is spent waiting."""

        def found(file: int) -> Any:
            with self._damaged(file), parquet_file(self.uris[file]) as opened:
                return read(file, opened)

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(found, range(len(self.uris)) if files is None else files))

    def _reading(self, file: int, read: Callable[[pq.ParquetFile], Any]) -> Any:
        with self._damaged(file):
            return read(self._file(file))

    @contextmanager
    def _damaged(self, file: int) -> Iterator[None]:
        """Turns what cannot be read of a file into a StorageError that names it."""
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            raise StorageError(f"{self.uris[file]} cannot be read ({error}); prepare the data again") from error

    def _file(self, file: int) -> pq.ParquetFile:
        """The open file; of those that were opened the last `OPEN_FILES` stay."""
        if file not in self._files:
            with self._damaged(file):
                self._files[file] = parquet_file(self.uris[file])
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(file)
        return self._files[file]

    def _group(self, file: int, group: int) -> pa.Table:
        key = (file, group)
        if key not in self._groups:
            name = hashlib.sha256(f"{self.uris[file]} {self.shards[file].sha256} {group}".encode()).hexdigest()
            table = self._read(key) if self.disk is None else self.disk.get(name, lambda: self._read(key))
            self._groups[key] = table
            self._cached += table.nbytes
            while self._cached > CACHE_BYTES and len(self._groups) > 1:
                _, old = self._groups.popitem(last=False)
                self._cached -= old.nbytes
        self._groups.move_to_end(key)
        return self._groups[key]

    def _read(self, key: tuple[int, int]) -> pa.Table:
        file, group = key
        table = self._reading(file, lambda opened: opened.read_row_group(group))
        columns = self._file(file).metadata.row_group(group)
        self.bytes_read += sum(columns.column(i).total_compressed_size for i in range(columns.num_columns))
        return table


def _without_images(group: int, file: pq.ParquetFile) -> pa.Table:
    return file.read_row_group(group, [name for name in file.schema_arrow.names if name != "images"])


def parquet_file(uri: str) -> pq.ParquetFile:
    """The file at `uri`, its footer read. Raises StorageError, OSError or ArrowInvalid."""
    fs, path = storage.filesystem(uri)
    if storage.is_local(uri):
        return pq.ParquetFile(path)
    with storage.reaching(uri, "read"):  # a row group's columns are asked for in one piece, nothing is read ahead
        remote = storage.RemoteFile(uri, fs.open(path, "rb", cache_type="none"))
        return pq.ParquetFile(remote, pre_buffer=True)


def stored_sample(row: Mapping[str, Any]) -> StoredSample:
    """A row of a shard, as `to_pylist` gives it."""
    return StoredSample(
        sample_id=row["sample_id"],
        source=row["source"],
        task=row["task"],
        question=row["question"],
        steps=tuple(step["text"] for step in row["steps"]),
        step_images=tuple(step["image"] for step in row["steps"]),
        answer=row["answer"],
        images=tuple(row["images"]),
        regions=tuple(Region(region["label"], tuple(region["box"]), region["image"]) for region in row["regions"]),
        videos=tuple(Video(video["frames"], video["fps"]) for video in row["videos"]),
        extra=json.loads(row["extra"]),
    )
