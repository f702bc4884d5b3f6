"""Real MLflow on SQLite; where a server must be down, a real socket that nobody listens on."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amvl_core.config import ModelConfig, RunConfig, TrackingConfig, flatten
from amvl_core.errors import ConfigError
from amvl_core.presets import demo, paper
from amvl_core.records import CheckpointRecord, DatasetRecord, EvalRecord
from infra import figures
from infra.mlflow_client import check_reachable, client, metric_name, tracking_uri
from infra.tracking import PIPELINE_TAG, Tracker, pipeline_fingerprint


def other(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"seed": seed})


def test_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = demo().model_copy(update={"storage": str(tmp_path)})
    assert tracking_uri(local) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConfigError, match=r"set tracking\.uri or MLFLOW_TRACKING_URI"):
        tracking_uri(paper())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(paper()) == "http://127.0.0.1:5000"
    named = local.model_copy(update={"tracking": TrackingConfig(uri="http://mlflow.example")})
    assert tracking_uri(named) == "http://mlflow.example"


def test_a_server_that_is_down_is_refused_before_anything_is_computed(unused_port: int) -> None:
    down = demo().model_copy(update={"tracking": TrackingConfig(uri=f"http://127.0.0.1:{unused_port}")})
    with pytest.raises(ConfigError, match="no MLflow server answers"):
        check_reachable(down)


def test_the_plan_is_with_the_run_and_an_unknown_base_is_said(
    tracked: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(tracked) as tracker:
        run_id = tracker.start()
        tracker.plan(rows=640)
    files = {file.path for file in client(tracked).list_artifacts(run_id, "plan")}
    assert files == {"plan/plan.txt", "plan/plan.json"}
    page = Path(client(tracked).download_artifacts(run_id, "plan/plan.txt", str(tmp_path))).read_text()
    assert page.startswith("Assumed machines: A100-80GB, 8 a node, 12.5 GB/s a node. The run may have others")
    unknown = Tracker(tracked.model_copy(update={"model": ModelConfig(base="someone/model")}))
    unknown.plan(rows=640)
    assert "no plan for this run: model.base: the shape of 'someone/model' is not known here" in caplog.text


def test_a_run_holds_parameters_metrics_data_and_tables(
    tracked: RunConfig,
    dataset: DatasetRecord,
    checkpoint: Callable[..., CheckpointRecord],
    evaluation: Callable[..., EvalRecord],
) -> None:
    with Tracker(tracked) as tracker:
        run_id = tracker.start()
        assert tracker.start() == run_id
        tracker.dataset(dataset)
        for step in range(1, 1502):  # more than one batch
            tracker.metrics("amvl", step, {"loss": 1 / step, "grad (norm)": 1.0})
        tracker.checkpoint(checkpoint(stage="sft"), reused=True)
        tracker.evaluation(evaluation("amvl", 9))
        tracker.table("scores", {"task": ["a"], "n": [1]})
        tracker.figure("figures/curves.png", figures.curves(tracker.history, ["amvl"]))
    assert tracker.refused == []
    mlflow = client(tracked)
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= {"stages.amvl.method.kind": "amvl", "seed": "0"}.items()
    assert len(run.data.params) == len(flatten(tracked))
    assert len(mlflow.get_metric_history(run_id, "amvl/loss")) == 1501
    assert run.data.metrics["amvl/grad _norm_"] == 1.0
    assert run.data.metrics["sft/loss"] == 0.5
    assert run.data.metrics["eval_amvl/microworld/colour"] == 0.9
    assert run.data.metrics["data/dropped_no_answer"] == 2
    assert run.inputs.dataset_inputs[0].dataset.digest == "d1"
    assert {a.path for a in mlflow.list_artifacts(run_id, "tables")} == {"tables/scores.csv", "tables/scores.json"}
    assert [a.path for a in mlflow.list_artifacts(run_id, "figures")] == ["figures/curves.png"]


def test_an_error_and_an_interrupt_end_the_run(tracked: RunConfig) -> None:
    ended = {}
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), Tracker(other(tracked, 1)) as tracker:
            run_id = tracker.start()
            raise error
        ended[error] = client(tracked).get_run(run_id).info.status
    assert ended == {ValueError: "FAILED", KeyboardInterrupt: "KILLED"}


def test_a_run_that_a_killed_pipeline_left_is_closed_at_the_next_start(tracked: RunConfig) -> None:
    config = other(tracked, 2)
    mlflow = client(config)
    with Tracker(config) as first:
        first.start()
    experiment = mlflow.get_run(str(first.run_id)).info.experiment_id
    left = mlflow.create_run(experiment, tags={PIPELINE_TAG: pipeline_fingerprint(config)}).info.run_id
    elsewhere = mlflow.create_run(experiment, tags={PIPELINE_TAG: "another"}).info.run_id
    with Tracker(config) as tracker:
        tracker.start()
    assert mlflow.get_run(left).info.status == "KILLED"
    assert mlflow.get_run(elsewhere).info.status == "RUNNING"


def test_nothing_is_opened_where_nothing_works(tracked: RunConfig, dataset: DatasetRecord) -> None:
    with Tracker(other(tracked, 3)) as tracker:
        tracker.dataset(dataset)
    assert tracker.run_id is None


def test_a_step_that_is_done_again_is_logged_once(tracked: RunConfig) -> None:
    with Tracker(other(tracked, 7)) as tracker:
        run_id = tracker.start()
        for step in (1, 2, 3, 1, 2, 3, 4):
            tracker.metrics("amvl", step, {"loss": float(step)})
            tracker.metrics("sft", 1, {"loss": 0.0})
    assert [m.step for m in client(tracked).get_metric_history(run_id, "amvl/loss")] == [1, 2, 3, 4]
    assert len(client(tracked).get_metric_history(run_id, "sft/loss")) == 1


class Outage:
    """The real client behind a switch."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.down = inner, False

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise ConnectionError("down")
        return getattr(self.inner, name)


def test_an_outage_costs_a_warning_and_no_entry(tracked: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Tracker(other(tracked, 4)) as tracker:
        run_id = tracker.start()
        assert tracker.flush()
        outage = Outage(tracker._client)
        tracker._client = outage
        outage.down = True
        for step in range(20):
            tracker.metrics("amvl", step, {"loss": 1.0})
            tracker._wake.set()
        tracker._thread.join(timeout=0.3)  # type: ignore[union-attr]
        assert tracker._metrics
        outage.down = False
    assert len(client(tracked).get_metric_history(run_id, "amvl/loss")) == 20
    assert sum("does not answer" in message for message in caplog.messages) == 1


def test_what_could_not_be_sent_is_said_at_the_end(
    tracked: RunConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.tracking.DRAIN_S", 0.5)
    with caplog.at_level(logging.WARNING), Tracker(other(tracked, 5)) as tracker:
        tracker.start()
        tracker.flush()
        tracker._client = outage = Outage(tracker._client)
        outage.down = True
        tracker.metrics("amvl", 1, {"loss": 1.0})
    assert any("did not take 1 metrics and 1 other entries" in message for message in caplog.messages)


def test_what_mlflow_refuses_is_dropped_and_named(tracked: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Tracker(other(tracked, 6)) as tracker:
        tracker.start()
        tracker.call("a bad name", "set_tag", key="x" * 10_000, value="1")
        tracker.metrics("amvl", 1, {"loss": 1.0})
    assert tracker.refused == ["a bad name"]
    assert client(tracked).get_run(str(tracker.run_id)).info.status == "FINISHED"


def test_metric_names_are_made_acceptable() -> None:
    assert metric_name("eval@1", "a(b)/c") == "eval_1/a_b_/c"


def test_a_nested_run_lies_under_its_parent_and_does_not_end_it(tracked: RunConfig) -> None:
    """The two have one configuration: without the label the second would take the first for a killed one's."""
    mlflow_client = client(tracked)
    with Tracker(tracked, "table 3") as parent:
        with Tracker(tracked, "NTP, seed 0", parent=parent.start()) as child:
            child_run = mlflow_client.get_run(child.start())
        assert parent.run_id is not None
        assert mlflow_client.get_run(parent.run_id).info.status == "RUNNING"
    assert child_run.info.run_name == "NTP, seed 0"
    assert child_run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert mlflow_client.get_run(parent.run_id).info.run_name == "table 3"
    left = Tracker(tracked, "NTP, seed 0").start()  # as if killed
    with Tracker(tracked, "NTP, seed 0") as again:
        again.start()
    assert mlflow_client.get_run(left).info.status == "KILLED"
