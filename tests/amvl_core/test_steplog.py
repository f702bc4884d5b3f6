import pytest

from amvl_core.config import LatentConfig, SftMethod, StageConfig
from amvl_core.progress import Advice, Progress
from amvl_core.train.steplog import StepLog
from amvl_core.train.watch import WINDOW, watches


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def new(clock: Clock, total: int = 100, start: int = 0) -> tuple[StepLog, list[Progress]]:
    events: list[Progress] = []
    watched = watches(StageConfig(method=SftMethod(), steps=1), LatentConfig())
    return StepLog("sft", total, start, events.append, watched, clock), events


def step(log: StepLog, clock: Clock, wait: float, work: float, tokens: int = 1000, skipped: bool = False) -> None:
    log.waiting()
    clock.now += wait
    log.working()
    clock.now += work
    log.worked(tokens, skipped=skipped)


def test_pace_and_wait_are_those_of_all_steps_since_the_last_log() -> None:
    clock = Clock()
    log, events = new(clock, total=10)
    for wait, work in ((0.0, 1.0), (1.0, 2.0)):
        step(log, clock, wait, work)
        clock.now += 50.0  # a checkpoint, which is neither
    metrics = log.step(2, {"loss": 2.5})
    assert metrics == {"loss": 2.5, "tokens_per_s": pytest.approx(500.0), "data_wait": pytest.approx(0.25)}
    assert events[0].seconds_left == pytest.approx(104.0 / 2 * 8)
    step(log, clock, 0.0, 1.0)
    assert log.step(3, {})["data_wait"] == 0.0


def test_what_is_not_finite_is_not_a_metric_and_skipped_steps_are_counted() -> None:
    clock = Clock()
    log, _ = new(clock)
    for skipped in (True, False, True):
        step(log, clock, 0.0, 1.0, skipped=skipped)
    assert log.step(3, {"loss": float("nan"), "lr": 1.0}).keys() == {"lr", "tokens_per_s", "data_wait", "skipped_steps"}
    step(log, clock, 0.0, 1.0)
    assert "skipped_steps" not in log.step(4, {})


def test_after_a_resume_the_pace_is_that_of_the_steps_since() -> None:
    clock = Clock()
    log, events = new(clock, total=100, start=90)
    step(log, clock, 0.0, 2.0)
    log.step(91, {})
    assert events[0].seconds_left == pytest.approx(2.0 * 9)


def test_warnings_travel_with_progress() -> None:
    clock = Clock()
    log, events = new(clock)
    log.warn(1, [])
    log.warn(1, [Advice("nonfinite", "x")])
    assert [event.warnings for event in events] == [(Advice("nonfinite", "x"),)]
    for done in range(1, WINDOW + 3):
        step(log, clock, 1.0, 1.0)
        log.step(done, {})
    said = [(event.done, advice.kind) for event in events[1:] for advice in event.warnings]
    assert said == [(WINDOW, "data_wait")]
