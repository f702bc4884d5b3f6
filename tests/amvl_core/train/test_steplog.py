import pytest

from amvl_core.contracts.config import StageConfig
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.progress import Advice, Progress
from amvl_core.contracts.watch import WINDOW
from amvl_core.methods.sft.config import SftMethod
from amvl_core.train.steplog import Pace, StepLog
from amvl_core.train.watch import watches


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def new(clock: Clock, total: int = 100, start: int = 0) -> tuple[StepLog, list[Progress]]:
    events: list[Progress] = []
    watched = watches(StageConfig(method=SftMethod(), steps=1), LatentConfig())
    return StepLog("sft", total, start, events.append, watched, {}, clock), events


def step(log: StepLog, clock: Clock, wait: float, work: float, tokens: int = 1000, skipped: bool = False) -> None:
    log.waiting()
    clock.now += wait
    log.working()
    clock.now += work
    log.worked(tokens, skipped=skipped)


def logged(log: StepLog, done: int, terms: dict[str, float]) -> dict[str, float]:
    """The step of the only rank there is."""
    return log.step(done, terms, [log.pace(0.0)])


def test_pace_and_wait_are_those_of_all_steps_since_the_last_log() -> None:
    clock = Clock()
    log, events = new(clock, total=10)
    for wait, work in ((0.0, 1.0), (1.0, 2.0)):
        step(log, clock, wait, work)
        clock.now += 50.0  # a checkpoint, which is neither
    metrics = logged(log, 2, {"loss": 2.5})
    left = pytest.approx(104.0 / 2 * 8)
    pace = {"tokens_per_s": pytest.approx(500.0), "data_wait": pytest.approx(0.25)}
    assert metrics == {"loss": 2.5, "seconds_left": left, **pace}
    assert events[0].seconds_left == left
    step(log, clock, 0.0, 1.0)
    assert logged(log, 3, {})["data_wait"] == 0.0


def test_the_slowest_rank_and_the_fullest_gpu_are_told_and_the_tokens_of_all() -> None:
    clock = Clock()
    log, _ = new(clock)
    step(log, clock, 0.0, 2.0, tokens=10)
    assert log.pace(3.0) == Pace(0.0, 10, 3.0)
    metrics = log.step(1, {}, [log.pace(3.0), Pace(0.75, 40, 2.0), Pace(0.5, 30, 5.0)])
    assert (metrics["data_wait"], metrics["tokens_per_s"], metrics["gpu_memory_gib"]) == (0.75, 40.0, 5.0)


def test_what_is_not_finite_is_not_a_metric_and_skipped_steps_are_counted() -> None:
    clock = Clock()
    log, _ = new(clock)
    for skipped in (True, False, True):
        step(log, clock, 0.0, 1.0, skipped=skipped)
    pace = {"tokens_per_s", "data_wait", "seconds_left"}
    assert logged(log, 3, {"loss": float("nan"), "lr": 1.0}).keys() == {"lr", "skipped_steps", *pace}
    step(log, clock, 0.0, 1.0)
    assert "skipped_steps" not in logged(log, 4, {})


def test_after_a_resume_the_pace_is_that_of_the_steps_since() -> None:
    clock = Clock()
    log, events = new(clock, total=100, start=90)
    step(log, clock, 0.0, 2.0)
    logged(log, 91, {})
    assert events[0].seconds_left == pytest.approx(2.0 * 9)


def test_warnings_travel_with_progress() -> None:
    clock = Clock()
    log, events = new(clock)
    log.warn(1, [])
    log.warn(1, [Advice("nonfinite", "x")])
    assert [event.warnings for event in events] == [(Advice("nonfinite", "x"),)]
    for done in range(1, WINDOW + 3):
        step(log, clock, 1.0, 1.0)
        logged(log, done, {})
    said = [(event.done, advice.kind) for event in events[1:] for advice in event.warnings]
    assert said == [(WINDOW, "data_wait")]
