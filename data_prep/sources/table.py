"""One Parquet file, read row group by row group: listing never touches image bytes, reading keeps one group of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core.errors import DataError

_UNREADABLE = (pa.ArrowException, OSError)


def damaged(uri: str, error: Exception) -> DataError:
    """What to tell a user whose download is incomplete or was altered."""
    return DataError(
        f"{uri} is damaged or incomplete ({type(error).__name__}: {error}); download or pack it again and "
        "compare its checksum"
    )


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row's place, its values without images, and the image columns that are not null; no values: unreadable."""

    group: int
    row: int
    values: dict[str, Any] | None
    images: frozenset[str] = frozenset()


class Table:
    """Rows of a Parquet file whose image columns are `struct<bytes, path>`, as Hugging Face writes them."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self.uri = uri
        try:
            self._file = pq.ParquetFile(file)
        except _UNREADABLE as error:
            raise damaged(uri, error) from error
        self._group: int | None = None
        self._columns: dict[str, Any] = {}

    @property
    def columns(self) -> list[str]:
        """Names of the top-level columns."""
        return list(self._file.schema_arrow.names)

    def rows(self, columns: Sequence[str], images: Sequence[str] = ()) -> Iterator[TableRow]:
        """Every row: the values of `columns`, and which of `images` it has. Absent columns are left out."""
        present = set(self.columns)
        wanted = [name for name in columns if name in present]
        shown = [name for name in images if name in present]
        # The path beside the bytes is enough to see whether an image is null.
        leaves = [*wanted, *(f"{name}.path" for name in shown)]
        for group in range(self._file.num_row_groups):
            try:
                batch = self._file.read_row_group(group, columns=leaves)
                values = batch.select(wanted).to_pylist()
                has = {name: batch.column(name).is_valid().to_pylist() for name in shown}
            except (*_UNREADABLE, UnicodeDecodeError):
                for row in range(self._file.metadata.row_group(group).num_rows):
                    yield TableRow(group, row, None)
                continue
            for row, value in enumerate(values):
                yield TableRow(group, row, value, frozenset(name for name in shown if has[name][row]))

    def image(self, group: int, row: int, column: str) -> bytes | None:
        """The bytes of one image, None where there are none. Raises DataError if its row group is damaged."""
        if group != self._group:
            self._group, self._columns = group, {}
        if column not in self._columns:
            try:
                self._columns[column] = self._file.read_row_group(group, columns=[f"{column}.bytes"]).column(column)
            except _UNREADABLE as error:
                raise damaged(self.uri, error) from error
        value = self._columns[column][row].as_py()
        return None if value is None else value["bytes"]
