"""Steps that cannot be taken, through the training loop; two processes, no Ray."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.distributed.trial import Trial

# The first step is taken, and leaves weights that no later step can be taken with.
EXPLODING = {"sft": {"lr": 1e30, "clip": 1e30, "warmup_ratio": 0}}


def test_steps_are_skipped_and_told_where_that_is_wanted(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 4, stages=EXPLODING, trainer={"on_nonfinite": "skip"})
    assert trial.run("skipping") == [0, 0]
    lines = [line for line in trial.lines("skipping") if "done" in line]
    warned = [(line["done"], advice["kind"]) for line in lines for advice in line["warnings"]]
    assert warned == [(2, "nonfinite"), (3, "nonfinite"), (4, "nonfinite")]
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
    assert [path.name for path in (tmp_path / "stopping" / "checkpoints").iterdir()] == ["step-00000001"]
