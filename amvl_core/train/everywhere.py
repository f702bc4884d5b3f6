"""Work on all ranks whose failure is one rank's: each learns what the storage refused, and none waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from amvl_core.contracts.errors import StorageError


def everywhere(work: Callable[[], Any]) -> tuple[list[Any], str | None]:
    """What `work` gives on each rank, and what the storage refused on the first rank where it refused."""
    found: list[Any] = [None] * dist.get_world_size()
    mine: tuple[Any, str | None]
    try:
        mine = (work(), None)
    except StorageError as error:
        mine = (None, str(error))
    dist.all_gather_object(found, mine)
    return [value for value, _ in found], next((problem for _, problem in found if problem is not None), None)


def from_all(work: Callable[[], Any]) -> list[Any]:
    """What `work` gives on each rank, on every rank; what the storage refused is raised on every rank."""
    values, problem = everywhere(work)
    if problem is not None:
        raise StorageError(problem)
    return values


def on_first(work: Callable[[], None]) -> str | None:
    """Does `work` on rank 0; what the storage refused is told to every rank."""
    return everywhere(work if dist.get_rank() == 0 else _nothing)[1]


def from_first(work: Callable[[], Any]) -> Any:
    """What `work` gives on rank 0, on every rank; what the storage refused is raised on every rank."""
    return from_all(work if dist.get_rank() == 0 else _nothing)[0]


def _nothing() -> None:
    """What the other ranks do while rank 0 works."""
