"""Random access to the rows of a prepared dataset, local or on S3, with a bounded cache of row groups."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core import storage
from amvl_core.errors import StorageError
from amvl_core.records import DatasetRecord
from amvl_core.sample import Segment, Split

CACHE_BYTES = 256 * 2**20


class ShardReader:
    """Rows of one split, numbered across its shards in order."""

    def __init__(self, dataset: DatasetRecord, split: Split) -> None:
        self.uris = [storage.join(dataset.uri, shard.file) for shard in dataset.files(split)]
        self.rows = [shard.rows for shard in dataset.files(split)]
        self.starts = np.cumsum([0, *self.rows])
        self._files: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached = 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in the process that opened them."""
        return {**self.__dict__, "_files": {}, "_groups": OrderedDict(), "_cached": 0}

    def column(self, name: str) -> np.ndarray:
        """One whole column, in row order."""
        parts = [self._file(i).read([name]).column(name).to_numpy() for i in range(len(self.uris))]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index` as plain values, with `segments` as a list of `Segment`."""
        file = int(np.searchsorted(self.starts, index, side="right")) - 1
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group, offset = self._locate(file, index - int(self.starts[file]))
        row: dict[str, Any] = self._group(file, group).slice(offset, 1).to_pylist()[0]
        row["segments"] = [Segment(**segment) for segment in row["segments"]]
        return row

    def _locate(self, file: int, row: int) -> tuple[int, int]:
        metadata = self._file(file).metadata
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if row < rows:
                return group, row
            row -= rows
        raise StorageError(f"{self.uris[file]} has fewer rows than its record says; prepare the data again")

    def _file(self, file: int) -> pq.ParquetFile:
        if file not in self._files:
            fs, path = storage.filesystem(self.uris[file])
            try:
                self._files[file] = pq.ParquetFile(fs.open(path, "rb"))
            except (OSError, pa.ArrowInvalid) as error:
                raise StorageError(f"{self.uris[file]} cannot be read ({error}); prepare the data again") from error
        return self._files[file]

    def _group(self, file: int, group: int) -> pa.Table:
        key = (file, group)
        if key not in self._groups:
            table = self._file(file).read_row_group(group)
            self._groups[key] = table
            self._cached += table.nbytes
            while self._cached > CACHE_BYTES and len(self._groups) > 1:
                _, old = self._groups.popitem(last=False)
                self._cached -= old.nbytes
        self._groups.move_to_end(key)
        return self._groups[key]
