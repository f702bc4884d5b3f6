"""Reading Parquet from Python's file objects, in the thread that calls."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq


class ParquetStream(pq.ParquetFile):
    """A Parquet file behind a Python file object, or in bytes.

    Arrow's own threads may let go of such an object after the read has returned. That takes the interpreter's lock.
    Where the interpreter is ending by then, Python ends that thread, and C++ the process: "terminate called without an
    active exception", status 134. So nothing is read ahead and no other thread reads.
    """

    def __init__(self, file: IO[bytes] | bytes) -> None:
        super().__init__(io.BytesIO(file) if isinstance(file, bytes) else file, pre_buffer=False)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole of the columns, or of all."""
        return super().read(columns, use_threads=False)

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group of the columns, or of all."""
        return super().read_row_group(group, columns, use_threads=False)

    def iter_batches(self, batch_size: int) -> Iterator[pa.RecordBatch]:
        """All columns, at most `batch_size` rows at a time."""
        yield from super().iter_batches(batch_size, use_threads=False)
