"""What data and base models are, by content: the part of a fingerprint that does not depend on where they lie."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from amvl_core.contracts import storage
from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.encoders import BASE, TINY, EncoderConfig
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.visible import hidden, local_files

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_AT_ONCE = 4096
_THREADS = max(4, os.cpu_count() or 1)
_SETTLED_NS = 2 * 10**9
"""For so long after a change, another one may leave a file's times as they are: clocks of file systems are coarse."""
_COUNTED_BY = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files that `load_processor` takes something from, as transformers writes them or wrote them before version 5."""

_known: dict[str, tuple[int, dict[str, Any]]] = {}
"""By URI: what tells whether a file has changed since this process read all, and what it found."""


def content_identity(uri: str) -> dict[str, Any]:
    """Size and MD5 of a file; of a folder, all names with theirs. Hidden files, times and places do not count.

    MD5 is used because an object store has it already: an ETag is one, unless the object was uploaded in parts. Such an
    object is read, as a local file is. A process reads them once. Later it only looks whether a file has changed, by
    its times or its ETag. Raises DataError if there is nothing at `uri`, and StorageError if the disk or the store does
    not answer.
    """
    with storage.reaching(uri, "read"):
        return _identity(uri)


def encoder_identity(encoder: EncoderConfig) -> str | dict[str, Any]:
    """What the features of a frozen encoder depend on beside its size: what a folder holds, else the source's name."""
    folder = encoder.stored or encoder.source
    named = folder == BASE or folder.startswith(TINY) or not storage.exists(folder)
    return encoder.source if named else content_identity(folder)


def tokenizer_identity(model: ModelConfig) -> dict[str, Any]:
    """What token counts depend on: the tokenizer, the chat template and the patch size, not the weights."""
    if model.base == "tiny":
        return {"base": "tiny", "patch_size": model.tiny.patch_size}
    files = [Path(model.base, name) for name in _COUNTED_BY]
    present = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    return {"files": present} if present else {"base": model.base}


def _identity(uri: str) -> dict[str, Any]:
    fs, path = storage.filesystem(uri)
    if not fs.exists(path):
        raise DataError(f"{uri} does not exist; give the path of a folder, a .tar.gz or a .zip")
    local = isinstance(fs, LocalFileSystem)
    stamp, read = (_stamp, _local) if local else (_etag, partial(_stored, fs))
    folder = fs.isdir(path)
    listed = (_local_folder if local else partial(_stored_folder, fs)) if folder else partial(_alone, fs)
    with ThreadPoolExecutor(_THREADS) as pool:
        if uri in _known:
            before, identity = _known[uri]
            if before == sum(_number(name, found) for name, found in _each(pool, stamp, listed(path))):
                return identity
        # Sums of hashes: no list of a million files is held, and their order does not matter.
        count = listing = stamps = 0
        for name, (found, size, digest) in _each(pool, read, listed(path)):
            count += 1
            listing += _number(name, size, digest)
            stamps += _number(name, found)
    identity = {"files": count, "listing": f"{listing % 2**256:064x}"} if folder else {"size": size, "md5": digest}
    _known[uri] = stamps, identity
    return identity


def _number(*about: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(about).encode()).digest())


def _each(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], files: Iterator[tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """What `function` gives of where each file is, some at once."""
    while some := list(itertools.islice(files, _AT_ONCE)):
        for (name, _), found in zip(some, pool.map(function, [where for _, where in some]), strict=True):
            yield name, found


def _alone(fs: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield "", path if isinstance(fs, LocalFileSystem) else (path, fs.info(path))


def _local_folder(folder: str) -> Iterator[tuple[str, str]]:
    # What nothing can be read from, a link that leads nowhere, does not count.
    files = ((name, f"{folder}/{name}") for name in local_files(folder))
    return ((name, path) for name, path in files if os.path.exists(path))  # noqa: PTH110


def _stored_folder(fs: Any, folder: str) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    listed = ((path[len(folder) :].lstrip("/"), path, info) for path, info in fs.find(folder, detail=True).items())
    return ((name, (path, info)) for name, path, info in listed if not hidden(name))


def _stamp(file: str | int) -> Any:
    """Another one where a file has changed. Of one that changed just now always another: see `_SETTLED_NS`."""
    now, found = time.time_ns(), os.stat(file)  # noqa: PTH116
    if now - found.st_ctime_ns < _SETTLED_NS:
        return now
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _etag(file: tuple[str, dict[str, Any]]) -> str:
    return str(file[1].get("ETag") or time.time_ns())


def _local(path: str) -> tuple[Any, int, str]:
    try:
        with open(path, "rb") as file:
            return _stamp(file.fileno()), os.fstat(file.fileno()).st_size, _md5(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _stored(fs: Any, file: tuple[str, dict[str, Any]]) -> tuple[str, int, str]:
    path, info = file
    if known := _MD5.fullmatch(etag := _etag(file)):
        return etag, info["size"], known[1]
    with fs.open(path, "rb") as stream:
        return etag, info["size"], _md5(stream)


def _md5(file: Any) -> str:
    return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
