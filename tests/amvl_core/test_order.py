import numpy as np
import pytest

from amvl_core.data.order import global_batch, micro_batches, num_steps

LENGTHS = np.random.default_rng(0).integers(10, 500, 103)


def test_every_sample_is_seen_once_per_epoch_and_no_batch_is_short() -> None:
    seen = np.concatenate([global_batch(1, step, 16, LENGTHS) for step in range(103)])  # 16 epochs in 103 steps
    assert len(seen) == 16 * 103
    assert (np.bincount(seen, minlength=103) == 16).all()


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_workers(world_size: int) -> None:
    whole = global_batch(1, 7, 16, LENGTHS)
    blocks = [micro_batches(whole, rank, world_size, 2) for rank in range(world_size)]
    assert sorted(np.concatenate([np.concatenate(b) for b in blocks])) == sorted(whole)
    assert {len(b) for b in blocks} == {8 // world_size}


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    first = global_batch(1, 0, 100, LENGTHS)
    assert (first == global_batch(1, 0, 100, LENGTHS)).all()
    assert set(first) != set(global_batch(2, 0, 100, LENGTHS))
    assert set(first) != set(global_batch(1, 1, 100, LENGTHS))


def test_neighbours_in_length_stand_together() -> None:
    whole = global_batch(1, 0, 96, LENGTHS)
    assert (np.diff(LENGTHS[whole]) >= 0).all()


def test_number_of_steps() -> None:
    assert num_steps(None, 7, 100, 10) == 7
    assert num_steps(1.5, None, 100, 16) == 10
    assert num_steps(0.001, None, 100, 16) == 1
