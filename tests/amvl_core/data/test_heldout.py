from itertools import pairwise

import numpy as np
import pytest

from amvl_core.data.heldout import (
    evaluations,
    heldout_batches,
    heldout_rows,
    interval,
    num_heldout,
    repeats,
    smallest_hashes,
)

NAMES = np.array([f"made/{number}" for number in range(400)], dtype=object)


def held(names: np.ndarray, samples: int, seed: int) -> np.ndarray:
    return heldout_rows(smallest_hashes(names, 0, samples, seed), samples, len(names))


def test_which_samples_are_held_out_follows_from_their_names_and_the_seed() -> None:
    found = held(NAMES, 40, seed=0)
    assert (np.diff(found) > 0).all() and len(found) == 40
    order = np.random.default_rng(0).permutation(len(NAMES))
    assert set(NAMES[order][held(NAMES[order], 40, seed=0)]) == set(NAMES[found]), "not from their places"
    assert set(held(NAMES, 40, seed=1)) != set(found)
    nested = [set(held(NAMES, samples, seed=0)) for samples in (16, 30, 40)]
    assert all(few < more for few, more in pairwise(nested))


def test_rows_that_are_added_take_the_place_of_few() -> None:
    before, after = (set(names[held(names, 30, seed=0)]) for names in (NAMES[:360], NAMES))
    assert len(before & after) >= 24


@pytest.mark.parametrize(
    ("asked", "rows", "held"), [(64, 8000, 64), (64, 300, 30), (64, 160, 16), (64, 159, 0), (0, 9, 0)]
)
def test_a_small_split_holds_out_a_tenth_or_none(asked: int, rows: int, held: int) -> None:
    assert num_heldout(asked, rows) == held


def test_the_interval_keeps_the_cost() -> None:
    assert interval(7, 64, 32) == 7
    assert interval(None, 64, 32) == 50  # two steps' samples, forward alone: one step's time in fifty
    assert interval(None, 16, 4096) == 1
    assert [evaluations(steps, 50) for steps in (1, 50, 51, 200)] == [1, 1, 2, 4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 40])
def test_every_sample_counts_once_whatever_the_number_of_workers(world_size: int) -> None:
    tokens = np.random.default_rng(0).integers(10, 100, len(NAMES))
    rows = held(NAMES, 17, seed=0)
    turns = heldout_batches(rows, tokens, world_size, budget=150)
    counted = []
    for rank in range(world_size):
        mine = [turn[rank] for turn in turns]
        assert all(len(batch) and (len(batch) == 1 or tokens[batch].sum() <= 150) for batch in mine)
        counted += np.concatenate(mine[: len(mine) - repeats(len(rows), world_size, rank)] or [rows[:0]]).tolist()
    assert sorted(counted) == rows.tolist()
