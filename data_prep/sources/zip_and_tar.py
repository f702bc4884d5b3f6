"""Zips and tars: a tar that is read once into a spool, and one whose members are read where they lie."""

# ruff: noqa: D102  what these methods do stands in `Archive`

from __future__ import annotations

import bisect
import io
import posixpath
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import IO, Any, Self

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError
from data_prep.sources.archive_members import (
    BLOCK_BYTES,
    DAMAGED,
    Archive,
    ByteRange,
    DamagedMemberError,
    Inner,
    Ref,
    check_size,
    member_name,
    resolve,
    with_links,
)
from data_prep.sources.table import damaged

SPOOL_BYTES = 256 * 2**20
MAX_PATH_BYTES = 4096

Place = tuple[int, int] | None
"""Offset and size of a member; None where it is sparse: a few bytes may stand for any number."""

# What damage makes of a version or a way of packing, and of a name that is said to be UTF-8.
_DAMAGED_ZIP = (*DAMAGED, NotImplementedError, UnicodeDecodeError)


class Zip(Archive):
    """A zip, each member read where it is."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        super().__init__(uri)
        try:
            self._zip = zipfile.ZipFile(file)
        except _DAMAGED_ZIP as error:
            raise damaged(uri, error) from error
        infos = [info for info in self._zip.infolist() if not info.filename.endswith(("/", "\\"))]
        named = {name: info for info in infos if (name := member_name(info.filename)) is not None}
        links = {name: self._leads_to(name, info) for name, info in named.items() if _is_link(info)}
        members = {name: info for name, info in named.items() if name not in links}
        self._members = with_links(uri, members, {name: to for name, to in links.items() if to is not None})

    def _leads_to(self, name: str, link: zipfile.ZipInfo) -> str | None:
        try:
            with self._zip.open(link) as content:
                target = content.read(MAX_PATH_BYTES + 1)
            return resolve(posixpath.dirname(name), target.decode()) if len(target) <= MAX_PATH_BYTES else None
        except (*_DAMAGED_ZIP, RuntimeError):
            # It cannot be read, or is encrypted. Then it names nothing, and whoever asks for it is told so.
            return None

    def names(self) -> list[str]:
        return sorted(self._members)

    def open(self, name: str) -> IO[bytes]:
        # A compressed member can only be read forwards; Parquet is read from its end.
        if not name.endswith(".parquet"):
            return self._stream(name)
        spool = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115  it is the result
        try:
            with self._stream(name) as content:
                _unpack(content, spool, self.uri)
        except DAMAGED as error:
            raise damaged(f"{self.uri}/{name}", error) from error
        spool.seek(0)
        return spool

    def _stream(self, name: str) -> IO[bytes]:
        info = self._members[name]
        if info.flag_bits & 1:
            raise DataError(f"{self.uri} is encrypted; pack it without a password")
        try:
            return self._zip.open(info)
        except _DAMAGED_ZIP as error:
            raise DamagedMemberError(str(damaged(f"{self.uri}/{name}", error))) from error

    def read(self, name: str) -> bytes:
        check_size(f"{self.uri}/{name}", self._members[name].file_size)
        try:
            with self._stream(name) as content:
                return b"".join(_pieces(content))
        except DAMAGED as error:
            raise DamagedMemberError(str(damaged(f"{self.uri}/{name}", error))) from error


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    """What a member holds. Read at once, it is decompressed to its end, however small its header says that it is."""
    return iter(lambda: content.read(BLOCK_BYTES), b"")


def _unpack(content: IO[bytes], spool: IO[bytes], uri: str) -> None:
    """Copies a member of the archive `uri` into `spool`. Raises StorageError where the disk is full."""
    for piece in _pieces(content):
        with storage.reaching(f"{uri} to {tempfile.gettempdir()} (TMPDIR)", "unpack"):
            spool.write(piece)


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def _leads_to(member: tarfile.TarInfo) -> str | None:
    """The name that a link in a tar leads to: a hard link counts from the top. None where it is outside."""
    folder = posixpath.dirname(member.name) if member.issym() else ""
    return resolve(folder, member.linkname)


class _Header(tarfile.TarInfo):
    """The header of a member. `tarfile` takes one that is damaged, or is not there, for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros, which ends a tar
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError where more than zeros follow the end of a tar: another tar, or members behind a hole."""
    while block := tar.fileobj.read(2**20):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"it goes on behind its end at byte {tar.offset:,}")


class Tar(Archive):
    """A tar, compressed or not, read from front to back into `spool`."""

    sequential = True

    def __init__(self, uri: str, file: IO[bytes], decompress: Any, spool: Any) -> None:
        super().__init__(uri)
        self._spool = spool
        members: dict[str, Place] = {}
        links: dict[str, str] = {}
        try:
            stream = decompress(file) if decompress else file
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
                for member in tar:
                    if (name := member_name(member.name)) is None:
                        continue
                    if member.isreg():
                        members[name] = None if member.issparse() else self._take(tar, member)
                    elif (member.issym() or member.islnk()) and (target := _leads_to(member)) is not None:
                        links[name] = target
                # A compressed stream that was cut there, or whose checksum is wrong, fails here.
                _check_end(tar)
        except DAMAGED as error:
            raise damaged(uri, error) from error

        self._members = with_links(uri, members, links)

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[int, int]:
        content = tar.extractfile(member)
        assert content is not None
        offset = self._spool.tell()
        _unpack(content, self._spool, self.uri)
        return offset, self._spool.tell() - offset

    def names(self) -> list[str]:
        return sorted(self._members)

    def open(self, name: str) -> IO[bytes]:
        return io.BufferedReader(_Slice(self._spool, *_whole(self.uri, name, self._members[name])), 2**20)

    def read(self, name: str) -> bytes:
        offset, size = _whole(self.uri, name, self._members[name])
        check_size(f"{self.uri}/{name}", size)
        self._spool.seek(offset)
        return bytes(self._spool.read(size))


def _whole(uri: str, name: str, place: Place) -> tuple[int, int]:
    """The place of a member. Raises DamagedMemberError where it is sparse."""
    if place is None:
        raise DamagedMemberError(f"{uri}/{name} is a sparse file; pack it without --sparse")
    return place


class _Slice(io.RawIOBase):
    """`size` bytes of `file` from `offset` on, with a position of its own."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class IndexedTar(Archive):
    """A tar that is not compressed, in one file or in `pieces` that follow each other; members are read on their own.

    Who knows where a member lies (`ByteRange`) reads it without going through the tar.
    """

    def __init__(self, uri: str, pieces: Sequence[IO[bytes]]) -> None:
        super().__init__(uri)
        self._file = pieces[0] if len(pieces) == 1 else io.BufferedReader(_Joined(pieces), 2**16)

    @cached_property
    def _index(self) -> dict[str, Place]:
        """The place of each member; only the headers are read."""
        found: dict[str, Place] = {}
        links: dict[str, str] = {}
        try:
            self._file.seek(0)
            with tarfile.open(fileobj=self._file, mode="r:", tarinfo=_Header) as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    name = member_name(member.name)
                    if name is None:
                        continue
                    if member.isreg():
                        found[name] = None if member.issparse() else (member.offset_data, member.size)
                    elif (member.issym() or member.islnk()) and (target := _leads_to(member)) is not None:
                        links[name] = target
                _check_end(tar)
        except DAMAGED as error:
            raise damaged(self.uri, error) from error
        return with_links(self.uri, found, links)

    def names(self) -> list[str]:
        return sorted(self._index)

    @cached_property
    def members(self) -> frozenset[str]:
        return frozenset(self._index)

    def span(self, archive: str, name: str) -> Ref:
        """Where the member `name` lies in this tar, which its folder calls `archive`."""
        place = self._index[name]
        return Inner(archive, name) if place is None else ByteRange(archive, name, *place)

    def open(self, name: str) -> IO[bytes]:
        return io.BufferedReader(_Slice(self._file, *_whole(self.uri, name, self._index[name])), 2**20)

    def read(self, name: str) -> bytes:
        return self.read_span(ByteRange("", name, *_whole(self.uri, name, self._index[name])))

    def read_span(self, span: ByteRange) -> bytes:
        """The bytes of a member. Raises DamagedMemberError where they are not all there, or too many."""
        check_size(f"{self.uri}/{span.member}", span.size)
        try:
            self._file.seek(span.offset)
            data = self._file.read(span.size)
        except OSError as error:
            raise DamagedMemberError(str(damaged(f"{self.uri}/{span.member}", error))) from error
        if len(data) < span.size:
            raise DamagedMemberError(f"{self.uri}/{span.member} is cut after {len(data)} of {span.size} bytes")
        return data


class _Joined(io.RawIOBase):
    """Files one after the other as one."""

    def __init__(self, pieces: Sequence[IO[bytes]]) -> None:
        self._pieces = pieces
        self._starts = [0]
        for piece in pieces:
            self._starts.append(self._starts[-1] + piece.seek(0, io.SEEK_END))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self._starts, self._at) - 1
        if number == len(self._pieces):
            return 0
        piece = self._pieces[number]
        piece.seek(self._at - self._starts[number])
        data = piece.read(min(len(buffer), self._starts[number + 1] - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
