"""A stage that is cut off and goes on is the stage that was not: weights, moments, curve; two processes, no Ray."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from amvl_core.contracts import storage
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


def test_a_finished_stage_keeps_the_best_model_and_no_resume_state(trial) -> None:
    assert trial.run("whole") == [0, 0]
    record = trial.record("whole")
    losses = [loss for _, loss, _ in trial.curve("whole")]
    intervals = {step: sum(losses[step - 2 : step]) / 2 for step in (2, 4, 6, 8)}
    best = min(intervals, key=lambda step: intervals[step])
    left = {"model", "record.json"} | ({"best"} if best != STEPS else set())
    assert set(storage.list_names(record.uri)) == left
    if best == STEPS:
        assert record.best is None
    else:
        assert record.best is not None and (record.best.step, record.best.loss) == (best, intervals[best])
    count = len(trial.lines("whole"))
    assert trial.run("whole") == [0, 0]
    assert trial.lines("whole")[count:] == [{"finished": True}], "nothing finished is done again"


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_workers_goes_on_within_rounding(trial, before, after) -> None:
    name = f"from-{before}-to-{after}"
    assert trial.run(name, before, stop_at=3) == [0] * before
    assert trial.run(name, after) == [0] * after
    whole = trial.curve("whole")
    for (step, loss, lr), (same, expected, rate) in zip(trial.curve(name), whole, strict=False):
        # Measured worst case over steps: 1e-6.
        assert (step, lr) == (same, rate) and abs(loss - expected) < 5e-6, step


def test_the_best_model_is_that_of_its_step(tmp_path) -> None:
    trial = Trial(tmp_path, STEPS, stages={"sft": {"lr": 1e-6}})
    assert trial.run("late", kill_at=STEPS) != [0, 0]
    tags = storage.list_names(f"{tmp_path}/late/checkpoints")
    markers = [json.loads((tmp_path / "late/checkpoints" / tag / "complete.json").read_text()) for tag in tags]
    best = min(markers, key=lambda marker: marker["loss"])
    folder = tmp_path / "late/checkpoints" / f"step-{best['step']:08d}"
    parts = [(load_file(folder / name), file) for name, file in best["files"].items() if file["pieces"]]
    assert trial.run("late") == [0, 0]
    record = trial.record("late")
    assert record.best is not None, "at this learning rate the loss of a step is that of its samples"
    assert record.best.step == best["step"] and record.best.loss == best["loss"]
    model = load_file(Path(record.best.uri) / "model.safetensors")
    name = "model.model.language_model.norm.weight"
    whole = sorted(
        (file["pieces"][name][0], tensors[f"weight/{name}"]) for tensors, file in parts if name in file["pieces"]
    )
    assert [float(x) for _, part in whole for x in part] == model["model.norm.weight"].tolist()
