"""One URI for everything that is stored: a path, `file://` or `s3://`, through fsspec.

A write is whole or absent: `write_bytes` goes to a temporary name and is renamed (on S3 a put is atomic).
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from amvl_core.errors import StorageError


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of `uri` and the path inside it."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise StorageError(f"cannot use {uri!r} as storage: {error}") from error
    return fs, path


def is_local(uri: str) -> bool:
    """Whether `uri` is on this machine's own file system."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def local_path(uri: str) -> Path:
    """`uri` as an absolute path; a StorageError if it is not local."""
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        raise StorageError(f"{uri} is not a local path")
    return Path(path)


def join(uri: str, *parts: str) -> str:
    """`uri` with path components appended."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A relative local path made absolute, so that a process with another working directory finds it."""
    return str(local_path(uri)) if is_local(uri) else uri.rstrip("/")


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    fs, path = filesystem(uri)
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise StorageError(f"{uri} does not exist") from error


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing; a StorageError says what the storage refused."""
    fs, path = filesystem(uri)
    try:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {uri}: {error.strerror or error}") from error


def remove(uri: str) -> None:
    """Removes a file or folder if it is there."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def list_names(uri: str) -> list[str]:
    """The sorted names directly in a folder; empty if it is not there."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def upload(folder: Path, uri: str) -> None:
    """Copies every file under `folder` to `uri`, each whole or absent."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            fs, path = filesystem(join(uri, file.relative_to(folder).as_posix()))
            try:
                if isinstance(fs, LocalFileSystem):
                    target = Path(path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
                    fs.put_file(str(file), str(temporary))
                    temporary.replace(target)
                else:
                    fs.put_file(str(file), path)
            except OSError as error:
                raise StorageError(f"cannot write {join(uri, file.name)}: {error.strerror or error}") from error


def download(uri: str, folder: Path) -> Path:
    """Brings the folder at `uri` to `folder`; a local `uri` is returned as it is, without a copy."""
    fs, path = filesystem(uri)
    if not fs.exists(path):
        raise StorageError(f"{uri} does not exist")
    if isinstance(fs, LocalFileSystem):
        return Path(path)
    for remote in sorted(fs.find(path)):
        target = folder / remote[len(path) :].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(remote, str(target))
    return folder


def check_writable(uri: str) -> None:
    """Writes and removes a probe file; a StorageError says why the storage root cannot be used."""
    probe = join(uri, f".probe-{uuid.uuid4().hex}")
    write_bytes(probe, b"\0" * 4096)
    remove(probe)
