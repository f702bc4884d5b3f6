"""Reads members of a folder, a tar or a zip, or one Parquet file, local or on S3, without unpacking it anywhere.

A tar can only be read from front to back, so it is read once into a spool (memory, and a temporary file beyond
`SPOOL_BYTES`) and its images travel with the rows. Members of folders and zips are read where they are needed.
A member whose name points outside of its archive does not exist: nothing can name it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from amvl_core import storage
from amvl_core.errors import DataError
from data_prep.sources.table import Table, damaged

SPOOL_BYTES = 256 * 2**20

# What the decoders of archives raise.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)
_DECOMPRESS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class DamagedMemberError(DataError):
    """One member cannot be read; the rest of its archive can."""


class Archive(ABC):
    """Named members. `sequential` archives are read by the process that opened them, others by any."""

    sequential = False

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._tables: dict[str, Table] = {}

    @abstractmethod
    def names(self) -> list[str]:
        """All files, as sorted relative POSIX paths."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A member as a seekable stream. Raises KeyError if it is not there, DataError if it cannot be read."""

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises KeyError if it is not there, DamagedMemberError if it cannot be read."""
        with self.open(name) as file:
            return file.read()

    def find(self, suffix: str) -> str | None:
        """The member that is called `suffix`, at the top or in the folder nearest to it."""
        found = [name for name in self.names() if name == suffix or name.endswith("/" + suffix)]
        return min(found, key=_depth, default=None)

    def table(self, name: str) -> Table:
        """A Parquet member, opened once. Raises DataError if it is damaged."""
        if name not in self._tables:
            self._tables[name] = Table(f"{self.uri}/{name}", self.open(name))
        return self._tables[name]

    def find_folder(self, name: str) -> str | None:
        """The folder that is called `name`, nearest to the top."""
        found = [folder for folder in self.folders if folder == name or folder.endswith("/" + name)]
        return min(found, key=_depth, default=None)

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder that holds a file, itself or further down; the top is the empty text."""
        found: set[str] = {""}
        for name in self.names():
            folder = posixpath.dirname(name)
            while folder not in found:
                found.add(folder)
                folder = posixpath.dirname(folder)
        return frozenset(found)

    @cached_property
    def members(self) -> frozenset[str]:
        """`names()`, for looking one up."""
        return frozenset(self.names())


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name


@contextmanager
def open_archive(uri: str) -> Iterator[Archive]:
    """The folder, tar(.gz, .bz2, .xz), zip or Parquet file at `uri`, told apart by content, not by name.

    Raises DataError if it is missing, damaged or of another kind.
    """
    fs, path = storage.filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        raise DataError(f"{uri} does not exist; give the path of a folder, a .tar.gz, a .zip or a .parquet")
    if fs.isdir(path):
        yield _Folder(uri, fs, path)
        return
    with _opened(uri, fs, path) as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            yield _Zip(uri, file)
        elif head.startswith(b"PAR1"):
            yield _File(uri, file)
        elif head[257:262] == b"ustar" or _compression(head):
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
                yield _Tar(uri, file, _compression(head), spool)
        else:
            raise DataError(f"{uri} is neither a folder nor a tar, zip or Parquet file; pack it as .tar.gz or .zip")


def _opened(uri: str, fs: Any, path: str) -> IO[bytes]:
    try:
        file: IO[bytes] = fs.open(path, "rb")
    except OSError as error:
        raise DataError(f"{uri} cannot be read: {error.strerror or error}") from error
    return file


def resolve(base: str, relative: str) -> str | None:
    """The member that a file in the folder `base` calls `relative`; None if that is outside of the archive."""
    name = posixpath.normpath(posixpath.join(base, relative))
    return None if name.startswith(("../", "/")) or name == ".." else name


def _compression(head: bytes) -> Any:
    return next((opener for magic, opener in _DECOMPRESS.items() if head.startswith(magic)), None)


def _member_name(name: str) -> str | None:
    """The name as a POSIX path inside of the archive, or None where it points outside."""
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts or "\0" in name else path.as_posix()


class _Folder(Archive):
    def __init__(self, uri: str, fs: Any, path: str) -> None:
        super().__init__(uri)
        self._fs, self._path = fs, path.rstrip("/")

    @cached_property
    def _names(self) -> list[str]:
        return sorted(name[len(self._path) :].lstrip("/") for name in self._fs.find(self._path))

    def names(self) -> list[str]:
        return self._names

    def find(self, suffix: str) -> str | None:
        # Listing a folder of many images takes long; most have their annotations at the top.
        return suffix if self._fs.isfile(f"{self._path}/{suffix}") else super().find(suffix)

    def _where(self, name: str) -> str:
        where = f"{self._path}/{name}"
        if _member_name(name) is None:
            raise KeyError(name)
        if isinstance(self._fs, LocalFileSystem):
            try:
                outside = not Path(where).resolve().is_relative_to(Path(self._path).resolve())
            except (OSError, RuntimeError) as error:  # a link that leads to itself
                raise KeyError(name) from error
            if outside:
                raise KeyError(name)
        return where

    def open(self, name: str) -> IO[bytes]:
        where = self._where(name)
        try:
            file: IO[bytes] = self._fs.open(where, "rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyError(name) from error
        except OSError as error:
            raise DamagedMemberError(f"{self.uri}/{name} cannot be read: {error.strerror or error}") from error
        return file

    def read(self, name: str) -> bytes:
        where = self._where(name)
        try:
            return bytes(self._fs.cat_file(where))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyError(name) from error
        except OSError as error:
            raise DamagedMemberError(f"{self.uri}/{name} cannot be read: {error.strerror or error}") from error


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


class _Zip(Archive):
    def __init__(self, uri: str, file: IO[bytes]) -> None:
        super().__init__(uri)
        try:
            self._zip = zipfile.ZipFile(file)
        except DAMAGED as error:
            raise damaged(uri, error) from error
        infos = [info for info in self._zip.infolist() if not info.is_dir()]
        named = [(_member_name(info.filename), info) for info in infos]
        self._members = {name: info for name, info in named if name is not None}

    def names(self) -> list[str]:
        return sorted(self._members)

    def open(self, name: str) -> IO[bytes]:
        # A compressed member can only be read forwards; Parquet is read from its end.
        if not name.endswith(".parquet"):
            return self._stream(name)
        spool = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115  it is the result
        try:
            with self._stream(name) as content:
                shutil.copyfileobj(content, spool, 2**20)
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
        except (*DAMAGED, NotImplementedError) as error:
            raise DamagedMemberError(str(damaged(f"{self.uri}/{name}", error))) from error

    def read(self, name: str) -> bytes:
        try:
            with self._stream(name) as content:
                return content.read()
        except DAMAGED as error:
            raise DamagedMemberError(str(damaged(f"{self.uri}/{name}", error))) from error


class _Tar(Archive):
    sequential = True

    def __init__(self, uri: str, file: IO[bytes], decompress: Any, spool: Any) -> None:
        super().__init__(uri)
        self._spool = spool
        self._members: dict[str, tuple[int, int]] = {}
        try:
            stream = decompress(file) if decompress else file
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    self._take(tar, member)
            # Past the end marker of the tar: a compressed stream that was cut there, or whose checksum is wrong, fails.
            while stream.read(2**20):
                pass
        except DAMAGED as error:
            raise damaged(uri, error) from error

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = _member_name(member.name)
        content = tar.extractfile(member) if member.isreg() else None
        if name is None or content is None:
            return
        offset = self._spool.tell()
        shutil.copyfileobj(content, self._spool, 2**20)
        self._members[name] = (offset, self._spool.tell() - offset)

    def names(self) -> list[str]:
        return sorted(self._members)

    def open(self, name: str) -> IO[bytes]:
        return io.BufferedReader(_Slice(self._spool, *self._members[name]), 2**20)

    def read(self, name: str) -> bytes:
        offset, size = self._members[name]
        self._spool.seek(offset)
        return bytes(self._spool.read(size))


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
