"""What an archive is, by content: the part of a dataset's fingerprint that does not depend on where it lies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError

HASHED_BYTES = 512 * 2**20
"""A larger local file is identified by size and modification time: hashing it would take longer than a second."""


def content_identity(uri: str) -> dict[str, Any]:
    """SHA-256 of a local file; size and ETag on S3; names, sizes and times (or ETags) of a folder's files.

    Raises DataError if there is nothing at `uri`, StorageError where the store does not answer.
    """
    with storage.reaching(uri, "read"):
        return _identity(uri)


def _identity(uri: str) -> dict[str, Any]:
    fs, path = storage.filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        raise DataError(f"{uri} does not exist; give the path of a folder, a .tar.gz or a .zip")
    if fs.isdir(path):
        return _folder(_local_files(path) if isinstance(fs, LocalFileSystem) else _stored_files(fs, path))
    info = fs.info(path)
    if isinstance(fs, LocalFileSystem) and info["size"] <= HASHED_BYTES:
        try:
            with open(path, "rb") as file:
                return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as error:
            raise DataError(f"{uri} cannot be read: {error.strerror or error}") from error
    return {"size": info["size"], "version": _version(info)}


def _folder(files: Iterator[tuple[str, int, str]]) -> dict[str, Any]:
    """Of (name, size, version) of files in any order: a sum of hashes, so that no list of a million files is held."""
    count = total = 0
    for file in files:
        count += 1
        total += int.from_bytes(hashlib.sha256(json.dumps(file).encode()).digest())
    return {"files": count, "listing": f"{total % 2**256:064x}"}


def _local_files(folder: str, below: str = "") -> Iterator[tuple[str, int, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _local_files(entry.path, f"{below}{entry.name}/")
            else:
                found = entry.stat(follow_symlinks=os.path.exists(entry.path))  # noqa: PTH110  a link may lead nowhere
                yield f"{below}{entry.name}", found.st_size, str(found.st_mtime)


def _stored_files(fs: Any, path: str) -> Iterator[tuple[str, int, str]]:
    for name, info in fs.find(path, detail=True).items():
        yield name[len(path) :].lstrip("/"), info["size"], _version(info)


def _version(info: dict[str, Any]) -> str:
    return str(info.get("ETag") or info.get("mtime"))
