"""A row as a source publishes it, before its images are read, and what may be wrong with it."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Split
from data_prep.filters import MALFORMED_ROW, MISSING_IMAGE, UNREADABLE_IMAGE, Drop
from data_prep.sources.archive_members import Archive, DamagedMemberError, Inner, Ref, Span, resolve
from data_prep.sources.table import Table

T = TypeVar("T")

NOTHING_ELSE = ConfigDict(extra="forbid")
"""Of one's own formats: a field that nothing reads is a mistake in the row, not to be passed over in silence."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An image inside of a Parquet member: its row group, the row in it, and the column."""

    member: str
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.column} of row {self.row} in row group {self.group} of {self.member}"


ImageRef = Ref | Cell
"""Where an image is: a member of the archive, a member of a zip or tar in it, or a cell of a Parquet member."""


@dataclass(frozen=True)
class RawRow:
    """`fields` are the published ones, plain data; `images` are still to be read; `drop` says why not to convert it."""

    sample_id: str
    split: Split
    images: tuple[ImageRef, ...]
    fields: Any
    drop: Drop | None = None


class Rejected(Exception):  # noqa: N818  not an error of the program: it ends in a count
    """A row that cannot become a sample, raised where that is found and caught by whoever handles rows."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.drop = Drop(reason, detail)


def malformed(sample_id: str, split: Split, detail: str) -> RawRow:
    """A row that is not what its format promises."""
    return RawRow(sample_id, split, (), None, Drop(MALFORMED_ROW, detail))


def attempt(sample_id: str, split: Split, make: Callable[..., RawRow], *values: Any) -> RawRow:
    """`make(sample_id, split, *values)`, or a row that says why that was rejected."""
    try:
        return make(sample_id, split, *values)
    except Rejected as rejected:
        return RawRow(sample_id, split, (), None, rejected.drop)


def checked(schema: TypeAdapter[T], value: Any) -> T:
    """`value` as its format describes it. Raises Rejected with the path of what is wrong."""
    if isinstance(value, Drop):
        raise Rejected(value.reason, value.detail)
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Rejected(MALFORMED_ROW, f"{where}: {first['msg']}" if where else first["msg"]) from error


def tables(archive: Archive, belongs: Callable[[list[str]], bool]) -> list[tuple[str, Table | Drop]]:
    """The Parquet members whose columns `belongs` accepts, and a Drop for each that cannot even be opened."""
    found: list[tuple[str, Table | Drop]] = []
    for name in archive.names():
        if not name.endswith(".parquet"):
            continue
        try:
            table = archive.table(name)
        except DataError as error:
            found.append((name, Drop(MALFORMED_ROW, str(error))))
            continue
        if belongs(table.columns):
            found.append((name, table))
    return found


def inside(base: str, relative: str) -> str:
    """The member that a file in the folder `base` calls `relative`. Raises Rejected if it is outside of the archive."""
    member = resolve(base, relative)
    if member is None:
        raise Rejected(MISSING_IMAGE, f"{relative!r} is outside of the archive")
    return member


def near(archive: Archive, folder: str, path: str) -> str:
    """A path counts from its file's folder, from the folder above it, or from the top, whichever has such a member.

    Raises Rejected if it is outside of the archive.
    """
    for base in (folder, posixpath.dirname(folder), ""):
        member = resolve(base, path)
        if member is not None and member in archive.members:
            return member
    return inside(folder, path)


def read_image(archive: Archive, image: ImageRef) -> bytes | Drop:
    """The bytes of one image, or why there are none."""
    try:
        if isinstance(image, str):
            return archive.read(image)
        if isinstance(image, Inner):
            return archive.inner(image.archive).read(image.member)
        if isinstance(image, Span):
            return archive.read_span(image)
        data = archive.table(image.member).image(image.group, image.row, image.column)
        return Drop(MISSING_IMAGE, f"{image} is null") if data is None else data
    except KeyError:
        return Drop(MISSING_IMAGE, f"{image} is not in the archive")
    except DamagedMemberError as error:
        return Drop(UNREADABLE_IMAGE, str(error))
    except DataError as error:
        if isinstance(image, Cell):
            return Drop(UNREADABLE_IMAGE, str(error))
        raise


def read_images(archive: Archive, rows: Iterable[RawRow]) -> dict[ImageRef, bytes | Drop]:
    """Every image that `rows` show, each read once."""
    wanted = dict.fromkeys(image for row in rows for image in row.images)
    return {image: read_image(archive, image) for image in wanted}


def images_of(
    row: RawRow, payload: Mapping[ImageRef, bytes | Drop] | None, archive: Archive | None
) -> list[bytes] | Drop:
    """The images of a row in their order, from `payload` or else from `archive`; or why one of them is missing."""
    images: list[bytes] = []
    for image in row.images:
        if payload is not None:
            data = payload[image]
        else:
            assert archive is not None
            data = read_image(archive, image)
        if isinstance(data, Drop):
            return data
        images.append(data)
    return images
