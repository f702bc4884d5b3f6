"""A row as a source publishes it, before its images are read, and what may be wrong with it."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Split
from amvl_core.data.pixels import from_base64
from data_prep.filters import MALFORMED_ROW, MISSING_IMAGE, UNREADABLE_IMAGE, Drop
from data_prep.sources.archive_members import Archive, ByteRange, DamagedMemberError, DeadLinkError, Inner, Ref, resolve
from data_prep.sources.table import Table

T = TypeVar("T")

NOTHING_ELSE = ConfigDict(extra="forbid")
"""Of one's own formats: a field that nothing reads is a mistake in the row, not to be passed over in silence."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An image inside of a Parquet member: its row group, the row in it, the column, and its number in a list."""

    member: str
    group: int
    row: int
    column: str
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.column} of row {self.row} in row group {self.group} of {self.member}"


@dataclass(frozen=True, slots=True)
class Inline:
    """An image that stands in the row itself: its bytes, or base64 text, also behind `data:image/png;base64,`."""

    data: str | bytes

    def read(self) -> bytes:
        """The bytes. Raises ValueError where the text is no base64."""
        if isinstance(self.data, bytes):
            return self.data
        head, _, rest = self.data.partition(",") if self.data.startswith("data:") else (";base64", "", self.data)
        if not head.endswith(";base64"):
            raise ValueError(f"no base64 follows {head[:60]!r}")
        text = "".join(rest.split())
        return from_base64(text + "=" * (-len(text) % 4))


ImageRef = Ref | Cell | Inline
"""Where an image is: a member of the archive or of a zip or tar in it, a cell of a Parquet member, or the row."""


@dataclass(frozen=True)
class RawRow:
    """`fields` are the published ones, plain data; `images` are still to be read; `drop` says why not to convert it.

    `notes` are what is counted of it, whether it is kept or not: what was passed over.
    """

    sample_id: str
    split: Split
    images: tuple[ImageRef, ...]
    fields: Any
    drop: Drop | None = None
    notes: tuple[str, ...] = ()


class Rejected(Exception):  # noqa: N818  not an error of the program: it ends in a count
    """A row that cannot become a sample, raised where that is found and caught by whoever handles rows."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.drop = Drop(reason, detail)


def malformed(sample_id: str, split: Split, detail: str) -> RawRow:
    """A row that is not what its format promises."""
    return RawRow(sample_id, split, (), None, Drop(MALFORMED_ROW, detail))


def once(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """`rows`, of which one with the id of an earlier one is a drop, with its number behind that id.

    Ids key predictions and reports.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row.sample_id in seen:
            drop = Drop(MALFORMED_ROW, f"{row.sample_id} is the id of an earlier row too; remove one of them")
            row = replace(row, sample_id=f"{row.sample_id}-row-{number}", images=(), drop=row.drop or drop)
        seen.add(row.sample_id)
        yield row


def numbered(stems: Sequence[str]) -> list[str]:
    """`stems`, which the ids of the rows of files begin with; the later of equal ones with a number behind them."""
    found: list[str] = []
    for stem in stems:
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        found.append(next(name for name in names if name not in found and (name == stem or name not in stems)))
    return found


def attempt(sample_id: str, split: Split, make: Callable[..., RawRow], *values: Any) -> RawRow:
    """`make(sample_id, split, *values)`, or a row that says why that was rejected."""
    try:
        return make(sample_id, split, *values)
    except Rejected as rejected:
        return RawRow(sample_id, split, (), None, rejected.drop)


def checked(schema: TypeAdapter[T], value: Any, where: str = "") -> T:
    """`value` as its format describes it; a field that is null is not there. `where` is what the value is called.

    Raises Rejected with the path of what is wrong.
    """
    if isinstance(value, Drop):
        raise Rejected(value.reason, value.detail)
    value = without_nulls(value)
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        parts, what = _wrong(value, error)
        path = ".".join([where, *parts] if where else parts)
        raise Rejected(MALFORMED_ROW, f"{path}: {what}" if path else what) from error


def without_nulls(value: Any) -> Any:
    """`value` without the fields that are null, or NaN: tables of rows write that for each that a row lacks."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None and item == item}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _wrong(value: Any, error: ValidationError) -> tuple[list[str], str]:
    """The path of what is wrong first, and what it is.

    Of a union there is an error for each form that it may have: those that got furthest are of the form that was meant.
    """
    found = [
        (_path(value, each["loc"], each["type"] == "missing"), each["msg"]) for each in error.errors(include_url=False)
    ]
    first = found[0][0][:1]
    paths = [path for path, _ in found if path[:1] == first]
    deepest = max(paths, key=len)
    return deepest, " or ".join(dict.fromkeys(message for path, message in found if path == deepest))


def _path(value: Any, parts: Sequence[int | str], missing: bool) -> list[str]:
    """`parts` without the names of forms, which are no keys of `value`."""
    path = []
    for number, part in enumerate(parts):
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            path.append(str(part))
            value = value[part]
        elif missing and number == len(parts) - 1:
            path.append(str(part))
    return path


def tables(archive: Archive, belongs: Callable[[list[str]], bool]) -> list[tuple[str, Table | DataError]]:
    """The Parquet members whose columns `belongs` accepts, and why each other that cannot even be opened is not read.

    Whoever reads rows raises that: nobody knows how many would be lost.
    """
    found: list[tuple[str, Table | DataError]] = []
    for name in archive.names():
        if not name.endswith(".parquet"):
            continue
        try:
            table = archive.table(name)
        except DeadLinkError:
            raise
        except DataError as error:
            found.append((name, error))
            continue
        if belongs(table.columns):
            found.append((name, table))
    return found


def inside(base: str, relative: str) -> str:
    """The member that a file in the folder `base` calls `relative`. Raises Rejected if it is outside of the archive."""
    member = resolve(base, relative)
    if member is None:
        raise Rejected(MISSING_IMAGE, f"{relative!r} leads outside of the data; paths count from the file they are in")
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


def read_image(archive: Archive | None, image: ImageRef) -> bytes | Drop:
    """The bytes of one image, or why there are none; what stands in a row itself needs no archive."""
    if isinstance(image, Inline):
        try:
            return image.read()
        except ValueError as error:
            return Drop(UNREADABLE_IMAGE, f"an image in the row is not base64: {error}")
    try:
        assert archive is not None
        if isinstance(image, str):
            return archive.read(image)
        if isinstance(image, Inner):
            return archive.inner(image.archive).read(image.member)
        if isinstance(image, ByteRange):
            return archive.read_span(image)
        data = archive.table(image.member).image(image.group, image.row, image.column, image.index)
        return Drop(MISSING_IMAGE, f"{image} is null") if data is None else data
    except KeyError:
        return Drop(MISSING_IMAGE, f"{image} is not there")
    except DeadLinkError as error:
        return Drop(MISSING_IMAGE, str(error))
    except DamagedMemberError as error:
        return Drop(UNREADABLE_IMAGE, str(error))
    except DataError as error:
        if isinstance(image, Cell):
            return Drop(UNREADABLE_IMAGE, str(error))
        raise


def read_images(archive: Archive, rows: Iterable[RawRow]) -> dict[ImageRef, bytes | Drop]:
    """Every image that `rows` show and do not hold themselves, each read once."""
    wanted = dict.fromkeys(image for row in rows for image in row.images if not isinstance(image, Inline))
    return {image: read_image(archive, image) for image in wanted}


def images_of(
    row: RawRow, payload: Mapping[ImageRef, bytes | Drop] | None, archive: Archive | None
) -> list[bytes] | Drop:
    """The images of a row in their order, from `payload` or else from `archive`; or why one of them is missing."""
    images: list[bytes] = []
    for image in row.images:
        data = payload[image] if payload and image in payload else read_image(archive, image)
        if isinstance(data, Drop):
            return data
        images.append(data)
    return images
