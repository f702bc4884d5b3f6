"""Tables as Parquet files below a storage root."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core.contracts import storage
from amvl_core.contracts.parquet import ParquetStream


def write_table(uri: str, table: pa.Table) -> None:
    """Writes the file whole."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """These columns, or all."""
    with storage.opened(uri) as file:
        return ParquetStream(file).read(columns)
