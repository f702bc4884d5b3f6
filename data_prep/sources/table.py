"""One Parquet file, read row group by row group: listing never touches image bytes, reading keeps one group of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.parquet import ParquetStream
from data_prep.sources.depth import TOO_DEEP, too_deep

_UNREADABLE = (pa.ArrowException, OSError)

# A text that is no UTF-8, a time that Python's types do not reach, a time zone or fields that it does not know.
_NO_VALUE = (ValueError, OverflowError, LookupError)
_DAMAGED_ROW = "is damaged, or a text in it is no UTF-8"


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
    """A row's place, its values without images, and the image columns that are not null.

    Hugging Face writes an image that is not there as null, or with neither bytes nor a path. `wrong` says why there
    are no values.
    """

    group: int
    row: int
    values: dict[str, Any] | None
    images: frozenset[str] = frozenset()
    wrong: str = _DAMAGED_ROW

    def unread(self, member: str) -> str:
        """What to say of a row of the file `member` that has no values."""
        return f"row {self.row} of row group {self.group} of {member} {self.wrong}"


class Table:
    """Rows of a Parquet file. Published image columns are `struct<bytes, path>`, as Hugging Face writes them.

    `struct<bytes>` and plain bytes are read too. An image in a column of another type is there, but cannot be read.
    """

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
        """Every row: the values of `columns`, and which of `images` it has. Absent columns are left out.

        Raises DataError where one of them is there twice.
        """
        present = set(self.columns)
        wanted = [name for name in columns if name in present]
        shown = [name for name in images if name in present]
        self._check_once([*wanted, *shown])
        # The path beside the bytes is enough to see whether an image is null.
        leaves = [*wanted, *(f"{name}.path" if self._has_paths(name) else name for name in shown)]
        for group in range(self._file.num_row_groups):
            try:
                batch = self._file.read_row_group(group, columns=leaves)
                has = {name: self._has(group, name, batch.column(name)) for name in shown}
            except _UNREADABLE:
                for row in range(self._file.metadata.row_group(group).num_rows):
                    yield TableRow(group, row, None)
                continue
            for row, value in enumerate(_values(batch.select(wanted))):
                yield _row(group, row, value, frozenset(name for name in shown if has[name][row]))

    def _check_once(self, names: Sequence[str]) -> None:
        if twice := [name for name in names if self.columns.count(name) > 1]:
            raise DataError(
                f"{self.uri} has several columns {twice[0]!r}, and only one of them can be meant; rename or remove the "
                "others"
            )

    def _has_paths(self, name: str) -> bool:
        kind = self._file.schema_arrow.field(name).type
        return _has_bytes(kind) and kind.get_field_index("path") >= 0

    def _has(self, group: int, name: str, column: pa.ChunkedArray) -> list[bool]:
        """Which rows have an image: the paths are enough; the bytes are looked at where a path is empty, or none is."""
        if not self._has_paths(name):
            images = pc.struct_field(column, "bytes") if _has_bytes(column.type) else column
            return list(images.is_valid().to_pylist())
        empty = pc.equal(pc.struct_field(column, "path"), "")
        there = column.is_valid()
        if pc.any(empty).as_py():
            data = pc.struct_field(self._file.read_row_group(group, columns=[f"{name}.bytes"]).column(name), "bytes")
            there = pc.and_(there, pc.or_(pc.fill_null(pc.invert(empty), True), data.is_valid()))
        return list(there.to_pylist())

    def own_rows(self, columns: Sequence[str], images: Sequence[str]) -> Iterator[TableRow]:
        """Every row with the values of `columns`; of `images`, each one that has bytes is `Stored`, others are values.

        They may be bytes, `struct<bytes, path>`, paths, or lists of those. One row group of them is held. Raises
        DataError where one of `images` is there twice.
        """
        self._check_once(images)
        for group in range(self._file.num_row_groups):
            try:
                plain = self._file.read_row_group(group, columns=list(columns))
                shown = {name: self._shown(group, name) for name in images}
            except (*_UNREADABLE, *_NO_VALUE):
                for row in range(self._file.metadata.row_group(group).num_rows):
                    yield TableRow(group, row, None)
                continue
            for row, values in enumerate(_values(plain)):
                cells = {name: found[row] for name, found in shown.items()}
                yield _row(group, row, values if isinstance(values, str) else {**values, **cells})

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
        """The bytes of one image, None where there are none.

        Raises DataError if its row group is damaged, or the column is not of images.
        """
        if group != self._group:
            self._group, self._columns = group, {}
        if column not in self._columns:
            try:
                self._columns[column] = self._file.read_row_group(group, columns=self._bytes(column)).column(column)
            except _UNREADABLE as error:
                raise damaged(self.uri, error) from error
        kind = self._columns[column].type
        if not _holds_images(kind if index is None else kind.value_type):
            raise DataError(f"{self.uri}: {column} is {kind}, not images; write struct<bytes, path> or bytes into it")
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


def _has_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type is bytes, or a struct that may have some, or null throughout."""
    if pa.types.is_struct(kind):
        return not _has_bytes(kind) or _holds_images(kind.field("bytes").type)
    return any(is_kind(kind) for is_kind in (pa.types.is_null, pa.types.is_binary, pa.types.is_large_binary))


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


def _row(group: int, row: int, values: dict[str, Any] | str, images: frozenset[str] = frozenset()) -> TableRow:
    """A row with its values, or without them where `values` says what is wrong, or they are nested too deeply."""
    if isinstance(values, str):
        return TableRow(group, row, None, wrong=values)
    if too_deep(values):
        return TableRow(group, row, None, wrong=f"cannot be read: {TOO_DEEP}")
    return TableRow(group, row, values, images)


def _values(rows: pa.Table) -> list[dict[str, Any] | str]:
    """Rows as plain values, or what is wrong with one: Parquet checks neither texts nor times."""
    try:
        return list(rows.to_pylist())
    except _NO_VALUE:
        return [_value(rows.slice(row, 1)) for row in range(rows.num_rows)]


def _value(row: pa.Table) -> dict[str, Any] | str:
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError:
        return _DAMAGED_ROW
    except _NO_VALUE as error:
        return f"holds what cannot be read ({type(error).__name__}: {error}); write it as text"
    return values
