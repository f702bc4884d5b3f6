"""MLflow tracking: one run per pipeline, and a training run that a dead tracking server cannot stop.

Everything that is logged goes through a queue that one thread empties: the caller never waits for the server. What
the server does not take is kept and sent again; what it refuses is dropped and said.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from types import TracebackType
from typing import Any

from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnectionError

from amvl_core.contracts.config import RunConfig, flatten
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.records import (
    TEST_SPLIT,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    fingerprint,
)
from amvl_core.contracts.sources import ChatJsonlSource, LlavaJsonSource, MicroworldSource, Source
from amvl_core.eval.significance import Comparison
from infra.mlflow_client import address, client, experiment, hashed_name, metric_name
from infra.provenance import provenance

log = logging.getLogger(__name__)

PIPELINE_TAG = "amvl.pipeline"
SHOWN_SOURCES = 4
MAX_DATA_NAME = 120
MAX_NOTE = 8000
"""MLflow's own limit on the value of a tag; it cuts a longer one."""
MAX_PARAM_LENGTH = 6000
"""MLflow's own limit on the value of a parameter."""
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
SEND_EVERY_S = 2.0
DRAIN_S = 60.0

History = dict[str, list[tuple[int, float]]]


def pipeline_fingerprint(config: RunConfig) -> str:
    """Names a pipeline by its whole configuration."""
    return fingerprint("pipeline", 1, config=config)


def run_name(config: RunConfig, what: str = "") -> str:
    """`sft+amvl on microworld, seed 0, 2026-11-28 17:05`: what a person looks for in a list of runs.

    `what` stands for the methods where the run is no pipeline. Own data is called by its folder or archive.
    """
    methods = "+".join(dict.fromkeys(stage.method.kind for stage in config.stages.values()))
    data = [data_name(source) for source in config.data.sources]
    shown = "+".join(data[:SHOWN_SOURCES]) + (f" and {len(data) - SHOWN_SOURCES} more" if data[SHOWN_SOURCES:] else "")
    return f"{what or methods} on {shown[:MAX_DATA_NAME]}, seed {config.seed}, {datetime.now():%Y-%m-%d %H:%M}"


def data_name(source: Source) -> str:
    """What people call a source: its name, own data without one by its folder or archive."""
    if isinstance(source, MicroworldSource):
        return source.kind
    own = isinstance(source, ChatJsonlSource | LlavaJsonSource)
    if own and source.name == type(source).model_fields["name"].default:  # every such source is called that
        return source.uri.rstrip("/").rsplit("/", 1)[-1]
    return source.name


class Tracker:
    """The MLflow run of one pipeline, opened by the first stage that works: `with Tracker(config) as tracker`.

    Leaving the block ends the run as FINISHED, as FAILED on an error, as KILLED on an interrupt. A run with a `label`
    is another than the pipeline's own; `parent` is the id of the run that it lies under, where its label is its name.
    """

    def __init__(self, config: RunConfig, label: str = "", parent: str | None = None) -> None:
        self.config, self.label, self.parent = config, label, parent
        self.run_id: str | None = None
        self.history: History = {}
        self.refused: list[str] = []
        self._client: Any = None
        self._taken: dict[str, tuple[str, ...]] = {}
        self._tables: dict[str, dict[str, str]] = {}
        self._metrics: deque[Any] = deque()
        self._calls: deque[tuple[str, str, dict[str, Any]]] = deque()
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._failing: set[str] = set()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def start(self) -> str:
        """Opens the run, once, and returns its id; ends runs that a killed pipeline of this configuration left open.

        Raises ConfigError where the tracking server does not answer.
        """
        if self.run_id is not None:
            return self.run_id
        from mlflow.exceptions import MlflowException

        pipeline = pipeline_fingerprint(self.config)
        name = " ".join(filter(None, (pipeline, self.label)))
        try:
            self._client = client(self.config)
            experiment_id = experiment(self.config, self._client)
            # MLflow's filters have no escapes: a label in one would be refused, or misread, for its quotes.
            stale = f"attributes.status = 'RUNNING' and tags.`{PIPELINE_TAG}` LIKE '{pipeline}%'"
            for run in self._client.search_runs([experiment_id], stale):
                if run.data.tags[PIPELINE_TAG] == name:
                    self._client.set_terminated(run.info.run_id, status="KILLED")
            tags = {PIPELINE_TAG: name, **{f"amvl.{key}": value for key, value in provenance().items()}}
            if self.parent is not None:
                tags |= {"mlflow.runName": self.label, "mlflow.parentRunId": self.parent}
            else:
                tags["mlflow.runName"] = run_name(self.config, self.label)
            self.run_id = str(self._client.create_run(experiment_id, tags=tags).info.run_id)
        except MlflowException as error:
            raise ConfigError(f"MLflow at {address(self.config)} refused a new run: {error}") from error
        self._log_config()
        self._thread = threading.Thread(target=self._send_all, name="amvl-tracking", daemon=True)
        self._thread.start()
        return self.run_id

    def tag(self, tags: dict[str, str]) -> None:
        """Sets tags of the run."""
        for name, value in tags.items():
            self.call(f"tag {name}", "set_tag", key=metric_name(name), value=value)

    def note(self, markdown: str, name: str) -> None:
        """The text on the run's page, cut at a line where MLflow has no room, and whole as the artifact `name`."""
        self.text(name, markdown)
        if len(markdown) > MAX_NOTE:
            rest = f"\n\nThe rest is in `{name}`."
            markdown = markdown[: MAX_NOTE - len(rest)].rpartition("\n")[0] + rest
        self.tag({"mlflow.note.content": markdown})

    def metrics(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Logs `values` as `{stage}/{name}` at optimiser step `step`, once: a step done again is the same step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in values.items():
            full = metric_name(stage, name)
            points = self.history.setdefault(full, [])
            if points and points[-1][0] >= step:
                continue
            points.append((step, value))
            self._metrics.append(Metric(full, float(value), now, step))

    def dataset(self, record: DatasetRecord) -> None:
        """Logs the dataset as an input of the run, with its fingerprint as digest, and rows and drops as metrics."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        rows = {"kept": record.kept, "dropped": sum(record.dropped.values())}
        rows |= {f"rows_{split}": record.rows(split) for split in ("train", "test")}
        rows |= {f"dropped_{reason}": count for reason, count in record.dropped.items()}
        entity = Dataset(
            name="+".join(dict.fromkeys(report.source for report in record.reports))[:500],
            digest=record.fingerprint,
            source_type="amvl",
            source=json.dumps({"uri": record.uri}),
            profile=json.dumps(rows),
        )
        inputs = [DatasetInput(entity, tags=[InputTag("mlflow.data.context", "training")])]
        self.call("dataset", "log_inputs", datasets=inputs)
        self.tag({"amvl.data_fingerprint": record.fingerprint})
        self._values("data", rows)

    def plan(self, rows: int) -> None:
        """Logs what the run will take on `rows` training samples (`infra/plan`), on the machines it assumes."""
        from infra.plan import planner, shapes, show, workload

        try:
            shape = shapes.model_shape(self.config.model)
            found = planner.plan(self.config, workload=workload.assumed(self.config.data, shape, rows))
        except ConfigError as error:
            log.warning("no plan for this run: %s", error)
            return
        gpus = found.machines
        note = (
            f"Assumed machines: {gpus.gpu}, {gpus.gpus_per_node} a node, {gpus.node_gb_s:g} GB/s a node. "
            "The run may have others: `python -m infra.plan --gpu ... --network ...`.\n\n"
        )
        self.text("plan/plan.txt", note + show.text(found))
        self.text("plan/plan.json", json.dumps(asdict(found), indent=2))

    def checkpoint(self, stage: str, record: CheckpointRecord) -> None:
        """Logs which checkpoint a stage gave."""
        self.tag({f"amvl.checkpoint.{stage}": record.fingerprint})

    def reused(self, stage: str, record: CheckpointRecord) -> None:
        """Logs that a stage is not trained in this run, and its curve, which no step will bring.

        The run that trained it may have called it otherwise.
        """
        self.tag({f"amvl.reused.{stage}": "true"})
        for event in record.history():
            self.metrics(stage, event.done, event.metrics)
        self.metrics(stage, record.step, record.metrics)

    def evaluation(self, record: EvalRecord) -> None:
        """Logs accuracy, interval and majority answer of every task, and every metric under every reading."""
        where = f"eval_{record.stage}" if record.benchmark == TEST_SPLIT else f"eval_{record.stage}_{record.benchmark}"
        for score in (*record.scores, record.overall):
            low_high = {f"{score.task}_low": score.low, f"{score.task}_high": score.high}
            self._values(where, {score.task: score.accuracy, **low_high})
            if record.benchmark == TEST_SPLIT:
                self._values("eval_majority", {score.task: score.majority})
        self._values(where, {"cut": record.cut})
        for reading in record.readings:
            self._values(f"{where}/{reading.reading}", {found.metric: found.value for found in reading.scores})

    def comparison(self, benchmark: str, compared: dict[str, Comparison]) -> None:
        """Logs the difference of every metric between two models with its interval, n and p."""
        for metric, found in compared.items():
            self._values(
                f"difference_{benchmark}",
                {
                    metric: found.difference,
                    f"{metric}_low": found.low,
                    f"{metric}_high": found.high,
                    f"{metric}_n": found.n,
                    f"{metric}_p": found.p,
                },
            )

    def faithfulness(self, record: FaithfulnessRecord) -> None:
        """Logs every variant's n, accuracy and log-likelihood, with their differences to the unchanged model.

        The name of the test is no number; it stands in the table.
        """
        own = record.benchmark == TEST_SPLIT
        where, tag = ("faithfulness", "") if own else (f"faithfulness_{record.benchmark}", f".{record.benchmark}")
        for row in record.rows:
            values = row.model_dump(exclude={"variant", "test"})
            self._values(f"{where}/{row.variant.replace(' ', '_')}", values)
        self.tag({f"amvl.faithfulness{tag}": record.verdict})

    def analysis(self, metrics: Mapping[str, float]) -> None:
        """Logs what an analysis measured."""
        self._values("analysis", metrics)

    def table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """Logs a table (equal-length columns) that the run's page shows, and the same as CSV.

        File and tag are those of MLflow's `log_table`, which adds the rows once more where a call is repeated.
        """
        import pandas as pd

        frame, file = pd.DataFrame(columns), f"tables/{name}.json"
        self.text(file, frame.to_json(orient="split", index=False, date_format="iso"))
        self._tables[file] = {"path": file, "type": "table"}
        self.tag({"mlflow.loggedArtifacts": json.dumps(list(self._tables.values()))})
        self.text(f"tables/{name}.csv", frame.to_csv(index=False))

    def text(self, path: str, text: str) -> None:
        """Logs `text` as the artifact `path`."""
        self.call(path, "log_text", text=text, artifact_file=path)

    def figure(self, path: str, figure: Any) -> None:
        """Logs a matplotlib figure as the artifact `path` (its ending is the format)."""
        self.call(path, "log_figure", figure=figure, artifact_file=path)

    def call(self, what: str, method: str, **arguments: Any) -> None:
        """Queues `client.method(run_id, **arguments)`; it may be repeated. `what` names it in a warning."""
        self._calls.append((what, method, arguments))

    def flush(self) -> bool:
        """Sends what is waiting, at most DRAIN_S seconds long; whether everything has gone out or was refused."""
        deadline = time.monotonic() + DRAIN_S
        self._wake.set()
        while (self._metrics or self._calls) and time.monotonic() < deadline:
            if self._thread is None or not self._thread.is_alive():
                break
            self._thread.join(timeout=0.1)
        return not (self._metrics or self._calls)

    def finish(self, status: str) -> None:
        """Sends the rest and ends the run; says what could not be sent. Does nothing where no run was opened."""
        if self._thread is None or self.run_id is None or self._closing.is_set():
            return
        self.call("the end of the run", "set_terminated", status=status)
        complete = self.flush()
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=DRAIN_S)
        if not complete:
            log.warning(
                "MLflow at %s did not take %d metrics and %d other entries of run %s (%s); the stages' own records "
                "below %s are complete",
                address(self.config),
                len(self._metrics),
                len(self._calls),
                self.run_id,
                ", ".join(what for what, *_ in list(self._calls)[:5]),
                self.config.storage,
            )

    def _values(self, prefix: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics.extend(Metric(self._named(prefix, key), float(value), now, 0) for key, value in values.items())

    def _named(self, *parts: str) -> str:
        """The name of a metric; with a hash where MLflow's characters make it that of another ("<5" and ">5")."""
        name = metric_name(*parts)
        return name if self._taken.setdefault(name, parts) == parts else hashed_name(name, *parts)

    def _log_config(self) -> None:
        from mlflow.entities import Param

        pairs = flatten(self.config).items()
        params = [Param(metric_name(key), value[:MAX_PARAM_LENGTH]) for key, value in pairs]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            batch = params[start : start + PARAMS_PER_BATCH]
            self.call("parameters", "log_batch", params=batch)
        self.text("config.json", self.config.model_dump_json(indent=2))

    def _send_all(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(SEND_EVERY_S)
            self._wake.clear()
            while not self._closing.is_set() and self._send_one():
                pass

    def _send_one(self) -> bool:
        """Sends one batch or call; False where nothing is waiting or the server is down."""
        batch = [self._metrics[i] for i in range(min(len(self._metrics), METRICS_PER_BATCH))]
        if batch:
            sent = self._try("metrics", "log_batch", {"metrics": batch})
            for _ in batch if sent else ():
                self._metrics.popleft()
            return sent
        if not self._calls:
            return False
        sent = self._try(*self._calls[0])
        if sent:
            self._calls.popleft()
        return sent

    def _try(self, what: str, method: str, arguments: dict[str, Any]) -> bool:
        """Whether `what` is dealt with: taken, or refused for good. No error leaves it: the thread must live on."""
        try:
            getattr(self._client, method)(self.run_id, **arguments)
        except Exception as error:
            if not _may_pass(error):
                log.warning("MLflow refused %s: %s: %s", what, type(error).__name__, error)
                self.refused.append(what)
                return True
            if what not in self._failing:
                log.warning(
                    "MLflow at %s does not take %s; the run goes on, entries are kept: %s",
                    address(self.config),
                    what,
                    error,
                )
            self._failing.add(what)
            return False
        if what in self._failing:
            log.warning("MLflow at %s takes %s again", address(self.config), what)
        self._failing.discard(what)
        return True


def _may_pass(error: Exception) -> bool:
    """Whether the same entry may be taken later: the network's errors, and a server's that is down or busy.

    Artifacts may go to an object store directly, past the tracking server; boto3 raises an error of its own for what
    the store answers, with the answer as its context.
    """
    from mlflow.exceptions import MlflowException

    answer = error if isinstance(error, ClientError) else error.__context__
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(answer, ClientError):
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    else:
        return isinstance(error, (OSError, NoConnectionError, HTTPClientError))
    return not 400 <= status < 500 or status in (408, 429)
