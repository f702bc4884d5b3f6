"""Stage 2 of Monet by two processes without Ray: cut off and resumed beside its frozen teacher, and what it leaves."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig, validate
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sample import Region
from amvl_core.train.loop import TrainJob
from benchmarks.trial import Trial
from data_prep.shards import ShardRow
from tests.shards import row, write


class MonetTrial(Trial):
    """As `Trial`; the stage `sft` is stage 2 of Monet, and its teacher the model that it starts from."""

    def __init__(self, root: Path, steps: int) -> None:
        super().__init__(root, steps)
        config = PRESETS["monet-demo"]()
        first, second = config.stages["monet_1"], config.stages["monet_2"]
        stage = second.model_copy(update={"steps": steps, "global_batch": 8, "micro_tokens": 200})
        fields = self.config.model_copy(update={"stages": {"monet_1": first, "sft": stage}, "latent": config.latent})
        self.config: RunConfig = validate(fields.model_dump(mode="json"))
        self.data = write(f"{root}/regions", [[regional(number) for number in range(24)]])

    def job(self, name: str, workers: int = 2) -> str:
        """With the teacher."""
        job = TrainJob.model_validate_json(super().job(name, workers))
        return job.model_copy(update={"teacher": f"{self.root}/base"}).model_dump_json()


def regional(number: int) -> ShardRow:
    """One of three samples has no region, and so no block; others have one or two."""
    steps, boxes = ("Here.", "Blue."), ((0.0, 0.0, 16.0, 16.0), (8.0, 8.0, 32.0, 24.0))
    regions = tuple(Region("it", box) for box in boxes[: number % 3])
    sample = replace(row(number).sample, steps=steps, step_images=(0, 0), regions=regions)
    return ShardRow(sample, [(32, 32)], 50)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> MonetTrial:
    made = MonetTrial(tmp_path_factory.mktemp("monet"), 6)
    assert made.run("whole", stop_at=4) == [0, 0]
    return made


def test_a_stage_that_was_killed_goes_on_beside_the_same_teacher(trial: MonetTrial) -> None:
    codes = trial.run("killed", kill_at=3)
    assert codes[0] == -signal.SIGKILL
    assert trial.run("killed", stop_at=4) == [0, 0]
    assert trial.state("killed", 4) == trial.state("whole", 4)
    assert trial.curve("killed") == trial.curve("whole")


def test_every_term_is_logged(trial: MonetTrial) -> None:
    metrics: dict[str, Any] = trial.lines("whole")[0]["metrics"]
    assert {"loss", "ntp", "align", "slot_norm", "observed"} <= metrics.keys()
    assert metrics["loss"] == pytest.approx(metrics["ntp"] + 4 * metrics["align"], rel=1e-5)
    assert 0 < metrics["align"] < 2 and 0 < metrics["observed"] < 1


def test_the_teacher_is_not_exported(trial: MonetTrial) -> None:
    assert trial.run("exported") == [0, 0]
    folder = Path(storage.join(trial.record("exported").uri, "model"))
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    with safe_open(f"{trial.root}/base/model.safetensors", "pt") as weights:
        assert names == set(weights.keys())
