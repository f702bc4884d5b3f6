"""Steps that cannot be taken, through the training loop; two processes, no Ray."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from amvl_core.data.batch import Batch
from amvl_core.data.loader import StepDataset
from benchmarks import local
from benchmarks.trial import Trial

# The first step is taken, and leaves weights that no later step can be taken with.
EXPLODING = {"sft": {"lr": 1e30, "clip": 1e30, "warmup_ratio": 0}}


def test_steps_are_skipped_and_told_where_that_is_wanted(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 4, stages=EXPLODING, trainer={"on_nonfinite": "skip"})
    assert trial.run("skipping") == [0, 0]
    lines = [line for line in trial.lines("skipping") if "done" in line]
    warned = [(line["done"], advice["kind"]) for line in lines for advice in line["warnings"]]
    assert warned == [(2, "nonfinite"), (3, "nonfinite"), (4, "nonfinite")]
    assert all(len(advice["samples"]) == 8 for line in lines for advice in line["warnings"]), "no sample is finite"
    logged = [line["metrics"] for line in lines if line["metrics"]]
    assert [metrics.get("skipped_steps", 0) for metrics in logged] == [0, 1, 1, 1]
    assert ["loss" in metrics for metrics in logged] == [True, False, False, False]
    record = trial.record("skipping")
    assert record.step == 4
    weights = load_file(Path(record.model_uri) / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_stage_stops_before_the_weights_are_lost_where_that_is_wanted(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 4, stages=EXPLODING, trainer={"checkpoint_every": 1})
    codes = trial.run("stopping")
    assert all(codes), codes
    assert [line["done"] for line in trial.lines("stopping") if line.get("metrics")] == [1]
    last = trial.lines("stopping")[-1]
    assert last["done"] == 2 and [advice["kind"] for advice in last["warnings"]] == ["nonfinite"]
    assert "weights and optimiser are those of step 1" in last["warnings"][0]["text"], "it is told before it stops"
    assert [path.name for path in (tmp_path / "stopping" / "checkpoints").iterdir()] == ["step-00000001"]


def with_a_bad_picture(rank: int, job: str, log: str) -> None:
    """A worker to which the picture of one sample is not a number."""
    read = StepDataset._batch

    def spoiled(self: StepDataset, indices: list[int]) -> Batch:
        batch = read(self, indices)
        if "train-3" in batch.sample_ids:
            assert batch.pixel_values is not None and batch.image_grid_thw is not None
            patches = [int(grid.prod(-1).sum()) for grid in batch.image_grid_thw.split(batch.num_images)]
            batch.pixel_values.split(patches)[batch.sample_ids.index("train-3")].fill_(torch.nan)
        return batch

    StepDataset._batch = spoiled  # type: ignore[method-assign]
    local.stage(rank, job, log)


def test_the_one_sample_at_fault_is_named_out_of_its_micro_batch(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 3, trainer={"on_nonfinite": "skip"})  # an epoch: each sample once
    local.run(with_a_bad_picture, 2, trial.job("bad"), f"{tmp_path}/bad.log")
    said = [advice for line in trial.lines("bad") if "done" in line for advice in line["warnings"]]
    assert [advice["samples"] for advice in said] == [["train-3"]]
    assert "the loss is not finite on the samples train-3; the step was skipped" in said[0]["text"]
