"""Tables on the machine's own disk, shared by its processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from amvl_core.contracts.errors import StorageError


class DiskCache:
    """Tables by name in a folder of at most about `limit` bytes. When it is full, the oldest tables are removed.

    Any number of processes use it at once. One of them reads a table while the others wait. A process that has mapped a
    file can read it after it was removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def get(self, name: str, read: Callable[[], pa.Table]) -> pa.Table:
        """The table `name`, a hexadecimal digest of all that it depends on. `read` makes it if it is not there."""
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
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open(self.folder / f"{name[:2]}.lock", "w")  # noqa: SIM115
        except OSError as error:
            raise self._refused(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

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
