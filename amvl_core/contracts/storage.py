"""One URI for everything that is stored: a path, `file://` or `s3://`, through fsspec.

A write is whole or absent: it goes to a temporary name and is renamed (on S3 a put is atomic). An endpoint that fails
for a while is asked again, with growing pauses, for some 20 seconds; what it refuses for good is a StorageError.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR
from typing import IO, Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from safetensors import SafetensorError

from amvl_core.contracts.errors import StorageError
from amvl_core.contracts.loopback import past_proxies

_S3_OPTIONS = {"config_kwargs": {"retries": {"max_attempts": 10, "mode": "standard"}}}
"""The default gives up within seconds; AWS_MAX_ATTEMPTS and AWS_RETRY_MODE, where they are set, decide instead."""

LOCAL_STORAGE = ".amvl/storage"
"""The storage root of runs on one machine."""
LEFTOVER_S = 3600
_UNFINISHED = ".tmp"


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of `uri` and the path inside it. Nothing is kept of a listing: others write there too."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if uri.startswith("s3://"):
        past_proxies()  # the endpoint may be on this machine
        _check_endpoint()
        options |= _S3_OPTIONS if "AWS_MAX_ATTEMPTS" not in os.environ else {}
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise StorageError(f"cannot use {uri!r} as storage: {error}") from error
    if uri.startswith("s3://") and not path.strip("/"):
        raise StorageError(f"cannot use {uri!r} as storage: it names no bucket; write s3://bucket/folder")
    return fs, path


def _check_endpoint() -> None:
    """Raises StorageError where the environment names an endpoint of S3 that is no address."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        given = os.environ.get(name)
        if given and not given.startswith(("http://", "https://")):
            raise StorageError(f"{name} is {given!r}; begin it with http:// or https://, or unset it for Amazon's S3")


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


def local_folder(source: str) -> str:
    """A folder of this machine by its absolute path; what is none, such as a Hub id, as it is."""
    here = get_protocol(source) in LocalFileSystem.protocol
    return absolute(source) if here and os.path.isdir(local_path(source)) else source  # noqa: PTH112  Path's raises


def own_folder(folder: Path) -> bool:
    """Makes the folder. Whether it is this user's alone; another's may hold what that user planted there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    return S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


REFUSED = (OSError, BotoCoreError, ClientError, SafetensorError)
"""What a disk or an object store refuses with; safetensors has an error of its own for a full disk."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that has no room. An object store never does, and safetensors writes to none: the disk is ours."""


@contextmanager
def reaching(uri: str, action: str = "reach") -> Iterator[None]:
    """Turns what a disk or an object store refuses in the block into a StorageError that names `uri`."""
    try:
        yield
    except REFUSED as error:
        raise refused(uri, action, error) from error


def refused(uri: str, action: str, error: Exception) -> StorageError:
    """What to tell a user of one of `REFUSED`."""
    ours = isinstance(error, SafetensorError) or getattr(error, "errno", None) in _FULL
    if ours and not is_local(uri):
        uri, action = tempfile.gettempdir(), "write"
    hint = "; set TMPDIR to a disk with room" if uri == tempfile.gettempdir() else ""
    missing = isinstance(error, FileNotFoundError)
    said = "it does not exist" if missing else getattr(error, "strerror", None) or error
    return StorageError(f"cannot {action} {uri}: {said}{hint}")


class RemoteFile(io.RawIOBase):
    """A file of an object store: what the store refuses is a StorageError, and never taken for a damaged file."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self._uri, self._file = uri, file

    def readable(self) -> bool:
        """Always true: the store opens it for reading."""
        return True

    def seekable(self) -> bool:
        """Always true: the store reads from any byte on."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """As of any file. Raises StorageError."""
        with reaching(self._uri, "read"):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """As of any file. Raises StorageError."""
        with reaching(self._uri, "read"):
            return self._file.read()

    def close(self) -> None:
        """As of any file."""
        self._file.close()
        super().close()


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    with reaching(uri):
        return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    fs, path = filesystem(uri)
    with reaching(uri, "read"):
        return bytes(fs.cat_file(path))


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """The file open for reading parts of it."""
    fs, path = filesystem(uri)
    with reaching(uri, "read"), fs.open(path, "rb") as file:
        yield file


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing; a StorageError says what the storage refused."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        with writing(uri) as file:
            file.write_bytes(data)
        return
    with reaching(uri, "write"):
        fs.pipe_file(path, data)


@contextmanager
def writing(uri: str) -> Iterator[Path]:
    """A local file to write that becomes `uri`, whole, when the block ends; an error in the block leaves nothing."""
    fs, path = filesystem(uri)
    with reaching(uri, "write"):
        if isinstance(fs, LocalFileSystem):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_UNFINISHED}")
            try:
                yield temporary
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="amvl-") as folder:
            temporary = Path(folder) / "part"
            yield temporary
            fs.put_file(str(temporary), path)


def remove_leftovers(uri: str) -> None:
    """Removes what writers that were killed over an hour ago left in a local folder; a store keeps no such things."""
    if is_local(uri):
        for file in local_path(uri).glob(f".*{_UNFINISHED}"):
            if time.time() - file.stat().st_mtime > LEFTOVER_S:
                file.unlink(missing_ok=True)


def copy(source: str, target: str) -> None:
    """`source` also at `target`, on the same storage: a hard link where there can be one, else a copy in the store."""
    fs, path = filesystem(source)
    if not isinstance(fs, LocalFileSystem):
        with reaching(target, "write"):
            fs.cp_file(path, filesystem(target)[1])
        return
    with writing(target) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)


def remove(uri: str) -> None:
    """Removes a file or folder if it is there."""
    fs, path = filesystem(uri)
    with reaching(uri, "remove"):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def list_names(uri: str) -> list[str]:
    """The sorted names directly in a folder; empty if it is not there."""
    fs, path = filesystem(uri)
    with reaching(uri, "list"):
        if not fs.exists(path):
            return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def upload(folder: Path, uri: str) -> None:
    """Copies every file under `folder` to `uri`, each whole or absent."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            target = join(uri, file.relative_to(folder).as_posix())
            fs, path = filesystem(target)
            if isinstance(fs, LocalFileSystem):
                with writing(target) as temporary:
                    shutil.copyfile(file, temporary)
            else:
                with reaching(target, "write"):
                    fs.put_file(str(file), path)


def download(uri: str, folder: Path) -> Path:
    """Brings the folder at `uri` to `folder`; a local `uri` is returned as it is, without a copy."""
    fs, path = filesystem(uri)
    with reaching(uri, "read"):
        if not fs.exists(path):
            raise FileNotFoundError
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
