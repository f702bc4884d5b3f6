"""What every archive offers: members by name, whatever they are packed in.

A member whose name points outside of its archive does not exist: nothing can name it.
"""

from __future__ import annotations

import gzip
import lzma
import posixpath
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO

from amvl_core.contracts.errors import DataError
from data_prep.sources.table import Table

# What the decoders of archives raise.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)


class DamagedMemberError(DataError):
    """One member cannot be read; the rest of its archive can."""


@dataclass(frozen=True, slots=True)
class Inner:
    """A member of an archive that is itself a member."""

    archive: str
    member: str

    def __str__(self) -> str:
        return f"{self.member} of {self.archive}"


@dataclass(frozen=True, slots=True)
class Span:
    """A member of a tar that is itself a member: its bytes are `size` from `offset` on."""

    archive: str
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.member} of {self.archive}"


Ref = str | Inner | Span
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
        """A member as a seekable stream. Raises KeyError if it is not there, DataError if it cannot be read."""

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

    def read_span(self, span: Span) -> bytes:
        """The bytes of a member of a tar. Raises KeyError if there is none, DamagedMemberError if it is cut."""
        raise KeyError(span.member)

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


def resolve(base: str, relative: str) -> str | None:
    """The member that a file in the folder `base` calls `relative`; None if that is outside of the archive."""
    name = posixpath.normpath(posixpath.join(base, relative))
    return None if name.startswith(("../", "/")) or name == ".." else name


def member_name(name: str) -> str | None:
    """The name as a POSIX path inside of the archive, or None where it points outside."""
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts or "\0" in name else path.as_posix()
