"""Reads members of a folder, a tar or a zip, or one Parquet file, local or on S3, without unpacking it anywhere.

A tar can only be read from front to back, so it is read once into a spool (memory, and a temporary file beyond
`SPOOL_BYTES`) and its images travel with the rows. Members of folders and zips are read where they are needed.
Zips that lie in a folder, or in a folder of it, are part of it: what they hold is where they are.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import posixpath
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from amvl_core import storage
from amvl_core.errors import DataError
from data_prep.sources.members import DAMAGED, Archive, DamagedMemberError, Inner, member_name
from data_prep.sources.table import Table, damaged

SPOOL_BYTES = 256 * 2**20

_DECOMPRESS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


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


def _compression(head: bytes) -> Any:
    return next((opener for magic, opener in _DECOMPRESS.items() if head.startswith(magic)), None)


class _Folder(Archive):
    def __init__(self, uri: str, fs: Any, path: str) -> None:
        super().__init__(uri)
        self._fs, self._path = fs, path.rstrip("/")

        self._zips: list[str] | None = None
        self._inner: dict[str, _Zip] = {}

    @cached_property
    def _names(self) -> list[str]:
        names = {name[len(self._path) :].lstrip("/") for name in self._fs.find(self._path)}
        for name in self._find_zips():
            names.update(posixpath.join(posixpath.dirname(name), member) for member in self.inner(name).names())
        return sorted(names)

    def _find_zips(self) -> list[str]:
        if self._zips is None:
            paths: list[str] = []
            for pattern in ("*.zip", "*/*.zip"):
                if isinstance(self._fs, LocalFileSystem):
                    paths += [path.as_posix() for path in Path(self._path).glob(pattern)]
                else:
                    paths += self._fs.glob(f"{glob.escape(self._path)}/{pattern}")
            self._zips = sorted(path[len(self._path) :].lstrip("/") for path in paths)
        return self._zips

    def inner(self, name: str) -> Archive:
        if name not in self._inner:
            self._inner[name] = _Zip(f"{self.uri}/{name}", self._open(name))
        return self._inner[name]

    def located(self, name: str) -> str | Inner:
        for zipped in self._find_zips():
            folder = zipped[: zipped.rfind("/") + 1]
            if name.startswith(folder) and name[len(folder) :] in self.inner(zipped).members:
                return Inner(zipped, name[len(folder) :])
        return name

    def names(self) -> list[str]:
        return self._names

    def find(self, suffix: str) -> str | None:
        # Listing a folder of many images takes long; most have their annotations at the top.
        return suffix if self._fs.isfile(f"{self._path}/{suffix}") else super().find(suffix)

    def _where(self, name: str) -> str:
        where = f"{self._path}/{name}"
        if member_name(name) is None:
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
        found = self.located(name)
        return self.inner(found.archive).open(found.member) if isinstance(found, Inner) else self._open(name)

    def _open(self, name: str) -> IO[bytes]:
        where = self._where(name)
        try:
            file: IO[bytes] = self._fs.open(where, "rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyError(name) from error
        except OSError as error:
            raise DamagedMemberError(f"{self.uri}/{name} cannot be read: {error.strerror or error}") from error
        return file

    def read(self, name: str) -> bytes:
        # Whoever reads what somebody else has located need not look for zips.
        found = self.located(name) if self._zips else name
        if isinstance(found, Inner):
            return self.inner(found.archive).read(found.member)
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
        named = [(member_name(info.filename), info) for info in infos]
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
        name = member_name(member.name)
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
