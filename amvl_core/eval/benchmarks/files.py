"""Rows of a benchmark's published files, one at a time: Parquet, TSV, CSV and JSON lines, local or on S3."""

from __future__ import annotations

import ast
import csv
import io
import json
import posixpath
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.visible import hidden, local_files
from amvl_core.data.pixels import UNREADABLE_IMAGE, from_base64
from amvl_core.eval.benchmarks.benchmark import BadRowError

INDEX_LENGTH = 64
"""A TSV image cell of at most this many characters is the index of the row that holds the image."""


@dataclass(frozen=True)
class Published:
    """The files of a benchmark: those at or below a uri with one of `endings` and a name that `keep`s.

    `expected` says so to a person. `single`: one file holds all rows, so that a second one is another data set.
    """

    endings: tuple[str, ...]
    expected: str
    keep: Callable[[str], bool] = lambda name: True
    single: bool = False

    def find(self, uri: str) -> list[str]:
        """The files in order of name.

        Raises DataError, which says what is expected, where there are none, or several where there must be one.
        """
        fs, root = storage.filesystem(uri)
        with storage.reaching(uri, "list"):
            found = [root] if fs.isfile(root) else sorted(f"{root}/{name}" for name in _below(fs, root))
        found = [path for path in found if path.endswith(self.endings) and self.keep(posixpath.basename(path))]
        if not found:
            raise DataError(f"{uri} holds none of the files looked for; give {self.expected}")
        if self.single and len(found) > 1:
            names = ", ".join(path.removeprefix(root).lstrip("/") for path in found)
            raise DataError(f"{uri} holds several data sets ({names}); give {self.expected}")
        return [fs.unstrip_protocol(path) for path in found]

    def rows(self, uri: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(place, file, row) of every row. Raises DataError where no file is, or one cannot be read to its end."""
        for file in self.find(uri):
            name = posixpath.basename(file)
            for number, row in enumerate(resolved(file) if name.endswith(".tsv") else rows(file)):
                yield f"{name}/{number}", file, row


def rows(uri: str) -> Iterator[dict[str, Any]]:
    """The rows of one file, as its ending says; a file that cannot be read to its end is a DataError."""
    ending = posixpath.splitext(uri)[1]
    try:
        with storage.opened(uri) as file:
            if ending == ".parquet":
                # A few rows at a time: one row of HR-Bench 8K holds an image of some 10 MB.
                for batch in ParquetStream(file).iter_batches(batch_size=4):
                    yield from batch.to_pylist()
                return
            lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if ending != ".jsonl" else None)
            if ending == ".jsonl":
                yield from (_object(line) for line in lines if line.strip())
                return
            csv.field_size_limit(sys.maxsize)
            yield from csv.DictReader(lines, delimiter="\t" if ending == ".tsv" else ",")
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{uri} is damaged or incomplete ({error}); download it again") from error


def image(value: Any) -> bytes:
    """The encoded image in a cell: Parquet image struct, bytes or base64 text. Raises BadRowError where it is none."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip():
        raise BadRowError("missing_image")
    try:
        return from_base64(value)
    except ValueError as error:
        raise BadRowError(UNREADABLE_IMAGE, f"not base64: {error}") from error


def images(cell: Any) -> tuple[bytes, ...]:
    """The images of a TSV cell: one, or several in a list written as text. Raises BadRowError where one is none."""
    if not (isinstance(cell, str) and cell.startswith("[")):
        return (image(cell),)
    try:
        values = ast.literal_eval(cell)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise BadRowError(UNREADABLE_IMAGE, f"no list of images: {type(error).__name__}: {error}") from error
    return tuple(image(value) for value in values)


def resolved(uri: str) -> Iterator[dict[str, Any]]:
    """`rows(uri)` with an image cell that only names another row replaced by that row's, wherever it stands.

    Only images that are named are kept, so a file without such cells is read twice but never held. A cell that names
    no row stays, and is dropped when it is decoded.
    """
    named = {row["image"] for row in rows(uri) if _names_a_row(row)}
    held = {str(row["index"]): row["image"] for row in rows(uri) if str(row.get("index")) in named} if named else {}
    for row in rows(uri):
        yield {**row, "image": held.get(row["image"], "")} if _names_a_row(row) else row


def beside(uri: str, name: str, missing: str = "missing_image") -> bytes:
    """The file `name` in or below the folder of the file at `uri`. Raises BadRowError where no file is there."""
    if posixpath.isabs(name) or posixpath.normpath(name).partition("/")[0] == "..":
        raise BadRowError(missing, f"{name!r} leads outside of the folder of {posixpath.basename(uri)}")
    fs, folder = storage.filesystem(posixpath.dirname(uri))
    where = storage.join(folder, name)
    with storage.reaching(where, "read"):
        if not fs.exists(where) or fs.info(where)["type"] != "file":
            raise BadRowError(missing, name)
        return bytes(fs.cat_file(where))


def _below(fs: Any, folder: str) -> Iterator[str]:
    """Names of the files in a folder, as its fingerprint counts them: links are followed, hidden files are none."""
    if isinstance(fs, LocalFileSystem):
        return local_files(folder) if fs.isdir(folder) else iter(())
    names = (path.removeprefix(folder).lstrip("/") for path in fs.find(folder))
    return (name for name in names if not hidden(name))


def _names_a_row(row: dict[str, Any]) -> bool:
    cell = row.get("image")
    return isinstance(cell, str) and len(cell) <= INDEX_LENGTH


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}  # without a single field: dropped as malformed
    return row if isinstance(row, dict) else {}
