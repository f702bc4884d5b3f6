"""Which files of a folder belong to the data: not what an operating system or a tool leaves beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator

SYSTEM = frozenset({"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN"})


def hidden(name: str) -> bool:
    """Whether a file is no part of the data: it, or a folder that it is in, is hidden or of the system.

    `.DS_Store`, `._1.png`, `.git/`, `.cache/`, `__MACOSX/`, `Thumbs.db` are.
    """
    return any(part.startswith(".") or part in SYSTEM for part in name.split("/"))


def local_files(folder: str, depth: int | None = None) -> Iterator[str]:
    """Names of the files of a local folder and the folders in it, relative to it, `depth` folders down.

    Links are followed; a folder that is linked inside of itself is not entered again. A link that leads nowhere is
    listed as a file.
    """
    return _files(folder, "", depth, frozenset())


def _files(folder: str, below: str, depth: int | None, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    found = os.stat(folder)  # noqa: PTH116  a million of them
    here = found.st_dev, found.st_ino
    if here in above or depth == 0:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = below + entry.name
            if hidden(entry.name):
                continue
            if _is_folder(entry):
                yield from _files(entry.path, name + "/", None if depth is None else depth - 1, above | {here})
            elif entry.is_symlink() or entry.is_file():  # not a pipe or a socket
                yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
