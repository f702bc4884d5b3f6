"""What every archive offers: members by name, whatever they are packed in.

A member whose name points outside of its archive, or is hidden, does not exist: nothing can name it.
"""

from __future__ import annotations

import bisect
import bz2
import gzip
import io
import lzma
import posixpath
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO, Any, TypeVar

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.visible import hidden
from data_prep.sources.table import Table

T = TypeVar("T")

# What the decoders of archives raise.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)

COMPRESSED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}
BLOCK_BYTES = 2**16
MAX_MEMBER_BYTES = 2**32
"""Of a member that is read whole, a picture or a video: what is packed may be a thousand times its archive."""

MAX_LINKED = 100
"""Names that links in an archive may give, for each of its members."""


class DamagedMemberError(DataError):
    """One member cannot be read; the rest of its archive can."""


def check_size(where: str, size: int) -> None:
    """Raises DamagedMemberError where a member is too large to be read whole."""
    if size > MAX_MEMBER_BYTES:
        raise DamagedMemberError(f"{where} has {size:,} bytes; at most {MAX_MEMBER_BYTES:,} of one member are read")


class DeadLinkError(DataError):
    """A member is a link that leads nowhere."""


class _Streams(io.RawIOBase):
    """bz2 or xz streams, one behind the other. Python's own files take one that is damaged for the end."""

    def __init__(self, new: Callable[[], Any], file: IO[bytes]) -> None:
        self._new, self._file = new, file
        self._decoder = new()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset or whence != io.SEEK_SET:
            raise io.UnsupportedOperation("it is read from its start on")
        self._decoder = self._new()
        return self._file.seek(0)

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            block = b""
            if self._decoder.eof:
                block = self._decoder.unused_data.lstrip(b"\0")  # zeros are padding
                while not block and (more := self._file.read(BLOCK_BYTES)):
                    block = more.lstrip(b"\0")
                if not block:
                    return 0
                self._decoder = self._new()
            elif self._decoder.needs_input and not (block := self._file.read(BLOCK_BYTES)):
                raise EOFError("it ends within a compressed stream")
            data = self._decoder.decompress(block, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _streams(new: Callable[[], Any]) -> Callable[[IO[bytes]], IO[bytes]]:
    return lambda file: io.BufferedReader(_Streams(new, file), BLOCK_BYTES)


_OPENERS: dict[str, Any] = {
    ".gz": gzip.open,
    ".bz2": _streams(bz2.BZ2Decompressor),
    ".xz": _streams(lzma.LZMADecompressor),
}


def decompressor(head: bytes) -> Any:
    """What opens a file that begins like this; None where it is not compressed."""
    return next((_OPENERS[ending] for magic, ending in COMPRESSED.items() if head.startswith(magic)), None)


@dataclass(frozen=True, slots=True)
class Inner:
    """A member of an archive that is itself a member."""

    archive: str
    member: str

    def __str__(self) -> str:
        return f"{self.member} of {self.archive}"


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A member of a tar that is itself a member: its bytes are `size` from `offset` on."""

    archive: str
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.member} of {self.archive}"


Ref = str | Inner | ByteRange
"""Where a member is: under its name, or in an archive that is itself a member."""


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
        """A member as a seekable stream. Raises KeyError if it is not there, DataError if it cannot be read.

        A link that leads nowhere is a DeadLinkError.
        """

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises KeyError if it is not there, DamagedMemberError if it cannot be read."""
        with self.open(name) as file:
            return file.read()

    def located(self, name: str) -> Ref:
        """Where the member `name` is: anyone may read that without listing the archive."""
        return name

    def inner(self, name: str) -> Archive:
        """The archive that the member `name` is. Raises KeyError if there is none, DataError if it is damaged."""
        raise KeyError(name)

    def read_span(self, span: ByteRange) -> bytes:
        """The bytes of a member of a tar. Raises KeyError if there is none, DamagedMemberError if it is cut."""
        raise KeyError(span.member)

    def only(self, suffix: str) -> str | None:
        """The member that is called `suffix`, in whichever folder, compressed or not.

        Raises DataError if there are several: one of them would not be read, and nobody would know which.
        """
        asked = {suffix, *(suffix + ending for ending in COMPRESSED.values())}
        ends = tuple("/" + name for name in asked)
        found = sorted((name for name in self.names() if name in asked or name.endswith(ends)), key=_depth)
        if len(found) > 1:
            raise several(self.uri, found)
        return found[0] if found else None

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


def several(uri: str, found: list[str]) -> DataError:
    """What to tell a user of files of which one alone can be meant."""
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return DataError(
        f"{uri} holds {', '.join(found[:4])}{more}, and only one of them can be meant; give the folder of one, or each "
        "folder as a source of its own, or remove what is not to be read"
    )


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name


def resolve(base: str, relative: str) -> str | None:
    """The member that a file in the folder `base` calls `relative`; None if that is outside of the archive.

    Windows writes a backslash between the parts of a path.
    """
    name = posixpath.normpath(posixpath.join(base, relative.replace("\\", "/")))
    return None if name.startswith(("../", "/")) or name == ".." else name


def member_name(name: str) -> str | None:
    """The name as a POSIX path inside of the archive, or None where it points outside."""
    path = PurePosixPath(name.replace("\\", "/"))
    return None if path.is_absolute() or ".." in path.parts or "\0" in name else path.as_posix()


def with_links(uri: str, members: dict[str, T], links: dict[str, str]) -> dict[str, T]:
    """The visible members of an archive, also by the names that its links (name -> member or folder) give them.

    A link that leads out of the archive, nowhere or to a folder that it is in gives none. Raises DataError where
    links lead in circles.
    """
    found = dict(members)
    for _ in range(4 if links else 0):  # a link may lead to another
        known, new = sorted(found), dict[str, T]()
        for name, target in links.items():
            if target in found:
                new[name] = found[target]
            elif not f"{name}/".startswith(f"{target}/"):
                start, stop = (bisect.bisect_left(known, target + end) for end in ("/", "0"))  # "0" follows "/"
                new |= {name + inner[len(target) :]: found[inner] for inner in known[start:stop]}
        if new.keys() <= found.keys():
            break
        found |= new
        if len(found) > MAX_LINKED * (len(members) + len(links)):
            raise DataError(f"{uri}: its links lead in circles; pack it without them (tar -h)")
    return {name: member for name, member in found.items() if not hidden(name)}
