"""Features of a frozen encoder that were computed before training: random access to those of a sample.

A file lies beside each shard of the dataset and has its rows. A row is a row group of its own: it is read once an epoch
by one process, so nothing else is read with it and nothing is kept. Imports no torch.

Shape suffixes: P patches in rows, D width of a feature.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core.contracts import storage
from amvl_core.contracts.encoders import Patches
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.contracts.records import FeaturesRecord
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.reader import parquet_file

SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("images", pa.list_(pa.binary(32))), ("features", pa.list_(pa.binary()))]
)
"""SHA-256 of each image of a sample as it is stored, and its features [P, D] as `STORED_DTYPE`, row by row."""

STORED_DTYPE = np.dtype("<f2")
"""Half precision: a feature's relative error is at most 2^-11, and a ViT-L's 196 patches take 400 kB."""

OPEN_FILES = 64


def image_digest(image: bytes) -> bytes:
    """What names an image: the SHA-256 of its bytes as the dataset stores them."""
    return hashlib.sha256(image).digest()


class FeatureReader:
    """Features of one encoder, by the row numbers of the dataset's training split (`ShardReader`)."""

    def __init__(self, record: FeaturesRecord) -> None:
        self.record = record
        self.uris = [storage.join(record.uri, shard.file) for shard in record.shards]
        self.starts = np.cumsum([0, *(shard.rows for shard in record.shards)])
        self.patches = Patches(*record.grid, record.width)
        self.forget()

    def forget(self) -> None:
        """Drops open files. A forked process must not share a connection with its parent."""
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in the process that opened them."""
        return {**self.__dict__, "_files": OrderedDict()}

    def of(self, index: int, sample: StoredSample) -> tuple[np.ndarray, ...]:
        """Features [P, D] in float16 of each image of `sample`, which is row `index` of the dataset.

        Raises DataError where they are those of other images, StorageError where the file cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        file = int(np.searchsorted(self.starts, index, side="right")) - 1
        try:
            row = self._file(file).read_row_group(index - int(self.starts[file])).to_pylist()[0]
        except (OSError, pa.ArrowInvalid) as error:
            raise StorageError(f"{self.uris[file]} cannot be read ({error}); {self._redo}") from error
        self._check(file, sample, row["images"])
        shape = self.patches.number, self.patches.width
        return tuple(np.frombuffer(data, STORED_DTYPE).reshape(shape) for data in row["features"])

    def _check(self, file: int, sample: StoredSample, digests: list[bytes]) -> None:
        where = f"{sample.sample_id}: the features of {self.record.encoder.name} in {self.uris[file]}"
        if len(digests) != len(sample.images):
            raise DataError(f"{where} are of {len(digests)} images, it has {len(sample.images)}; {self._redo}")
        for number, (digest, image) in enumerate(zip(digests, sample.images, strict=True), 1):
            if digest != image_digest(image):
                raise DataError(f"{where} are those of another image than its image {number}; {self._redo}")

    @property
    def _redo(self) -> str:
        return f"remove the folder {self.record.uri} and run again"

    def _file(self, file: int) -> pq.ParquetFile:
        if file not in self._files:
            self._files[file] = parquet_file(self.uris[file])
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(file)
        return self._files[file]
