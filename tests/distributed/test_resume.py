"""A stage that is cut off and goes on is the stage that was not: weights, moments, curve; two processes, no Ray."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.progress import Progress
from amvl_core.methods.method import Method
from amvl_core.train import loop
from benchmarks import local
from benchmarks.trial import Trial

STEPS = 8


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Trial:
    made = Trial(tmp_path_factory.mktemp("resume"), STEPS)
    assert made.run("whole", stop_at=6) == [0, 0]
    return made


def test_half_kill_and_resume_is_bit_equal_to_the_whole(trial) -> None:
    codes = trial.run("killed", kill_at=3)
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, None)
    assert trial.run("killed", stop_at=6) == [0, 0]
    assert trial.state("killed", 6) == trial.state("whole", 6)
    assert trial.curve("killed") == trial.curve("whole")
    # The checkpoint was taken after step 2; what was logged until then comes again, and then step 3, done again.
    assert [line.get("done") for line in trial.lines("killed")] == [1, 2, 3, 1, 2, 3, 4, 5, 6, None]


def test_sigterm_to_one_worker_ends_all_with_a_checkpoint_and_nothing_is_lost(trial) -> None:
    workers = trial.start("terminated")
    while not any("done" in line for line in trial.lines("terminated")):
        time.sleep(0.005)
    os.kill(workers[1].pid, signal.SIGTERM)
    assert local.join(workers) == [0, 0]
    last = [line for line in trial.lines("terminated") if "done" in line][-1]["done"]
    assert trial.lines("terminated")[-1] == {"finished": False}
    assert storage.list_names(f"{trial.root}/terminated/checkpoints")[-1] == f"step-{last:08d}"
    before = len(trial.lines("terminated"))
    assert trial.run("terminated", stop_at=6 if last < 6 else None) == [0, 0]
    steps = [line["done"] for line in trial.lines("terminated")[before:] if "done" in line]
    assert steps[: last + 1] == list(range(1, last + 2)), "replayed from the checkpoint, then the step after it"
    if last < 6:
        assert trial.state("terminated", 6) == trial.state("whole", 6)
    assert trial.curve("terminated")[:6] == trial.curve("whole")


def two_stages(rank: int, first: str, second: str, log: str) -> None:
    """One after the other; nothing of a model is left behind (ZeRO-3 leaves it, and its workers are not kept)."""
    for job in (first, second):
        local.stage(rank, job, log, 3)
        gc.collect()
        assert not [found for found in gc.get_objects() if isinstance(found, Method)]


@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (2, "bf16")])
def test_a_worker_that_has_trained_another_stage_gives_the_same(tmp_path: Path, zero: int, precision: str) -> None:
    trial = Trial(tmp_path, STEPS, trainer={"zero_stage": zero, "precision": precision})
    local.run(two_stages, 2, trial.job("first"), trial.job("second"), f"{tmp_path}/both.log")
    assert trial.state("first", 3) == trial.state("second", 3)


def test_a_finished_stage_keeps_its_model_and_no_resume_state(trial) -> None:
    assert trial.run("whole") == [0, 0]
    record = trial.record("whole")
    assert set(storage.list_names(record.uri)) == {"history.json", "model", "record.json"}
    count = len(trial.lines("whole"))
    assert trial.run("whole") == [0, 0]
    assert trial.lines("whole")[count:] == [{"finished": True}], "nothing finished is done again"


def overtaken(rank: int, job: str, other: str, at: int) -> None:
    """While it has taken `at` steps, the `other` run of its stage finishes in the same storage."""
    parsed, events = loop.TrainJob.model_validate_json(job), list[Progress]()

    def report(event: Progress) -> None:
        events.append(event)
        if event.metrics and event.done == at:
            shutil.copytree(other, parsed.uri, dirs_exist_ok=True)

    assert loop.train_stage(parsed, report, lambda: False)
    if rank == 0:
        assert [event.done for event in events if event.metrics][-1] == at + at % 2, "it ends where it would write"
        assert [warning.kind for warning in events[-1].warnings] == ["finished"]


@pytest.mark.parametrize("at", [5, STEPS])
def test_a_run_that_is_overtaken_keeps_the_model_of_the_other(trial, at: int) -> None:
    """Its own would be in the place of one that has its record, and half of it where the run is killed."""
    if not (trial.root / "whole" / "record.json").exists():
        assert trial.run("whole") == [0, 0]
    late, whole = trial.root / f"late-{at}", trial.root / "whole"
    local.run(overtaken, 2, trial.job(late.name), str(whole), at)
    assert storage.list_names(str(late)) == ["history.json", "model", "record.json"]
    times = [{f.name: f.stat().st_mtime_ns for f in (run / "model").iterdir()} for run in (late, whole)]
    assert times[0] == times[1]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_workers_goes_on_within_rounding(trial, before, after) -> None:
    name = f"from-{before}-to-{after}"
    assert trial.run(name, before, stop_at=3) == [0] * before
    assert trial.run(name, after) == [0] * after
    whole = trial.curve("whole")
    for (step, loss, lr), (same, expected, rate) in zip(trial.curve(name), whole, strict=False):
        # Measured worst case over steps: 1e-6.
        assert (step, lr) == (same, rate) and abs(loss - expected) < 5e-6, step
