"""Tables on the machine's own disk, shared by its processes."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from amvl_core.contracts import storage
from amvl_core.contracts.errors import StorageError


class DiskCache:
    """Tables by name in a folder of at most about `limit` bytes. When it is full, the oldest tables are removed.

    Any number of processes use it at once. One of them reads a table while the others wait. A process that has mapped a
    file can read it after it was removed. Nothing is kept in a folder that another user may write to: the name is no
    secret, and whoever makes it first could plant tables there.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.foreign = False

    def get(self, name: str, read: Callable[[], pa.Table]) -> pa.Table:
        """The table `name`, a hexadecimal digest of all that it depends on. `read` makes it if it is not there."""
        if not self._is_own():
            return read()
        file = self.folder / f"{name}.arrow"
        with self._alone(name):
            try:
                with pa.memory_map(str(file)) as mapped:
                    return pa.ipc.open_file(mapped).read_all()
            except (FileNotFoundError, pa.ArrowInvalid):
                table = read()
                self._store(file, table)
                return table

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Holds one of 256 locks. A lock ends with the process that holds it."""
        try:
            file = os.open(self.folder / f"{name[:2]}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._refused(error) from error
        with os.fdopen(file) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _is_own(self) -> bool:
        """Makes the folder. Whether it is this user's alone; where it is not, a warning says so once."""
        if self.foreign:
            return False
        try:
            self.foreign = not storage.own_folder(self.folder)
        except OSError as error:
            raise self._refused(error) from error
        if self.foreign:
            warnings.warn(
                f"{self.folder} is a link, another user's, or may be written to by others, so no row group is kept "
                "there and each process reads its own; remove it, or set TMPDIR to a folder of your own",
                RuntimeWarning,
                stacklevel=2,
            )
        return not self.foreign

    def _store(self, file: Path, table: pa.Table) -> None:
        temporary = file.with_suffix(f".{os.getpid()}")
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            temporary.replace(file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._refused(error) from error
        self._make_room()

    def _make_room(self) -> None:
        found = []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:  # gone meanwhile
                continue
            found.append((status.st_mtime_ns, status.st_size, entry.path))
        excess = sum(size for _, size, _ in found) - self.limit
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            if size:  # a lock has none
                Path(path).unlink(missing_ok=True)
            excess -= size

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"cannot keep row groups in {self.folder}: {error}; set TMPDIR to a disk with room")
