"""Reads members of a folder, a tar or a zip, local or on S3, without unpacking it anywhere.

A tar can only be read from front to back, so it is read once into a spool (memory, and a temporary file beyond
`SPOOL_BYTES`) and its images travel with the rows. Members of folders and zips are read where they are needed.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import posixpath
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from fsspec.implementations.local import LocalFileSystem

from amvl_core import storage
from amvl_core.errors import DataError

SPOOL_BYTES = 256 * 2**20

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)
_DECOMPRESS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class Archive(Protocol):
    """Named members. `sequential` archives are read by the process that opened them, others by any."""

    uri: str
    sequential: bool

    def names(self) -> list[str]:
        """All files, as sorted relative POSIX paths."""

    def find(self, suffix: str) -> str | None:
        """The member that is called `suffix`, at the top or in the folder nearest to it."""

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises KeyError if it is not there, DataError if the archive is damaged."""


@contextmanager
def open_archive(uri: str) -> Iterator[Archive]:
    """The folder, tar(.gz, .bz2, .xz) or zip at `uri`, told apart by content, not by name.

    Raises DataError if it is missing, damaged, of another kind, or holds names that point outside of it.
    """
    fs, path = storage.filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        raise DataError(f"{uri} does not exist; give the path of a folder, a .tar.gz or a .zip")
    if fs.isdir(path):
        yield _Folder(uri, fs, path)
        return
    with _opened(uri, fs, path) as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            yield _Zip(uri, file)
        elif head[257:262] == b"ustar" or _compression(head):
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
                yield _Tar(uri, file, _compression(head), spool)
        else:
            raise DataError(f"{uri} is neither a folder nor a tar or zip archive; pack it as .tar.gz or .zip")


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


def _damaged(uri: str, error: Exception) -> DataError:
    return DataError(
        f"{uri} is damaged or incomplete ({type(error).__name__}: {error}); download or pack it again and "
        "compare its checksum"
    )


def _member_name(uri: str, name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{uri} holds a member called {name!r}, which points outside of the archive; pack it again")
    return path.as_posix()


def _nearest(names: list[str], suffix: str) -> str | None:
    found = [name for name in names if name == suffix or name.endswith("/" + suffix)]
    return min(found, key=lambda name: (name.count("/"), name), default=None)


class _Folder:
    sequential = False

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self.uri, self._fs, self._path = uri, fs, path.rstrip("/")
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        if self._names is None:
            self._names = sorted(name[len(self._path) :].lstrip("/") for name in self._fs.find(self._path))
        return self._names

    def find(self, suffix: str) -> str | None:
        # Listing a folder of many images takes long; most have their annotations at the top.
        if self._fs.isfile(f"{self._path}/{suffix}"):
            return suffix
        return _nearest(self.names(), suffix)

    def read(self, name: str) -> bytes:
        where = f"{self._path}/{_member_name(self.uri, name)}"
        if isinstance(self._fs, LocalFileSystem):
            root = Path(self._path).resolve()
            if not Path(where).resolve().is_relative_to(root):
                raise KeyError(name)
        try:
            return bytes(self._fs.cat_file(where))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyError(name) from error
        except OSError as error:
            raise DataError(f"{self.uri}/{name} cannot be read: {error.strerror or error}") from error


class _Zip:
    sequential = False

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self.uri = uri
        try:
            self._zip = zipfile.ZipFile(file)
        except _DAMAGED as error:
            raise _damaged(uri, error) from error
        infos = [info for info in self._zip.infolist() if not info.is_dir()]
        self._members = {_member_name(uri, info.filename): info for info in infos}

    def names(self) -> list[str]:
        return sorted(self._members)

    def find(self, suffix: str) -> str | None:
        return _nearest(self.names(), suffix)

    def read(self, name: str) -> bytes:
        info = self._members[name]
        if info.flag_bits & 1:
            raise DataError(f"{self.uri} is encrypted; pack it without a password")
        try:
            return self._zip.read(info)
        except (*_DAMAGED, NotImplementedError) as error:
            raise _damaged(self.uri, error) from error


class _Tar:
    sequential = True

    def __init__(self, uri: str, file: IO[bytes], decompress: Any, spool: Any) -> None:
        self.uri, self._spool = uri, spool
        self._members: dict[str, tuple[int, int]] = {}
        try:
            stream = decompress(file) if decompress else file
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    self._take(tar, member)
            # Past the end marker of the tar: a compressed stream that was cut there, or whose checksum is wrong, fails.
            while stream.read(2**20):
                pass
        except _DAMAGED as error:
            raise _damaged(uri, error) from error

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = _member_name(self.uri, member.name)
        content = tar.extractfile(member) if member.isreg() else None
        if content is None:
            return
        offset = self._spool.tell()
        shutil.copyfileobj(content, self._spool, 2**20)
        self._members[name] = (offset, self._spool.tell() - offset)

    def names(self) -> list[str]:
        return sorted(self._members)

    def find(self, suffix: str) -> str | None:
        return _nearest(self.names(), suffix)

    def read(self, name: str) -> bytes:
        offset, size = self._members[name]
        self._spool.seek(offset)
        return bytes(self._spool.read(size))
