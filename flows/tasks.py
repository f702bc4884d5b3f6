"""The tasks of the pipeline: each looks for the stage's record and calls one function of the rooms below."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from amvl_core.contracts import ablations, fingerprints, storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    ModelRecord,
    ReportRecord,
    load_record,
    remove_resume_state,
    save_record,
)
from flows import checks, report
from flows.outbox import create_link_artifact, create_markdown_artifact, create_table_artifact, progress_page
from flows.reporter import Reporter
from infra import cluster, registry
from infra.mlflow_client import tracking_uri
from infra.tracking import Tracker


@contextmanager
def working(config: RunConfig, tracker: Tracker, name: str) -> Iterator[Reporter]:
    """A stage that has work to do: the tracking run is open, Ray is connected and large enough."""
    tracker.start()
    cluster.connect(config.cluster)
    workers = cluster.resources(config.cluster)
    log = get_run_logger()
    log.info("%s: starts, %d workers on %s", name, workers.num_workers, workers.device)
    started = time.monotonic()
    yield Reporter(tracker, log, progress_page(name))
    log.info("%s: done in %.0f s", name, time.monotonic() - started)


def stage_uri(config: RunConfig, stage: str, fingerprint: str) -> str:
    """Where a stage's result is."""
    return storage.join(storage.absolute(config.storage), stage, fingerprint)


@task(cache_policy=NO_CACHE)
def preflight(config: RunConfig) -> None:
    """Refuses what cannot work before anything is computed."""
    checks.check_run(config)


@task(cache_policy=NO_CACHE)
def prepare(config: RunConfig, tracker: Tracker) -> DatasetRecord:
    """Sources -> shards."""
    from data_prep import pipeline

    uri = stage_uri(config, "prepare", pipeline.fingerprint(config))
    record = load_record(uri, DatasetRecord)
    if record is None:
        with working(config, tracker, "prepare") as on_progress:
            record = pipeline.prepare(config, uri, on_progress)
    else:
        _say_reused("prepare", record.fingerprint)
    tracker.dataset(record)
    rows = report.drop_rows(record)
    create_table_artifact(rows, key="drop-reasons", description="What was read, kept and dropped, and why")
    tracker.text("tables/drop_reasons.md", report.markdown_table(rows))
    for name in ("report.html", "report.json"):
        tracker.text(f"data/{name}", storage.read_bytes(storage.join(record.uri, name)).decode())
    record.check_test_split()  # now, not after all training
    return record


@task(cache_policy=NO_CACHE)
def read_benchmarks(config: RunConfig, tracker: Tracker) -> list[DatasetRecord]:
    """The questions of each published benchmark, as a dataset with a test split alone."""
    from data_prep import benchmarks

    records = []
    for source in config.evaluation.benchmarks:
        uri = stage_uri(config, benchmarks.STAGE, benchmarks.fingerprint(config, source))
        record = load_record(uri, DatasetRecord)
        if record is not None:
            _say_reused(f"read {source.name}", record.fingerprint)
        else:
            tracker.start()
            log = get_run_logger()
            on_progress = Reporter(tracker, log, progress_page(f"read-{source.name}"))
            record = benchmarks.read(config, source, uri, on_progress)
        records.append(record)
    return records


@task(task_run_name="train-{stage}", cache_policy=NO_CACHE)
def train(
    config: RunConfig,
    stage: str,
    dataset: DatasetRecord,
    parent: CheckpointRecord | None,
    tracker: Tracker,
    jobs: int = 1,
) -> CheckpointRecord:
    """One training stage, from the checkpoint of the stage before it; `jobs` of them share the machines."""
    fingerprint = fingerprints.train_fingerprint(config, stage, dataset, parent)
    uri = stage_uri(config, "train", fingerprint)
    record = load_record(uri, CheckpointRecord)
    if reused := record is not None:
        _say_reused(f"train {stage}", fingerprint)
        remove_resume_state(uri)
    else:
        with working(config, tracker, f"train-{stage}") as on_progress:
            from infra import ray_train

            tracker.plan(dataset.rows("train"))
            record = ray_train.train(config, stage, dataset, parent, uri, fingerprint, on_progress, jobs)
    assert record is not None
    tracker.checkpoint(record, reused=reused)
    return record


def train_controls(
    config: RunConfig, dataset: DatasetRecord, checkpoints: list[CheckpointRecord], tracker: Tracker
) -> list[tuple[str, CheckpointRecord]]:
    """The models without latents that a latent one is held against, trained from where its latent stages start."""
    found = []
    for label, control in ablations.controls(config).items():
        shared = ablations.shared_stages(config)
        checkpoint = checkpoints[len(shared) - 1] if shared else None
        for stage in control.stages:
            if stage not in config.stages:
                checkpoint = train(control, stage, dataset, checkpoint, tracker)
        assert checkpoint is not None
        found.append((label, checkpoint))
    return found


@task(task_run_name="evaluate-{name}", cache_policy=NO_CACHE)
def evaluate(
    config: RunConfig, name: str, dataset: DatasetRecord, model: CheckpointRecord | None, tracker: Tracker
) -> EvalRecord:
    """Scores of one model (None: the untrained base) on the test split."""
    fingerprint = fingerprints.evaluate_fingerprint(config, dataset, model)
    uri = stage_uri(config, "evaluate", fingerprint)
    record = load_record(uri, EvalRecord)
    if record is not None:
        _say_reused(f"evaluate {name}", fingerprint)
    else:
        with working(config, tracker, f"evaluate-{name}") as on_progress:
            from infra import ray_eval

            record = ray_eval.evaluate(config, dataset, model, uri, fingerprint, on_progress)
    tracker.evaluation(record)
    return record


@task(task_run_name="evaluate-{name}-on-benchmarks", cache_policy=NO_CACHE)
def evaluate_benchmarks(
    config: RunConfig, name: str, benchmarks: list[DatasetRecord], model: CheckpointRecord | None, tracker: Tracker
) -> list[EvalRecord]:
    """Scores of one model (None: the untrained base) on each published benchmark; one record each."""
    found: dict[str, EvalRecord] = {}
    todo: dict[str, tuple[DatasetRecord, str, str]] = {}
    for source, questions in zip(config.evaluation.benchmarks, benchmarks, strict=True):
        fingerprint = fingerprints.evaluate_fingerprint(config, questions, model)
        uri = stage_uri(config, "evaluate", fingerprint)
        record = load_record(uri, EvalRecord)
        if record is None:
            todo[source.name] = (questions, uri, fingerprint)
        else:
            _say_reused(f"evaluate {name} on {source.name}", fingerprint)
            found[source.name] = record
    if todo:
        with working(config, tracker, f"evaluate-{name}-on-benchmarks") as on_progress:
            from infra.ray_eval import Pool

            with Pool(config, model) as pool:
                for benchmark, (questions, uri, fingerprint) in todo.items():
                    found[benchmark] = pool.evaluate(questions, benchmark, uri, fingerprint, on_progress)
    records = [found[source.name] for source in config.evaluation.benchmarks]
    for record in records:
        tracker.evaluation(record)
    return records


def swappable(config: RunConfig, asked: Sequence[DatasetRecord]) -> list[DatasetRecord]:
    """Those with questions enough to swap latents between; a warning names the others."""
    if not config.evaluation.faithfulness_items:
        return []
    enough = [questions for questions in asked if questions.rows("test") > 1]
    for questions in asked:
        if questions not in enough:
            said = "faithfulness: left out for %s: a swap needs at least 2 questions, it has %d"
            get_run_logger().warning(said, questions.uri, questions.rows("test"))
    return enough


@task(task_run_name="faithfulness-{model.stage}", cache_policy=NO_CACHE)
def faithfulness(
    config: RunConfig,
    asked: list[DatasetRecord],
    model: CheckpointRecord,
    controls: list[tuple[str, CheckpointRecord]],
    tracker: Tracker,
) -> list[FaithfulnessRecord]:
    """A latent model with its latents changed, and models without latents, on the same questions.

    `asked` are a prepared dataset, of which the test split is asked, and questions of published benchmarks.
    """
    found: dict[str, FaithfulnessRecord] = {}
    todo: list[tuple[DatasetRecord, str, str]] = []
    for questions in asked:
        fingerprint = fingerprints.faithfulness_fingerprint(config, questions, model, controls)
        uri = stage_uri(config, "faithfulness", fingerprint)
        record = load_record(uri, FaithfulnessRecord)
        if record is not None:
            _say_reused(f"faithfulness {model.stage} on {record.benchmark}", fingerprint)
            found[questions.uri] = record
        else:
            todo.append((questions, uri, fingerprint))
    if todo:
        with working(config, tracker, f"faithfulness-{model.stage}") as on_progress:
            from infra import ray_analysis

            made = ray_analysis.faithfulness(config, todo, model, controls, on_progress)
            found |= {questions.uri: record for (questions, _, _), record in zip(todo, made, strict=True)}
    records = [found[questions.uri] for questions in asked]
    for record in records:
        _show_faithfulness(record, tracker)
    return records


def _show_faithfulness(record: FaithfulnessRecord, tracker: Tracker) -> None:
    """Verdict, table and figure of one suite, on the run's page and on the tracking page."""
    own = record.benchmark == TEST_SPLIT
    name = "faithfulness" if own else f"faithfulness_{record.benchmark}"
    said = record.verdict if own else f"{record.benchmark}: {record.verdict}"
    get_run_logger().info("%s", said)
    rows = report.faithfulness_rows(record, tracker.config.seed)
    # The progress of the stage has the stage's own name as its key.
    key = f"{name}-table-{record.stage}".lower().replace("_", "-")
    create_table_artifact(rows, key=key, description=said)
    if tracker.run_id is not None:
        from infra.reports import figures

        tracker.faithfulness(record)
        _log_rows(tracker, name, rows, said)
        tracker.figure(f"figures/{name}.png", figures.faithfulness_chart(record.rows, said))


@task(task_run_name="analyse-{model.stage}", cache_policy=NO_CACHE)
def analyse(
    config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, tracker: Tracker
) -> AnalysisRecord | None:
    """Geometry, similarity, sensitivity, information and heat maps of a latent model's latents on test samples.

    Of one sample there is nothing to compare: then a warning, and None.
    """
    if (items := min(config.evaluation.analysis_items, dataset.rows("test"))) < 2:
        said = "analyse: left out: %d test sample, at least 2 are compared (evaluation.analysis_items is %d)"
        get_run_logger().warning(said, items, config.evaluation.analysis_items)
        return None
    fingerprint = fingerprints.analyse_fingerprint(config, dataset, model)
    uri = stage_uri(config, "analyse", fingerprint)
    record = load_record(uri, AnalysisRecord)
    if record is not None:
        _say_reused(f"analyse {model.stage}", fingerprint)
    else:
        with working(config, tracker, f"analyse-{model.stage}") as on_progress:
            from infra import ray_analysis

            record = ray_analysis.analyse(config, dataset, model, uri, fingerprint, on_progress)
    if tracker.run_id is not None:
        from infra import analysis_files

        tracker.analysis(record)
        for name, figure in analysis_files.draw(record).items():
            tracker.table(name, analysis_files.data(record, name))
            tracker.figure(f"figures/{name}.png", figure)
    return record


@task(cache_policy=NO_CACHE)
def show_scores(config: RunConfig, base: EvalRecord, final: EvalRecord, tracker: Tracker) -> list[dict[str, str]]:
    """Score table on the run's page; tables, figures and sample predictions on the tracking page."""
    from amvl_core.eval.predictions import comparisons, sample

    compared = comparisons(base, final)
    rows = report.score_rows(base, final, compared, config.seed)
    create_table_artifact(
        rows, key="scores", description="Accuracy on the test split with 95 % intervals, and the paired difference"
    )
    if tracker.run_id is not None:  # else the finished run of the first time has them
        from infra.reports import figures

        _log_rows(tracker, "scores", rows)
        for reading, metrics in compared.items():
            tracker.comparison(f"test/{reading}", metrics)
        tracker.tag({"mlflow.note.content": report.note(rows)})
        tracker.table("predictions", sample(final))
        tracker.figure("figures/scores.png", figures.score_chart(report.labels(base, final)))
        if tracker.history:
            tracker.figure("figures/training.png", figures.curves(tracker.history, list(config.stages)))
    return rows


@task(cache_policy=NO_CACHE)
def show_benchmarks(
    questions: list[DatasetRecord], base: list[EvalRecord], final: list[EvalRecord], tracker: Tracker
) -> dict[str, list[dict[str, str]]]:
    """A table per published benchmark, on the run's page and on the tracking page; benchmark -> its rows."""
    from amvl_core.eval.predictions import comparisons, sample

    tables = {}
    for asked, before, after in zip(questions, base, final, strict=True):
        compared, name = comparisons(before, after), after.benchmark
        tables[name] = rows = report.benchmark_rows(before, after, compared, tracker.config.seed)
        notes = report.benchmark_notes(asked, before, after)
        create_table_artifact(rows, key=f"scores-{name}".replace("_", "-"), description=f"{name}: {notes}")
        if tracker.run_id is not None:
            _log_rows(tracker, f"scores_{name}", rows, notes)
            tracker.table(f"predictions_{name}", sample(after))
            for reading, metrics in compared.items():
                tracker.comparison(f"{name}/{reading}", metrics)
    return tables


@task(cache_policy=NO_CACHE)
def register(
    config: RunConfig,
    dataset: DatasetRecord,
    checkpoint: CheckpointRecord,
    evaluations: list[EvalRecord],
    tracker: Tracker,
) -> ModelRecord:
    """The checkpoint as a version of the registered model."""
    uri = stage_uri(config, "register", registry.fingerprint(config, checkpoint, evaluations))
    record = load_record(uri, ModelRecord)
    if record is not None and registry.is_current(config, record):
        _say_reused("register", f"models:/{record.name}/{record.version}")
    else:
        run_id = tracker.start()
        tracker.flush()
        decision = _gate(config, dataset, evaluations[-1], run_id)
        record = registry.register(config, run_id, dataset, checkpoint, evaluations, decision, uri)
        get_run_logger().info(
            "register: models:/%s/%d, alias %s: %s", record.name, record.version, record.alias, record.reason
        )
    return record


def _gate(config: RunConfig, dataset: DatasetRecord, new: EvalRecord, run_id: str) -> registry.Decision:
    """The alias of a new version; the champion and the best version so far are asked its items first, if need be."""
    present, best = registry.champion(config), registry.best(config)
    scored: dict[int, EvalRecord] = {}
    trouble = ""
    for version, name in ((present, "champion"), (best, "best")):
        if version is None or version.checkpoint is None or version.version in scored:
            continue
        label = f"{name}-{version.version}"
        try:
            # A tracking run of its own below the pipeline's: the metrics of two models must not mix.
            with Tracker(config, label, parent=run_id) as tracker:
                scored[version.version] = evaluate(config, label, dataset, version.checkpoint, tracker)
        except AmvlError as error:
            if version is present:
                trouble = f"it cannot be evaluated on these items ({error})"
            else:
                get_run_logger().warning("register: not compared with version %d, the best: %s", version.version, error)
    held = scored.get(present.version) if present else None
    return registry.decide(config, new, present, held, trouble, scored)


@task(cache_policy=NO_CACHE)
def show_summary(
    config: RunConfig, dataset: DatasetRecord, final: CheckpointRecord, rows: list[dict[str, str]], model: ModelRecord
) -> str:
    """Summary and link on the run's page; returns the address of the tracking run's page."""
    page = mlflow_page(config, model.run_id)
    create_markdown_artifact(report.summary(dataset, final, rows, model), key="summary", description="The run")
    create_link_artifact(page, key="mlflow-run", link_text="the run in MLflow", description="Curves, tables, figures")
    return page


@task(cache_policy=NO_CACHE)
def show_report(
    config: RunConfig,
    dataset: DatasetRecord,
    checkpoint: CheckpointRecord,
    before: EvalRecord,
    after: EvalRecord,
    rows: list[dict[str, str]],
    model: ModelRecord,
    tracker: Tracker,
    benchmarks: dict[str, list[dict[str, str]]] | None = None,
    published: Sequence[EvalRecord] = (),
    faithfulness: Sequence[FaithfulnessRecord] = (),
    analysis: AnalysisRecord | None = None,
) -> str:
    """The run as one HTML page: below the storage root and with the tracking run; linked from the run's page.

    `benchmarks` are the tables of the evaluations `published`.
    """
    from infra.reports import run_report

    fingerprint = run_report.report_fingerprint(model, *published, *faithfulness, analysis)
    uri = stage_uri(config, "report", fingerprint)
    page_uri = storage.join(uri, run_report.NAME)
    record = load_record(uri, ReportRecord)
    if record is not None:
        _say_reused("report", fingerprint)
        if tracker.run_id is not None:  # else the run that made it has it
            tracker.text(run_report.NAME, storage.read_bytes(page_uri).decode())
    else:
        run_id = tracker.start()
        labels = report.labels(before, after)
        history = tracker.history
        page = run_report.build(
            config, dataset, checkpoint, labels, model, rows, history, benchmarks, faithfulness, analysis
        )
        storage.write_bytes(page_uri, page.encode())
        tracker.text(run_report.NAME, page)
        record = ReportRecord(uri=uri, fingerprint=fingerprint, run_id=run_id)
        save_record(record)
    link = f"{mlflow_page(config, tracker.run_id or record.run_id)}/artifacts/{run_report.NAME}"
    create_link_artifact(link, key="report", link_text="the report of the run", description="One page, also to print")
    return page_uri


def mlflow_page(config: RunConfig, run_id: str) -> str:
    """Address of a run's page: on the tracking server, or on the one that `make serve` opens on the same database."""
    uri = tracking_uri(config)
    server = uri if uri.startswith("http") else f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"
    return server.rstrip("/") + registry.run_fragment(config, run_id)


def _log_rows(tracker: Tracker, name: str, rows: list[dict[str, str]], notes: str = "") -> None:
    """One table as what the tracking page shows, as CSV, and as Markdown."""
    tracker.table(name, {key: [row[key] for row in rows] for key in rows[0]})
    tracker.text(f"tables/{name}.md", "\n\n".join(filter(None, (report.markdown_table(rows), notes))) + "\n")


def _say_reused(stage: str, what: str) -> None:
    get_run_logger().info("%s: reused %s", stage, what)


def outcome(
    rows: list[dict[str, str]],
    benchmarks: dict[str, list[dict[str, str]]],
    model: ModelRecord,
    mlflow: str,
    report_uri: str,
    flow_run_id: str,
) -> dict[str, Any]:
    """What the flow returns: plain data, for whoever called it."""
    return {
        "scores": rows,
        "benchmarks": benchmarks,
        "model": model.model_dump(mode="json"),
        "mlflow_page": mlflow,
        "report": report_uri,
        "flow_run_id": flow_run_id,
    }
