"""What data and base models are, by content: the part of a fingerprint that does not depend on where they lie."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from amvl_core.contracts import storage
from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.visible import hidden, local_files

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_AT_ONCE = 4096
_THREADS = max(4, os.cpu_count() or 1)


def content_identity(uri: str) -> dict[str, Any]:
    """Size and MD5 of a file; of a folder, all names with theirs. Hidden files, times and places do not count.

    MD5 is used because an object store has it already: an ETag is one, unless the object was uploaded in parts. Such an
    object is read, as a local file is. Raises DataError if there is nothing at `uri`, and StorageError if the disk or
    the store does not answer.
    """
    with storage.reaching(uri, "read"):
        return _identity(uri)


def tokenizer_identity(model: ModelConfig) -> dict[str, Any]:
    """What token counts depend on: the tokenizer and the patch size, not the weights."""
    if model.base == "tiny":
        return {"base": "tiny", "patch_size": model.tiny.patch_size}
    folder = Path(model.base)
    files = [folder / name for name in ("tokenizer.json", "preprocessor_config.json")]
    present = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    return {"files": present} if present else {"base": model.base}


def _identity(uri: str) -> dict[str, Any]:
    fs, path = storage.filesystem(uri)
    if not fs.exists(path):
        raise DataError(f"{uri} does not exist; give the path of a folder, a .tar.gz or a .zip")
    local = isinstance(fs, LocalFileSystem)
    if not fs.isdir(path):
        size, digest = _local(path) if local else _stored(fs, (path, fs.info(path)))
        return {"size": size, "md5": digest}
    count = total = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for file in _local_folder(pool, path) if local else _stored_folder(pool, fs, path):
            count += 1
            # A sum of hashes: no list of a million files is held, and their order does not matter.
            total += int.from_bytes(hashlib.sha256(json.dumps(file).encode()).digest())
    return {"files": count, "listing": f"{total % 2**256:064x}"}


def _local_folder(pool: ThreadPoolExecutor, folder: str) -> Iterator[tuple[str, int, str]]:
    # What nothing can be read from, a link that leads nowhere, does not count.
    there = (name for name in local_files(folder) if os.path.exists(f"{folder}/{name}"))  # noqa: PTH110
    while names := list(itertools.islice(there, _AT_ONCE)):
        found = pool.map(_local, [f"{folder}/{name}" for name in names])
        yield from ((name, *file) for name, file in zip(names, found, strict=True))


def _stored_folder(pool: ThreadPoolExecutor, fs: Any, folder: str) -> Iterator[tuple[str, int, str]]:
    listed = ((name[len(folder) :].lstrip("/"), name, info) for name, info in fs.find(folder, detail=True).items())
    seen = [(name, (path, info)) for name, path, info in listed if not hidden(name)]
    found = pool.map(partial(_stored, fs), [file for _, file in seen])
    return ((name, *file) for (name, _), file in zip(seen, found, strict=True))


def _local(path: str) -> tuple[int, str]:
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size, _md5(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _stored(fs: Any, file: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    path, info = file
    if known := _MD5.fullmatch(str(info.get("ETag"))):
        return info["size"], known[1]
    with fs.open(path, "rb") as stream:
        return info["size"], _md5(stream)


def _md5(file: Any) -> str:
    return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
