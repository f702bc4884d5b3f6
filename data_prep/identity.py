"""What an archive is, by content: the part of a dataset's fingerprint that does not depend on where it lies."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from amvl_core import storage
from amvl_core.errors import DataError

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
        files = fs.find(path, detail=True)
        listing = [[name[len(path) :].lstrip("/"), *_version(files[name]).items()] for name in sorted(files)]
        return {"files": len(listing), "listing": hashlib.sha256(json.dumps(listing).encode()).hexdigest()}
    info = fs.info(path)
    if isinstance(fs, LocalFileSystem) and info["size"] <= HASHED_BYTES:
        try:
            with open(path, "rb") as file:
                return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as error:
            raise DataError(f"{uri} cannot be read: {error.strerror or error}") from error
    return _version(info)


def _version(info: dict[str, Any]) -> dict[str, Any]:
    version = info.get("ETag") or info.get("mtime")
    return {"size": info["size"], "version": str(version)}
