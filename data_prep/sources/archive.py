"""Reads members of a folder, a tar or a zip, or one Parquet file, local or on S3, without unpacking it anywhere.

A tar can only be read from front to back, so it is read once into a spool (memory, and a temporary file beyond
`SPOOL_BYTES`) and its images travel with the rows. Members of folders and zips are read where they are needed.
Zips and uncompressed tars, also tars in pieces, that lie in a folder or in a folder of it are part of it: what they
hold is where they are.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.visible import hidden, local_files
from data_prep.sources.archive_members import (
    DAMAGED,
    Archive,
    ByteRange,
    DamagedMemberError,
    DeadLinkError,
    Inner,
    Ref,
    decompressor,
    member_name,
)
from data_prep.sources.table import Table
from data_prep.sources.zip_and_tar import SPOOL_BYTES, IndexedTar, Tar, Zip

_PIECE = re.compile(r"(?P<stem>.*[._-](?:part[._-]?)?)(?P<number>\d{2,3}|[a-z]{2})")
"""`cot_images_00`, `x.tar.part-001`, `x.tar.aa`: what `split` leaves."""

_OF_TAR = re.compile(r".*[._-]tar[._-](?!(gz|bz2|xz|zst)\b).*(\d\d|a[a-z])")
"""Names of pieces that say that they are those of a tar which is not compressed."""


@contextmanager
def open_archive(uri: str) -> Iterator[Archive]:
    """The folder, tar(.gz, .bz2, .xz), zip or Parquet file at `uri`, told apart by content, not by name.

    Raises DataError if it is missing, damaged or of another kind.
    """
    fs, path = storage.filesystem(uri)
    with storage.reaching(uri):
        # Of a bucket that cannot be reached s3fs says that it does not exist, but not that it is no folder.
        is_folder = fs.isdir(path)
        there = is_folder or fs.exists(path)
    if not there:
        raise DataError(f"{uri} does not exist; give the path of a folder, a .tar.gz, a .zip or a .parquet")
    if is_folder:
        yield _Folder(uri, fs, path)
        return
    with _opened(uri, fs, path) as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            yield Zip(uri, file)
        elif head.startswith(b"PAR1"):
            yield _File(uri, file)
        elif is_tar(head) or _holds_tar(file, decompressor(head)):
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
                yield Tar(uri, file, decompressor(head), spool)
        else:
            what = "is one compressed file" if decompressor(head) else "is one file"
            raise DataError(
                f"{uri} {what} and neither a folder nor a tar, zip or Parquet file; give the folder that it is in with "
                "its images, or pack that as .tar.gz or .zip. One's own rows are called train.jsonl and test.jsonl "
                "there, also compressed (train.jsonl.gz)"
            )


def is_tar(head: bytes) -> bool:
    """Whether a file that begins like this is a tar that is not compressed."""
    return head[257:262] == b"ustar"


def _piece(name: str) -> tuple[str, int] | None:
    """Piece 0 of what `name` may be a piece of, and which one it is: 3 of `x_03` and of `x_ad`."""
    if not (found := _PIECE.fullmatch(name)):
        return None
    number = found["number"]
    digits = number.isdigit()
    place = int(number) if digits else 26 * (ord(number[0]) - ord("a")) + ord(number[1]) - ord("a")
    return found["stem"] + ("0" if digits else "a") * len(number), place


def _named(zero: str, place: int) -> str:
    """What the piece in that place is called where piece 0 is `zero`: `x_03` or `x_ad`."""
    stem = zero.rstrip(zero[-1])
    digits = len(zero) - len(stem)
    return stem + (f"{place:0{digits}d}" if zero[-1] == "0" else chr(97 + place // 26) + chr(97 + place % 26))


def _opened(uri: str, fs: Any, path: str) -> IO[bytes]:
    if not isinstance(fs, LocalFileSystem):
        with storage.reaching(uri, "read"):
            return storage.RemoteFile(uri, fs.open(path, "rb"))  # type: ignore[return-value]
    try:
        file: IO[bytes] = fs.open(path, "rb")
    except OSError as error:
        raise DataError(f"{uri} cannot be read: {error.strerror or error}") from error
    return file


def _holds_tar(file: IO[bytes], decompress: Any) -> bool:
    """Whether a compressed file holds a tar, or is so damaged that nothing can be said."""
    if decompress is None:
        return False
    try:
        block = decompress(file).read(tarfile.BLOCKSIZE)
        if any(block):  # one without members is of zeros
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    except DAMAGED:
        return True
    finally:
        file.seek(0)
    return len(block) > 0


class _Folder(Archive):
    def __init__(self, uri: str, fs: Any, path: str) -> None:
        super().__init__(uri)
        self._fs, self._path = fs, path.rstrip("/")

        self._packed: list[str] | None = None
        self._inner: dict[str, Archive] = {}
        self._direct: dict[str, IndexedTar] = {}

    @cached_property
    def _listing(self) -> tuple[list[str], set[str]]:
        """The names, and those that are in two places."""
        names, twice = set(self._files()), set[str]()
        for packed in self._find_packed():
            folder = posixpath.dirname(packed)
            inside = {posixpath.join(folder, member) for member in self.inner(packed).names()}
            twice |= names & inside
            names |= inside
        return sorted(names), twice

    def _find_packed(self) -> list[str]:
        """The zips, tars and first pieces of tars in this folder and the folders of it."""
        if self._packed is None:
            found = [name for name in self._near() if name.endswith((".zip", ".tar"))]
            for zero, pieces in self._in_pieces.items():
                first = min(pieces)
                if first <= 1 and self._is_tar(pieces[first]):
                    found.append(pieces[first])
                elif first and _OF_TAR.fullmatch(pieces[first]):
                    raise DataError(f"{self.uri} lacks {zero}, the first piece of a tar that has {pieces[first]}")
            self._packed = sorted(found)
        return self._packed

    @cached_property
    def _in_pieces(self) -> dict[str, dict[int, str]]:
        """What may be pieces of something, by what its piece 0 is called and by their places."""
        found: dict[str, dict[int, str]] = {}
        for name in self._near():
            if piece := _piece(name):
                found.setdefault(piece[0], {})[piece[1]] = name
        return found

    def _files(self, depth: int | None = None) -> Iterator[str]:
        """Names of the files, at most `depth` folders down. Raises StorageError."""
        with storage.reaching(self.uri, "list"):
            if isinstance(self._fs, LocalFileSystem):
                yield from local_files(self._path, depth)
            else:
                names = (name[len(self._path) :].lstrip("/") for name in self._fs.find(self._path, maxdepth=depth))
                yield from (name for name in names if not hidden(name))

    def _near(self) -> list[str]:
        """Names of files at the top and one folder further down."""
        return list(self._files(depth=2))

    def _is_tar(self, name: str) -> bool:
        try:
            with self._open(name) as file:
                return is_tar(file.read(512))
        except DeadLinkError:
            return False

    def inner(self, name: str) -> Archive:
        if name not in self._inner:
            where = f"{self.uri}/{name}"
            if name.endswith(".zip"):
                self._inner[name] = Zip(where, self._open(name))
            else:
                self._inner[name] = IndexedTar(where, [self._open(piece) for piece in self._pieces(name)])
        return self._inner[name]

    def _for_spans(self, name: str) -> IndexedTar:
        """The tar `name` to read single members of: from an object store without the megabytes that follow them."""
        if name not in self._direct:
            options = {} if isinstance(self._fs, LocalFileSystem) else {"cache_type": "none"}
            pieces = [self._open(piece, **options) for piece in self._pieces(name)]
            self._direct[name] = IndexedTar(f"{self.uri}/{name}", pieces)
        return self._direct[name]

    def _pieces(self, first: str) -> list[str]:
        """The pieces of a tar in order. Raises DataError where one in between is not there."""
        if not (found := _piece(first)):
            return [first]
        zero, start = found
        pieces = self._in_pieces[zero]
        places = range(start, start + len(pieces))
        if missing := [place for place in places if place not in pieces]:
            raise DataError(f"{self.uri} lacks {_named(zero, missing[0])}, a piece of the tar that begins in {first}")
        return [pieces[place] for place in places]

    def located(self, name: str) -> Ref:
        """As of every archive. Raises DataError where it is in two places: nobody knows which is meant."""
        found = self._inside(name)
        packed, member = next(found, ("", ""))
        if not packed:
            return name
        if name in self._listing[1]:
            other, _ = next(found, ("beside it", ""))
            raise DataError(
                f"{self.uri}: {name} is in {packed} and {other}, and only one can be meant; remove one, such as an "
                "archive that is unpacked already"
            )
        inner = self.inner(packed)
        return inner.span(packed, member) if isinstance(inner, IndexedTar) else Inner(packed, member)

    def _inside(self, name: str) -> Iterator[tuple[str, str]]:
        """The archives that hold the file `name`, each with what it is called there."""
        for packed in self._find_packed():
            folder = packed[: packed.rfind("/") + 1]
            if name.startswith(folder) and (member := name[len(folder) :]) in self.inner(packed).members:
                yield packed, member

    def read_span(self, span: ByteRange) -> bytes:
        return self._for_spans(span.archive).read_span(span)

    def names(self) -> list[str]:
        return self._listing[0]

    def _where(self, name: str) -> str:
        if member_name(name) is None or hidden(name):
            raise KeyError(name)
        return f"{self._path}/{name}"

    def open(self, name: str) -> IO[bytes]:
        found = self.located(name)
        return self._open(name) if isinstance(found, str) else self.inner(found.archive).open(found.member)

    def _open(self, name: str, **options: str) -> IO[bytes]:
        where = self._where(name)
        try:
            file: IO[bytes] = self._fs.open(where, "rb", **options)
        except storage.REFUSED as error:
            raise self._refused(name, error) from error
        if isinstance(self._fs, LocalFileSystem):
            return file
        return storage.RemoteFile(f"{self.uri}/{name}", file)  # type: ignore[return-value]

    def _refused(self, name: str, error: Exception) -> Exception:
        """What to raise of a file that is not there, or that a disk cannot give, or of a store that does not answer."""
        local = isinstance(self._fs, LocalFileSystem)
        parts = name.split("/")
        for end in range(len(parts) if local else 0):
            where = "/".join(parts[: end + 1])
            path = f"{self._path}/{where}"
            if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
                return DeadLinkError(
                    f"{self.uri}/{where} is a link to {os.readlink(path)}, which leads nowhere; "  # noqa: PTH115
                    "bring what it means, or remove it"
                )
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            return KeyError(name)
        if local and isinstance(error, OSError):
            return DamagedMemberError(f"{self.uri}/{name} cannot be read: {error.strerror or error}")
        return storage.refused(f"{self.uri}/{name}", "read", error)

    def read(self, name: str) -> bytes:
        # Whoever reads what somebody else has located need not look for archives.
        found = self.located(name) if self._packed else name
        if not isinstance(found, str):
            return self.inner(found.archive).read(found.member)
        where = self._where(name)
        try:
            return bytes(self._fs.cat_file(where))
        except storage.REFUSED as error:
            raise self._refused(name, error) from error


class _File(Archive):
    """One Parquet file that holds everything."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        super().__init__(uri)
        self._name = posixpath.basename(uri)
        self._tables[self._name] = Table(uri, file)

    def names(self) -> list[str]:
        return [self._name]

    def open(self, name: str) -> IO[bytes]:
        raise KeyError(name)
