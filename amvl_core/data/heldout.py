"""Samples of the training split that no stage trains on: which they are, when their loss is taken, and by which rank.

Which they are depends on the samples' names and `data.seed` alone. So all stages, all rows of an ablation table and all
seeds of a run hold out the same ones of a dataset, and most of them stay when rows are added.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from heapq import nsmallest

import numpy as np

from amvl_core.contracts.config import MIN_HELDOUT
from amvl_core.data.order import micro_batches

MOST_ROWS = 0.1
"""Share of the split that is held out at most."""
COST = 0.02
"""Share of a stage's time that the held-out loss may take where `heldout.every` is not given."""
FORWARD = 0.5
"""Share of a sample's training step that its forward pass takes, at most: the backward pass costs as much or more."""


def num_heldout(samples: int, rows: int) -> int:
    """How many of `rows` are held out where `samples` are asked for. 0, if the split is too small for `MIN_HELDOUT`."""
    found = min(samples, int(rows * MOST_ROWS))
    return found if found >= MIN_HELDOUT else 0


Hashed = tuple[bytes, int]
"""The hash of a sample's name, and its row."""


def smallest_hashes(names: Iterable[str], first: int, samples: int, seed: int) -> list[Hashed]:
    """Of rows from `first` on, those `samples` whose names have the smallest hashes: no others can be held out."""
    rows = enumerate(names, first)
    return nsmallest(samples, ((hashlib.sha256(f"{seed}/{name}".encode()).digest(), row) for row, name in rows))


def heldout_rows(hashed: Iterable[Hashed], samples: int, rows: int) -> np.ndarray:
    """The rows that are held out of so many `rows`, in ascending order; `hashed` are the `smallest_hashes` of all."""
    found = nsmallest(num_heldout(samples, rows), hashed)
    return np.array(sorted(row for _, row in found), dtype=np.int64)


def interval(every: int | None, heldout: int, global_batch: int) -> int:
    """Optimiser steps between two held-out losses; `every`, or as many as keep the cost at `COST`."""
    return every or math.ceil(heldout / global_batch * FORWARD / COST)


def evaluations(steps: int, every: int) -> int:
    """How often a stage takes the held-out loss: at each multiple of `every`, and after the last step."""
    return math.ceil(steps / every)


def heldout_batches(rows: np.ndarray, num_tokens: np.ndarray, world_size: int, budget: int) -> list[list[np.ndarray]]:
    """The held-out rows in turns, in each of them a micro-batch for every rank, as `micro_batches` divides them.

    If the ranks do not divide their number, the last turn has one sample a rank. Ranks for which none is left run the
    first one again, because all ranks have to call the same modules. It does not count (`repeats`).
    """
    ordered = rows[np.argsort(-num_tokens[rows], kind="stable")]
    whole = len(rows) - len(rows) % world_size
    turns = micro_batches(ordered[:whole], num_tokens, world_size, budget) if whole else []
    left = ordered[whole:]
    return [*turns, [left[[rank if rank < len(left) else 0]] for rank in range(world_size)]] if len(left) else turns


def repeats(heldout: int, world_size: int, rank: int) -> bool:
    """Whether the rank's last micro-batch is another rank's."""
    return 0 < heldout % world_size <= rank
