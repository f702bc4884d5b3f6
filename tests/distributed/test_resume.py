"""A stage that is cut off and goes on is the stage that was not: weights, moments, curve; two processes, no Ray."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from amvl_core import storage
from amvl_core.base import base_folder
from amvl_core.config import override
from amvl_core.records import CheckpointRecord, load_record
from amvl_core.train.loop import TrainJob
from tests.distributed import local
from tests.distributed.test_train import configuration, dataset

STEPS = 8


class Trial:
    """Runs of one stage from the same start, each in a folder of its own."""

    def __init__(self, root: Path, **trainer: Any) -> None:
        self.root = root
        stages = {"sft": {"steps": STEPS}}
        self.config = configuration(str(root), trainer={"precision": "fp32", **trainer}, stages=stages)
        self.data = dataset(f"{root}/data")
        with base_folder(self.config.model) as folder:
            storage.upload(Path(folder), f"{root}/base")

    def job(self, name: str, workers: int = 2) -> str:
        """The stage as JSON."""
        return TrainJob(
            config=override(self.config, {"cluster": {"num_workers": workers}}),
            stage="sft",
            dataset=self.data,
            start_from=f"{self.root}/base",
            parent=None,
            uri=f"{self.root}/{name}",
            fingerprint=name,
        ).model_dump_json()

    def start(self, name: str, workers: int = 2, **arguments: Any) -> list[Any]:
        """The processes of a run."""
        order = [arguments.get(key) for key in ("stop_at", "kill_at")]
        return local.start(local.stage, workers, self.job(name, workers), f"{self.root}/{name}.log", *order)

    def run(self, name: str, workers: int = 2, **arguments: Any) -> list[int | None]:
        """Exit codes of a run."""
        return local.join(self.start(name, workers, **arguments))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What rank 0 wrote."""
        file = self.root / f"{name}.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def curve(self, name: str) -> list[tuple[int, float, float]]:
        """Step, loss and learning rate as tracking keeps them: a step done again counts once, and must be the same."""
        found: dict[int, tuple[int, float, float]] = {}
        for line in self.lines(name):
            if "done" in line:
                point = (line["done"], line["metrics"]["loss"], line["metrics"]["lr"])
                assert found.setdefault(line["done"], point) == point
        return list(found.values())

    def state(self, name: str, step: int) -> dict[str, Any]:
        """The marker's list of files with their SHA-256: equal if and only if every weight and moment is."""
        marker = self.root / name / "checkpoints" / f"step-{step:08d}" / "complete.json"
        files: dict[str, Any] = json.loads(marker.read_text())["files"]
        del files["history.json"]  # holds times
        return files

    def record(self, name: str) -> CheckpointRecord:
        """The finished stage's."""
        record = load_record(f"{self.root}/{name}", CheckpointRecord)
        assert record is not None
        return record


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Trial:
    made = Trial(tmp_path_factory.mktemp("resume"))
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
        # Measured worst case over steps: 4e-7.
        assert (step, lr) == (same, rate) and abs(loss - expected) < 5e-6, step


def test_the_best_model_is_that_of_its_step(tmp_path) -> None:
    trial = Trial(tmp_path)
    trial.config = override(trial.config, {"stages": {"sft": {"lr": 0.2, "warmup_ratio": 0.0}}})
    assert trial.run("late", kill_at=STEPS) != [0, 0]
    tags = storage.list_names(f"{tmp_path}/late/checkpoints")
    markers = [json.loads((tmp_path / "late/checkpoints" / tag / "complete.json").read_text()) for tag in tags]
    best = min(markers, key=lambda marker: marker["loss"])
    folder = tmp_path / "late/checkpoints" / f"step-{best['step']:08d}"
    parts = [(load_file(folder / name), file) for name, file in best["files"].items() if file["pieces"]]
    assert trial.run("late") == [0, 0]
    record = trial.record("late")
    assert record.best is not None, "the learning rate is too high for the loss to fall to the end"
    assert record.best.step == best["step"] and record.best.loss == best["loss"]
    model = load_file(Path(record.best.uri) / "model.safetensors")
    name = "model.model.language_model.norm.weight"
    whole = sorted(
        (file["pieces"][name][0], tensors[f"weight/{name}"]) for tensors, file in parts if name in file["pieces"]
    )
    assert [float(x) for _, part in whole for x in part] == model["model.norm.weight"].tolist()
