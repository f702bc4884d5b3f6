"""Real MLflow on SQLite; where a server must be down, a real socket that nobody listens on."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from amvl_core.contracts import storage
from amvl_core.contracts.config import ModelConfig, RunConfig, TrackingConfig, flatten, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.method import configurations
from amvl_core.contracts.progress import Progress, history_to_json
from amvl_core.contracts.records import (
    TEST_SPLIT,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    VariantScore,
)
from amvl_core.methods.amvl.presets import demo
from infra.mlflow_client import (
    check_reachable,
    client,
    metric_name,
)
from infra.reports import figures
from infra.tracking import PIPELINE_TAG, Tracker, pipeline_fingerprint, run_name


def other(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"seed": seed})


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
        tracker.checkpoint("sft", checkpoint(stage="sft"))
        tracker.reused("sft", checkpoint(stage="sft"))
        tracker.evaluation(evaluation("amvl", 9))
        tracker.table("scores", {"task": ["a"], "n": [1]})
        tracker.figure("figures/curves.png", figures.curves(tracker.history, tracked.stages))
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


def test_a_variant_is_logged_with_its_n_and_every_bound(tracked: RunConfig) -> None:
    numbers = {name: 0.25 for name, field in VariantScore.model_fields.items() if field.annotation is float}
    rows = [VariantScore(variant=name, n=256, test="McNemar exact", **numbers) for name in ("unchanged", "no block")]
    about = {"uri": "u", "fingerprint": "f", "checkpoint": "c", "stage": "amvl", "dataset": "d"}
    with Tracker(other(tracked, 8)) as tracker:
        run_id = tracker.start()
        for benchmark in (TEST_SPLIT, "vstar"):
            record = FaithfulnessRecord(benchmark=benchmark, rows=rows, verdict=f"said of {benchmark}", **about)
            tracker.faithfulness(record)
    logged = client(tracked).get_run(run_id).data
    assert logged.metrics["faithfulness/no_block/n"] == 256
    assert logged.metrics.keys() == {
        f"{suite}/{row}/{name}"
        for suite in ("faithfulness", "faithfulness_vstar")
        for row in ("unchanged", "no_block")
        for name in ("n", *numbers)
    }
    assert logged.tags["amvl.faithfulness"] == f"said of {TEST_SPLIT}"
    assert logged.tags["amvl.faithfulness.vstar"] == "said of vstar"


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
        self.inner, self.down, self.asked = inner, False, 0

    def __getattr__(self, name: str) -> Any:
        if self.down:
            self.asked += 1
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
    assert sum("does not take metrics" in message for message in caplog.messages) == 1


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
    assert outage.asked <= 3  # once when it is woken, and then every SEND_EVERY_S


def test_what_mlflow_refuses_is_dropped_and_named(tracked: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Tracker(other(tracked, 6)) as tracker:
        tracker.start()
        tracker.call("a bad name", "set_tag", key="x" * 10_000, value="1")
        tracker.metrics("amvl", 1, {"loss": 1.0})
    assert tracker.refused == ["a bad name"]
    assert client(tracked).get_run(str(tracker.run_id)).info.status == "FINISHED"


def upload_failed(status: int) -> Exception:
    """What boto3 raises where a store answers an upload with `status`: another error, with the answer as context."""
    answer = {"Error": {"Code": "x", "Message": "y"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    try:
        try:
            raise ClientError(answer, "PutObject")
        except ClientError as error:
            raise RuntimeError(f"Failed to upload: {error}")  # noqa: B904
    except RuntimeError as error:
        return error


class Failing:
    """The real client, of which one method raises the next of `errors` while there is one."""

    def __init__(self, inner: Any, method: str, errors: list[Exception]) -> None:
        self.inner, self.method, self.errors = inner, method, errors

    def __getattr__(self, name: str) -> Any:
        if name == self.method and self.errors:
            raise self.errors.pop(0)
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        ReadTimeoutError(endpoint_url="http://127.0.0.1:9"),
        upload_failed(503),
    ],
)
def test_an_object_store_that_fails_for_a_while_costs_no_entry(
    tracked: RunConfig, error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics are taken meanwhile, and do not make the warning come again."""
    monkeypatch.setattr("infra.tracking.SEND_EVERY_S", 0.02)
    with caplog.at_level(logging.WARNING), Tracker(other(tracked, 8)) as tracker:
        run_id = tracker.start()
        assert tracker.flush()
        tracker._client = Failing(tracker._client, "log_text", [error] * 5)
        tracker.text("note.txt", "kept")
        for step in range(5):
            tracker.metrics("amvl", step, {"loss": 1.0})
            time.sleep(0.03)
        assert tracker.flush()
    assert tracker.refused == []
    assert [file.path for file in client(tracked).list_artifacts(run_id) if "note" in file.path] == ["note.txt"]
    assert sum("does not take note.txt" in message for message in caplog.messages) == 1
    assert sum("takes note.txt again" in message for message in caplog.messages) == 1
    assert not any("metrics" in message for message in caplog.messages)


class Late:
    """The real client, of which every call of one kind is done, and answers the first time with a timeout."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.answered = inner, set[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            found = getattr(self.inner, name)(*given, **named)
            if name not in self.answered and name != "log_batch":
                self.answered.add(name)
                raise ReadTimeoutError(endpoint_url="http://127.0.0.1:9")
            return found

        return call


def test_a_table_that_is_sent_again_after_a_timeout_has_its_rows_once(
    tracked: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the file that MLflow itself would write, and its page and `load_table` find it."""
    monkeypatch.setattr("infra.tracking.SEND_EVERY_S", 0.02)
    tables = {"first": {"task": ["a", "\u989c"], "n": [1, 2], "share": [0.1, None]}, "second": {"text": ["x/y"]}}
    with Tracker(other(tracked, 13)) as tracker:
        run_id = tracker.start()
        assert tracker.flush()
        tracker._client = Late(tracker._client)
        for name, columns in tables.items():
            tracker.table(name, columns)
    assert tracker.refused == []
    mlflow = client(tracked)
    run = mlflow.get_run(run_id)
    twin = mlflow.create_run(run.info.experiment_id).info.run_id
    for name, columns in tables.items():
        file = f"tables/{name}.json"
        mlflow.log_table(twin, columns, file)
        texts = [Path(mlflow.download_artifacts(one, file)).read_text() for one in (run_id, twin)]
        assert texts[0] == texts[1]
        loaded = mlflow.load_table(run.info.experiment_id, file, run_ids=[run_id])
        assert loaded.columns.tolist() == list(columns) and len(loaded) == len(next(iter(columns.values())))
    tag = "mlflow.loggedArtifacts"
    assert run.data.tags[tag] == mlflow.get_run(twin).data.tags[tag]
    mlflow.set_terminated(twin)


@pytest.mark.parametrize("error", [NoCredentialsError(), upload_failed(403), TypeError("a bug"), KeyError("x")])
def test_an_error_that_will_not_pass_costs_its_entry_alone(
    tracked: RunConfig, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Tracker(other(tracked, 9)) as tracker:
        run_id = tracker.start()
        assert tracker.flush()
        tracker._client = Failing(tracker._client, "log_text", [error])
        tracker.text("first.txt", "lost")
        tracker.text("second.txt", "kept")
        tracker.metrics("amvl", 1, {"loss": 1.0})
    assert tracker.refused == ["first.txt"]
    assert sum(f"refused first.txt: {type(error).__name__}" in message for message in caplog.messages) == 1
    run = client(tracked).get_run(run_id)
    assert (run.info.status, run.data.metrics["amvl/loss"]) == ("FINISHED", 1.0)
    assert "second.txt" in {file.path for file in client(tracked).list_artifacts(run_id)}


def test_flush_does_not_wait_for_a_thread_that_is_dead(
    tracked: RunConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracker, "_send_all", lambda self: None)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING), Tracker(other(tracked, 10)) as tracker:
        run_id = tracker.start()
        tracker.metrics("amvl", 1, {"loss": 1.0})
        assert not tracker.flush()
    assert time.monotonic() - begun < 30  # DRAIN_S is 60, and flush is called twice
    assert any("did not take 1 metrics" in message for message in caplog.messages)
    client(tracked).set_terminated(run_id)


class Server:
    """A real MLflow server on loopback, in processes of its own."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.root}/server.db"]
        command += ["--artifacts-destination", str(self.root / "artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, config: RunConfig) -> None:
        deadline = time.monotonic() + 240
        while True:
            try:
                return check_reachable(config)
            except ConfigError:
                assert time.monotonic() < deadline, (self.root / "server.log").read_text()[-2000:]
                time.sleep(0.5)

    def kill(self) -> None:
        """The process and those that it started, which are of its session."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture()
def server(tmp_path: Path, unused_port: int) -> Iterator[Server]:
    made = Server(tmp_path, unused_port)
    made.start()
    yield made
    made.kill()


@pytest.mark.slow
def test_a_server_that_is_killed_for_some_seconds_costs_no_entry(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = TrackingConfig(uri=f"http://127.0.0.1:{server.port}")
    config = demo().model_copy(update={"storage": str(tmp_path), "tracking": tracking})
    server.wait(config)
    with caplog.at_level(logging.WARNING), Tracker(config) as tracker:
        run_id = tracker.start()
        assert tracker.flush()
        for step in range(1, 301):
            tracker.metrics("amvl", step, {"loss": 1 / step, "grad_norm": 1.0})
            if step == 100:
                server.kill()
            if step == 150:
                tracker.text("note.txt", "written while nobody listens")
            if step == 250:
                server.start()
            time.sleep(0.05)
        server.wait(config)
    mlflow = client(config)
    for name in ("loss", "grad_norm"):
        points = mlflow.get_metric_history(run_id, f"amvl/{name}")
        assert sorted(point.step for point in points) == list(range(1, 301))
    assert "note.txt" in {file.path for file in mlflow.list_artifacts(run_id)}
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert tracker.refused == []
    assert sum("does not take metrics" in message for message in caplog.messages) == 1
    assert sum("takes metrics again" in message for message in caplog.messages) == 1


def test_a_task_of_any_name_costs_no_other_metric(tracked: RunConfig, evaluation: Callable[..., EvalRecord]) -> None:
    record = evaluation("sft", 5)
    odd = [record.scores[0].model_copy(update={"task": f"chat/{task}"}) for task in ("..", "", "a//b?", 300 * "y")]
    with Tracker(tracked) as tracker:
        run_id = tracker.start()
        tracker.evaluation(record.model_copy(update={"scores": [*record.scores, *odd]}))
        tracker.tag({f"amvl.{300 * 'z'}": "t"})
    assert tracker.refused == []
    metrics = client(tracked).get_run(run_id).data.metrics
    assert {metric_name("eval_sft", score.task) for score in odd} | {"eval_sft/all"} <= metrics.keys()


def test_tasks_whose_names_mlflow_takes_alike_have_metrics_of_their_own(
    tracked: RunConfig, evaluation: Callable[..., EvalRecord]
) -> None:
    record = evaluation("sft", 5)
    scores = [
        record.scores[0].model_copy(update={"task": f"own/{task}", "accuracy": accuracy})
        for task, accuracy in (("<5", 0.25), (">5", 0.75))
    ]
    with Tracker(other(tracked, 12)) as tracker:
        run_id = tracker.start()
        for _ in range(2):
            tracker.evaluation(record.model_copy(update={"scores": scores}))
    metrics = client(tracked).get_run(run_id).data.metrics
    named = {name: value for name, value in metrics.items() if name.startswith("eval_sft/own/") and "low" not in name}
    assert sorted(value for name, value in named.items() if "high" not in name) == [0.25, 0.75]


def test_a_stage_that_is_reused_is_drawn_from_its_own_curve(
    tracked: RunConfig, checkpoint: Callable[..., CheckpointRecord]
) -> None:
    """Also one of an earlier version, of which the last step alone is known, and one that another run called `warm`."""
    events = [Progress("warm", step, 3, "steps", metrics={"loss": 4.0 - step, "seconds_left": 9.0}) for step in (1, 2)]
    trained = checkpoint(stage="warm", fingerprint="c2")
    storage.write_bytes(f"{trained.uri}/history.json", history_to_json(events))
    with Tracker(other(tracked, 11)) as tracker:
        run_id = tracker.start()
        tracker.reused("sft", trained)
        tracker.reused("amvl", checkpoint(stage="amvl", fingerprint="c3"))
    points = client(tracked).get_metric_history(run_id, "sft/loss")
    assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0), (3, 0.5)]
    first, second = figures.curves(tracker.history, tracked.stages).axes[:2]
    assert list(first.lines[0].get_ydata()) == [3.0, 2.0, 0.5]
    assert (second.get_title(loc="left"), list(second.lines[0].get_ydata())) == ("amvl", [0.5])


TABLE_RUN = r"table 3 on microworld, seed 0, \d{4}-\d\d-\d\d \d\d:\d\d"


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        ([{"kind": "microworld"}], "sft+amvl on microworld, seed 7, "),
        (
            [{"kind": "nlvr", "uri": "x.zip"}, {"kind": "easy_vqa", "uri": "y", "name": "shapes"}],
            "on nlvr+shapes, seed",
        ),
        ([{"kind": "chat_jsonl", "uri": "s3://b/my-tables/"}], "sft+amvl on my-tables, seed 7, "),
        ([{"kind": "llava_json", "uri": "/data/cups.tar.gz"}], "sft+amvl on cups.tar.gz, seed 7, "),
        ([{"kind": "llava_json", "uri": "/data/cups.tar.gz", "name": "cups"}], "sft+amvl on cups, seed 7, "),
        ([{"kind": "nlvr", "uri": "x", "name": f"n{i}"} for i in range(6)], "sft+amvl on n0+n1+n2+n3 and 2 more, seed"),
        ([{"kind": "nlvr", "uri": "x", "name": 300 * "n"}], f"sft+amvl on {120 * 'n'}, seed 7, "),
    ],
)
def test_a_run_is_called_by_method_data_seed_and_date(sources: list[dict[str, str]], name: str) -> None:
    found = run_name(override(demo(), {"seed": 7, "data": {"sources": sources}}))
    assert name in found
    assert datetime.strptime(found[-16:], "%Y-%m-%d %H:%M") <= datetime.now()
    assert len(found) < 250  # what MLflow's column holds


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
    assert re.fullmatch(TABLE_RUN, mlflow_client.get_run(parent.run_id).info.run_name)
    left = Tracker(tracked, "NTP, seed 0").start()  # as if killed
    with Tracker(tracked, "NTP, seed 0") as again:
        again.start()
    assert mlflow_client.get_run(left).info.status == "KILLED"


def test_a_run_of_any_label_is_closed_at_the_next_start_and_no_other_is(
    tracked: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow in ("_log_config", "_send_all"):
        monkeypatch.setattr(Tracker, slow, lambda _: None)
    monkeypatch.setattr("infra.tracking.provenance", dict)
    mlflow_client, config = client(tracked), other(tracked, 8)
    tables = [table for method in configurations().values() for table in method.tables().values()]
    labels = {row.label for table in tables for row in table.rows if not row.label.replace(" ", "").isalnum()}
    labels |= {"both ' and \"", "\\' \\", "'", '"', "`x`", "50 %_", "; --", "\u989c\u8272", "a\nb", "A", "a", "a "}
    left = {label: Tracker(config, label).start() for label in labels}  # as if killed
    for label, run_id in left.items():
        assert mlflow_client.get_run(run_id).info.status == "RUNNING"
        Tracker(config, label).start()
        assert mlflow_client.get_run(run_id).info.status == "KILLED"
