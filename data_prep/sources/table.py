"""One Parquet file, read row group by row group: listing never touches image bytes, reading keeps one group of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.parquet import ParquetStream

_UNREADABLE = (pa.ArrowException, OSError)


def damaged(uri: str, error: Exception) -> DataError:
    """What to tell a user whose download is incomplete or was altered."""
    return DataError(
        f"{uri} is damaged or incomplete ({type(error).__name__}: {error}); download or pack it again and "
        "compare its checksum"
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """An image whose bytes are in a cell; `index` is its number where the cell holds a list."""

    index: int | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row's place, its values without images, and the image columns that are not null; no values: unreadable.

    Hugging Face writes an image that is not there as null, or with neither bytes nor a path.
    """

    group: int
    row: int
    values: dict[str, Any] | None
    images: frozenset[str] = frozenset()


class Table:
    """Rows of a Parquet file. Published image columns are `struct<bytes, path>`, as Hugging Face writes them."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self.uri = uri
        try:
            self._file = ParquetStream(file)
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
                has = {name: self._has(group, name, batch.column(name)) for name in shown}
            except _UNREADABLE:
                for row in range(self._file.metadata.row_group(group).num_rows):
                    yield TableRow(group, row, None)
                continue
            for row, value in enumerate(_values(batch.select(wanted))):
                yield TableRow(group, row, value, frozenset(name for name in shown if has[name][row]))

    def _has(self, group: int, name: str, column: pa.ChunkedArray) -> list[bool]:
        """Which rows have an image: `column` holds the paths alone; the bytes are looked at where a path is empty."""
        empty = pc.equal(pc.struct_field(column, "path"), "")
        there = column.is_valid()
        if pc.any(empty).as_py():
            data = pc.struct_field(self._file.read_row_group(group, columns=[f"{name}.bytes"]).column(name), "bytes")
            there = pc.and_(there, pc.or_(pc.fill_null(pc.invert(empty), True), data.is_valid()))
        return list(there.to_pylist())

    def own_rows(self, columns: Sequence[str], images: Sequence[str]) -> Iterator[TableRow]:
        """Every row with the values of `columns`; of `images`, each one that has bytes is `Stored`, others are values.

        They may be bytes, `struct<bytes, path>`, paths, or lists of those. One row group of them is held.
        """
        for group in range(self._file.num_row_groups):
            try:
                plain = self._file.read_row_group(group, columns=list(columns))
                shown = {name: self._shown(group, name) for name in images}
            except (*_UNREADABLE, UnicodeDecodeError):
                for row in range(self._file.metadata.row_group(group).num_rows):
                    yield TableRow(group, row, None)
                continue
            for row, values in enumerate(_values(plain)):
                cells = {name: found[row] for name, found in shown.items()}
                yield TableRow(group, row, None if values is None else {**values, **cells})

    def _shown(self, group: int, name: str) -> list[Any]:
        found: list[Any] = []
        for chunk in self._file.read_row_group(group, columns=[name]).column(name).chunks:
            if not (pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)):
                found += _stored(chunk, [None] * len(chunk))
                continue
            lengths = pc.list_value_length(chunk).to_pylist()
            items = iter(_stored(chunk.flatten(), [i for length in lengths for i in range(length or 0)]))
            found += [None if length is None else [next(items) for _ in range(length)] for length in lengths]
        return found

    def image(self, group: int, row: int, column: str, index: int | None = None) -> bytes | None:
        """The bytes of one image, None where there are none. Raises DataError if its row group is damaged."""
        if group != self._group:
            self._group, self._columns = group, {}
        if column not in self._columns:
            try:
                self._columns[column] = self._file.read_row_group(group, columns=self._bytes(column)).column(column)
            except _UNREADABLE as error:
                raise damaged(self.uri, error) from error
        cell = self._columns[column][row]
        value = cell.as_py() if index is None else cell.values[index].as_py()
        data: bytes | None = value["bytes"] if isinstance(value, dict) else value
        return data

    def _bytes(self, column: str) -> list[str]:
        """What is read of a column of images: without the paths, where there are any."""
        schema = self._file.schema
        leaves = [schema.column(number).path for number in range(len(schema))]
        own = [leaf for leaf in leaves if leaf == column or leaf.startswith(column + ".")]
        return [leaf for leaf in own if leaf.endswith(".bytes")] or own


def _stored(values: pa.Array, indices: Sequence[int | None]) -> list[Any]:
    """The images of a column: `Stored` where there are bytes, else what there is, such as a path."""
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return [Stored(i) if there else None for i, there in zip(indices, values.is_valid().to_pylist(), strict=True)]
    names = [field.name for field in values.type] if pa.types.is_struct(values.type) else []
    if "bytes" not in names or pa.types.is_string(values.type.field("bytes").type):
        return list(values.to_pylist())
    has = pc.and_(values.is_valid(), pc.struct_field(values, "bytes").is_valid()).to_pylist()
    paths = pc.struct_field(values, "path").to_pylist() if "path" in names else [None] * len(values)
    return [Stored(index) if has[row] else paths[row] for row, index in enumerate(indices)]


def _values(rows: pa.Table) -> list[dict[str, Any] | None]:
    """Rows as plain values; None where a text is no UTF-8, which Parquet does not check."""
    try:
        return list(rows.to_pylist())
    except UnicodeDecodeError:
        return [_value(rows.slice(row, 1)) for row in range(rows.num_rows)]


def _value(row: pa.Table) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return values
