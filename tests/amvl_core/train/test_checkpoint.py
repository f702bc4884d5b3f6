"""When checkpoints are written; what is in them is in tests/distributed/test_checkpoint.py."""

from amvl_core.train.checkpoint import MAX_FAILED, Due


def tries(every: int, start: int, failures: int, count: int) -> list[int]:
    """The first steps after which a checkpoint is tried, of which the first `failures` fail."""
    due, found = Due(every, start), []
    while len(found) < count:
        found.append(due.next)
        due.tried(due.next, written=len(found) > failures)
    return found


def test_checkpoints_stand_on_a_grid_wherever_training_starts() -> None:
    assert tries(200, 0, 0, 3) == [200, 400, 600]
    assert tries(200, 203, 0, 2) == [400, 600]
    assert tries(200, 200, 0, 1) == [400]


def test_one_that_failed_is_tried_again_soon_and_then_less_often() -> None:
    assert tries(200, 0, 4, 7) == [200, 201, 203, 207, 215, 400, 600]
    assert tries(2, 0, 5, 8) == [2, 3, 5, 7, 9, 11, 12, 14]


def test_a_stage_bears_a_fault_of_more_than_two_intervals() -> None:
    found = tries(200, 0, MAX_FAILED, MAX_FAILED)
    assert found[-1] - found[0] == 455


def test_one_that_is_written_early_leaves_the_grid_as_it_is() -> None:
    due = Due(10, 0)
    due.tried(4, written=True)  # a machine was taken away
    assert due.next == 10
