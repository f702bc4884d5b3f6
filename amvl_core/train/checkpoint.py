"""Checkpoints to resume from, by any number of workers.

    {stage}/checkpoints/step-00000200/rank-00003-00000.safetensors    pieces of weights and moments (optimizer_state.py)
                                      history.json                    every step logged so far
                                      complete.json                   written last; lists pieces, sizes, SHA-256

A checkpoint without `complete.json` does not count. If the files are not what it lists, the checkpoint before is taken.
Nothing random is saved: the order of samples, the latent noise and the learning rate are functions of the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError
from safetensors import torch as safetensors

from amvl_core.contracts import storage
from amvl_core.contracts.errors import CheckpointError, StorageError
from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.progress import HISTORY, Progress, history_from_json, history_to_json
from amvl_core.train.engine import Engine
from amvl_core.train.everywhere import everywhere, from_all, from_first, on_first
from amvl_core.train.optimizer_state import Piece

MARKER = "complete.json"
FILE_BYTES = 256 * 2**20
"""Size of one file. A rank serialises one file at a time in memory and sends it off, so it needs no local copy."""
BYTES_PER_ELEMENT = 12
MAX_FAILED = 10
"""So many tries in a row to write a checkpoint may fail. Training goes on, but not for ever without a safe place.

With 200 steps between checkpoints the tenth is 455 steps after the first (`Due`).
"""


class Stored(Frozen):
    """A file of a checkpoint; `pieces` are first element, one past the last, and updates of each parameter in it."""

    size: int
    sha256: str
    pieces: dict[str, tuple[int, int, float]]


class Marker(Frozen):
    """`complete.json`."""

    step: int
    world_size: int
    files: dict[str, Stored]


class Due:
    """When to write a checkpoint: after every step that `every` divides, and sooner after one that failed.

    It is tried again 1 step later, then 2, 4, ... at most `every`: a short fault of the storage costs little time, and
    a long one does not stop every step for as long as the storage is asked again.
    """

    def __init__(self, every: int, start: int) -> None:
        self.every, self.pause = every, 0
        self.next = self._regular(start)

    def tried(self, done: int, written: bool) -> None:
        """Notes whether the try after step `done` was written."""
        self.pause = 0 if written else min(self.every, 2 * self.pause or 1)
        self.next = done + self.pause if self.pause else self._regular(done)

    def _regular(self, done: int) -> int:
        return (done // self.every + 1) * self.every


class Checkpoints:
    """The checkpoints of a stage below `uri`. Every rank calls every method, in the same order."""

    def __init__(self, uri: str, keep_last: int, warn: Callable[[str], None]) -> None:
        self.uri, self.keep_last, self.warn = uri, keep_last, warn
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.failed = 0

    def save(self, engine: Engine, step: int, history: list[Progress]) -> bool:
        """Writes the state after `step` optimiser steps, and keeps the last `keep_last`.

        `history` is rank 0's. If the storage fails, what was written is removed, there is a warning, and
        every rank returns False. The checkpoints before are as they were. Raises StorageError at the `MAX_FAILED`th
        failure in a row.
        """
        folder = storage.join(self.uri, _tag(step))
        share = engine.share(self.rank, self.world_size)
        files, problem = everywhere(partial(_write_pieces, folder, self.rank, share))
        if problem is None:
            problem = on_first(lambda: self._finish(folder, step, files, history))
        if problem is None:
            self.failed = 0
            problem = on_first(self._prune)
            self._say(f"old checkpoints could not be removed: {problem}" if problem else None)
            return True
        self.failed += 1
        on_first(lambda: storage.remove(folder))  # or it stays, without a marker, and goes with the next prune
        message = f"no checkpoint after step {step}: {problem}"
        if self.failed >= MAX_FAILED:
            raise StorageError(f"{message}; {self.failed} in a row have failed; mend the storage")
        self._say(f"{message}; training goes on and tries again, the checkpoints before are complete")
        return False

    def resume(self, engine: Engine) -> tuple[int, list[Progress]]:
        """Loads the last whole checkpoint. Returns its step (0 without one), and on rank 0 what was logged up to it."""
        while (marker := from_first(self._latest)) is not None:
            damage = self._damage(marker)
            if damage is None:
                self.load(engine, marker)
                uri = storage.join(self.uri, _tag(marker.step), HISTORY)
                content = from_first(partial(storage.read_bytes, uri))
                return marker.step, history_from_json(content) if self.rank == 0 else []
            from_first(partial(self._discard, _tag(marker.step), damage))
        return 0, []

    def load(self, engine: Engine, marker: Marker) -> None:
        """Takes weights, moments and step counts over into `engine`."""
        wanted = engine.pieces()
        _check_covered(wanted, marker)
        for piece in wanted:
            piece.step.zero_()
        from_all(partial(self._read, wanted, marker))
        engine.publish()

    def _read(self, wanted: list[Piece], marker: Marker) -> None:
        for name, stored in marker.files.items():
            if any(_overlap(piece, stored) for piece in wanted):
                tensors = safetensors.load(storage.read_bytes(storage.join(self.uri, _tag(marker.step), name)))
                for piece in wanted:
                    _copy(tensors, stored, piece)

    def _finish(self, folder: str, step: int, files: list[Any], history: list[Progress]) -> None:
        content = history_to_json(history)
        storage.write_bytes(storage.join(folder, HISTORY), content)
        stored = {name: file for part in files for name, file in part.items()} | {HISTORY: _stored(content, {})}
        marker = Marker(step=step, world_size=self.world_size, files=stored)
        storage.write_bytes(storage.join(folder, MARKER), marker.model_dump_json().encode())

    def _prune(self) -> None:
        keep = set(_complete(self.uri)[-self.keep_last :])
        for tag in storage.list_names(self.uri):
            if tag not in keep:
                storage.remove(storage.join(self.uri, tag, MARKER))  # first, so that it counts no longer
                storage.remove(storage.join(self.uri, tag))

    def _damage(self, marker: Marker) -> str | None:
        """What is wrong with a checkpoint's files, or None; each rank looks at a share of them."""
        found, problem = everywhere(partial(self._damage_here, marker))
        if problem is not None:
            raise StorageError(f"the checkpoint after step {marker.step} cannot be read: {problem}")
        return next((damage for damage in found if damage), None)

    def _damage_here(self, marker: Marker) -> str | None:
        for name, stored in list(marker.files.items())[self.rank :: self.world_size]:
            uri = storage.join(self.uri, _tag(marker.step), name)
            if not storage.exists(uri):
                return f"{name} is missing"
            content = storage.read_bytes(uri)
            if len(content) != stored.size:
                return f"{name} has {len(content)} bytes of {stored.size}"
            if hashlib.sha256(content).hexdigest() != stored.sha256:
                return f"{name} has another SHA-256"
        return None

    def _latest(self) -> Marker | None:
        """The last checkpoint that has a marker."""
        for tag in reversed(_complete(self.uri)):
            marker = _marker(self.uri, tag)
            if marker is not None:
                return marker
            self._discard(tag, f"{MARKER} is not readable")
        return None

    def _discard(self, tag: str, damage: str) -> None:
        """Makes a damaged checkpoint one that does not count."""
        self._say(f"the checkpoint {tag} is damaged ({damage}); the one before is taken")
        storage.remove(storage.join(self.uri, tag, MARKER))

    def _say(self, message: str | None) -> None:
        if self.rank == 0 and message is not None:
            self.warn(message)


def _write_pieces(folder: str, rank: int, pieces: list[Piece]) -> dict[str, Stored]:
    """Writes this rank's pieces, a file at a time."""
    files = {}
    for number, group in enumerate(_groups(pieces, FILE_BYTES // BYTES_PER_ELEMENT)):
        tensors = {f"{kind}/{piece.name}": value.cpu() for piece in group for kind, value in piece.tensors.items()}
        content = safetensors.save(tensors)
        name = f"rank-{rank:05d}-{number:05d}.safetensors"
        storage.write_bytes(storage.join(folder, name), content)
        files[name] = _stored(content, {p.name: (p.start, p.stop, float(p.step)) for p in group})
    return files


def _groups(pieces: list[Piece], limit: int) -> Iterator[list[Piece]]:
    """The pieces in order, in groups of at most `limit` elements; a piece is cut where a group is full."""
    group: list[Piece] = []
    left = limit
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + left)
            group.append(piece.part(start, stop))
            left -= stop - start
            start = stop
            if left == 0:
                yield group
                group, left = [], limit
    if group:
        yield group


def _overlap(piece: Piece, stored: Stored) -> tuple[int, int] | None:
    """The elements of `piece` that a file has."""
    first, last, _ = stored.pieces.get(piece.name, (0, 0, 0.0))
    start, stop = max(first, piece.start), min(last, piece.stop)
    return (start, stop) if start < stop else None


def _copy(tensors: dict[str, Any], stored: Stored, piece: Piece) -> None:
    if (span := _overlap(piece, stored)) is None:
        return
    first, _, step = stored.pieces[piece.name]
    target = piece.part(*span)
    for kind, value in target.tensors.items():
        value.copy_(tensors[f"{kind}/{piece.name}"][span[0] - first : span[1] - first])
    target.step.clamp_(min=step)


def _check_covered(wanted: list[Piece], marker: Marker) -> None:
    for piece in wanted:
        spans = [span for stored in marker.files.values() if (span := _overlap(piece, stored))]
        found = sum(stop - start for start, stop in spans)
        if found != piece.numel:
            raise CheckpointError(
                f"the checkpoint after step {marker.step} has {found} of {piece.numel} elements of {piece.name}: it is "
                "of another model; remove its folder to train the stage from its start"
            )


def _stored(content: bytes, pieces: dict[str, tuple[int, int, float]]) -> Stored:
    return Stored(size=len(content), sha256=hashlib.sha256(content).hexdigest(), pieces=pieces)


def _tag(step: int) -> str:
    return f"step-{step:08d}"


def _complete(uri: str) -> list[str]:
    return [tag for tag in storage.list_names(uri) if storage.exists(storage.join(uri, tag, MARKER))]


def _marker(uri: str, tag: str) -> Marker | None:
    try:
        return Marker.model_validate_json(storage.read_bytes(storage.join(uri, tag, MARKER)))
    except ValidationError:
        return None
