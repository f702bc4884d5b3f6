"""What workers are told: all of a group the same, whatever comes between their questions."""

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.progress import Progress
from infra.mailbox import Job, Mailbox, News

FIRST, SECOND = Job(uri="first"), Job(uri="second")


def test_one_job_follows_another_and_a_worker_that_is_late_gets_the_same() -> None:
    box = Mailbox()
    assert box.post(FIRST)
    assert box.take(0, False) == box.take(0, False) == (1, FIRST)
    box.put(Progress("sft", 1, 1, "steps"))
    assert not box.news().over
    box.finish(1)
    assert box.news() == News([], True, None)
    assert box.take(1, False) == (1, None)
    assert box.post(SECOND)
    assert not box.news().over
    assert box.take(1, False) == box.take(1, False) == (2, SECOND)
    box.close()
    assert box.take(1, False) == (2, SECOND)
    box.finish(2)
    assert box.take(2, False) is None


def test_a_worker_that_leaves_takes_the_others_along_or_takes_what_they_have_taken() -> None:
    box = Mailbox()
    assert box.post(FIRST)
    assert box.take(0, False) == (1, FIRST)
    assert box.take(0, True) == (1, FIRST), "it leaves in the job, with a checkpoint, and so do the others"
    box.finish(1)
    assert box.take(1, True) is None
    assert box.take(1, False) is None
    assert not box.post(SECOND)
    box = Mailbox()
    assert box.post(FIRST)
    assert box.take(0, True) is None
    assert box.take(0, False) is None
    assert not box.news().over


def test_workers_that_are_started_again_take_the_job_again_and_the_next_job_goes_to_others() -> None:
    box = Mailbox()
    box.started("controller")
    assert box.post(FIRST)
    assert box.take(0, False) == (1, FIRST)
    box.started("controller")
    assert box.take(0, False) == (1, FIRST)
    box.finish(1)
    assert box.take(0, False) == (0, None), "done, though another process did it"
    assert not box.post(SECOND)


def test_an_error_of_the_job_ends_it_and_the_group() -> None:
    box, error = Mailbox(), DataError("two images, one placeholder")
    assert box.post(FIRST)
    assert box.take(0, False) == (1, FIRST)
    box.fail(error)
    box.fail(DataError("another worker's"))
    assert box.news() == News([], True, error)
    assert box.take(0, False) is None
    assert not box.post(SECOND)


def test_it_gives_the_controller_of_a_group_once_and_never_keeps_it_after_that() -> None:
    """Two actors that hold each other would live as long as the driver."""
    box = Mailbox()
    assert box.close() is None
    box.started("controller")
    assert box.close() is None
    box = Mailbox()
    box.started("controller")
    assert (box.close(), box.close()) == ("controller", None)
