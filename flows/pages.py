"""What a run shows: tables, figures and links on its Prefect page and in MLflow, and the addresses of those pages."""

from typing import Any
from urllib.parse import quote

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import (
    TEST_SPLIT,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    ModelRecord,
    ReportRecord,
    save_record,
)
from flows import report
from flows.environment import MLFLOW_URL, serving
from flows.outbox import create_link_artifact, create_markdown_artifact, create_table_artifact
from flows.stage import finished_or, place
from infra import registry
from infra.mlflow_client import AS_TRAINING, address
from infra.reports.run_result import RunResult
from infra.tracking import Tracker


@task(cache_policy=NO_CACHE)
def show_scores(config: RunConfig, base: EvalRecord, final: EvalRecord, tracker: Tracker) -> list[dict[str, str]]:
    """Score table on the run's page; tables, figures and sample predictions on the tracking page."""
    from amvl_core.eval.predictions import comparisons, sample

    compared = comparisons(base, final)
    rows = report.score_rows(base, final, compared, config.seed)
    for said in report.cut_lines(base, final):
        get_run_logger().warning("%s", said)
    get_run_logger().info("test split: %s", report.score_line(rows[-1], report.labels(base, final)))
    create_table_artifact(
        rows, key="scores", description="Accuracy on the test split with 95 % intervals, and the paired difference"
    )
    if tracker.run_id is not None:  # else the finished run of the first time has them
        from infra.reports import figures

        log_rows(tracker, "scores", rows)
        for reading, metrics in compared.items():
            tracker.comparison(f"test/{reading}", metrics)
        tracker.tag({"mlflow.note.content": report.note(rows)})
        tracker.table("predictions", sample(final))
        tracker.figure("figures/scores.png", figures.score_chart(report.labels(base, final)))
        if tracker.history:
            tracker.figure("figures/training.png", figures.curves(tracker.history, config.stages))
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
        tables[name] = rows = report.benchmark_rows(
            before, after, compared, tracker.config.seed, type(tracker.config.method)
        )
        notes = report.benchmark_notes(asked, before, after)
        get_run_logger().info("%s: %s", name, report.score_line(rows[0], report.labels(before, after)))
        create_table_artifact(rows, key=f"scores-{name}", description=f"{name}: {notes}")
        if tracker.run_id is not None:
            log_rows(tracker, f"scores_{name}", rows, notes)
            tracker.table(f"predictions_{name}", sample(after))
            for reading, metrics in compared.items():
                tracker.comparison(f"{name}/{reading}", metrics)
    return tables


def show_faithfulness(record: FaithfulnessRecord, tracker: Tracker) -> None:
    """Verdict, table and figure of one suite, on the run's page and on the tracking page."""
    own = record.benchmark == TEST_SPLIT
    name = "faithfulness" if own else f"faithfulness_{record.benchmark}"
    said = record.verdict if own else f"{record.benchmark}: {record.verdict}"
    get_run_logger().info("%s", said)
    rows = report.faithfulness_rows(record, tracker.config.seed)
    # The progress of the stage has the stage's own name as its key.
    create_table_artifact(rows, key=f"{name}-table-{record.stage}", description=said)
    if tracker.run_id is not None:
        from infra.reports import figures

        tracker.faithfulness(record)
        log_rows(tracker, name, rows, said)
        tracker.figure(f"figures/{name}.png", figures.faithfulness_chart(record.rows, said))


@task(cache_policy=NO_CACHE)
def show_summary(
    config: RunConfig, dataset: DatasetRecord, final: CheckpointRecord, rows: list[dict[str, str]], model: ModelRecord
) -> str:
    """Summary and link on the run's page; returns the address of the tracking run's page."""
    pages = mlflow_pages(config, model.run_id, model)
    page, text = pages["run"], report.summary(dataset, final, rows, model, pages)
    create_markdown_artifact(text, key="summary", description="The run")
    create_link_artifact(page, key="mlflow-run", link_text="the run in MLflow", description="Curves, tables, figures")
    return page


@task(cache_policy=NO_CACHE)
def show_report(run: RunResult, tracker: Tracker) -> str:
    """The run as one HTML page: below the storage root and with the tracking run; linked from the run's page."""
    from infra.reports import run_report

    where = place(run.config, "report", run.fingerprint)
    page_uri = storage.join(where.uri, run_report.NAME)

    def make() -> ReportRecord:
        run_id = tracker.start()
        pages = mlflow_pages(run.config, run_id, run.model)
        storage.write_bytes(page_uri, run_report.build(run, tracker.history, pages).encode())
        record = ReportRecord(**where._asdict(), run_id=run_id)
        save_record(record)
        return record

    record = finished_or("report", where, ReportRecord, make)
    if tracker.run_id is not None:  # else the run that made it has it
        tracker.text(run_report.NAME, storage.read_bytes(page_uri).decode())
    link = mlflow_page(run.config, tracker.run_id or record.run_id, run_report.NAME)
    get_run_logger().info("report: %s", link)
    create_link_artifact(link, key="report", link_text="the report of the run", description="One page, also to print")
    return page_uri


def mlflow_page(config: RunConfig, run_id: str, artifact: str = "") -> str:
    """Address of a run's page, or of one of its artifacts."""
    tab = f"/artifacts/{artifact}" if artifact else ""
    return mlflow_server(config) + registry.run_fragment(config, run_id, tab)


def mlflow_pages(config: RunConfig, run_id: str, model: ModelRecord) -> dict[str, str]:
    """Addresses of the `run`, of the report of its `data`, and of the registered `model`."""
    version = f"{mlflow_server(config)}/#/models/{quote(model.name, safe='')}/versions/{model.version}"
    return {
        "run": mlflow_page(config, run_id),
        "data": mlflow_page(config, run_id, "data/report.html"),
        "model": version + AS_TRAINING,
    }


def mlflow_server(config: RunConfig) -> str:
    """The tracking server, or the one that `make serve` has opened, or opens, on the same database."""
    if (uri := address(config)).startswith("http"):
        return uri.rstrip("/")
    return found[1] if (found := serving()) else MLFLOW_URL


def log_rows(tracker: Tracker, name: str, rows: list[dict[str, str]], notes: str = "") -> None:
    """One table as what the tracking page shows, as CSV, and as Markdown."""
    tracker.table(name, {key: [row[key] for row in rows] for key in rows[0]})
    tracker.text(f"tables/{name}.md", "\n\n".join(filter(None, (report.markdown_table(rows), notes))) + "\n")


def outcome(run: RunResult, mlflow: str, report_uri: str, flow_run_id: str) -> dict[str, Any]:
    """What the flow returns: plain data, for whoever called it."""
    return {
        "scores": run.scores,
        "benchmarks": run.tables,
        "model": run.model.model_dump(mode="json"),
        "mlflow_page": mlflow,
        "report": report_uri,
        "checkpoint": run.checkpoint.model_uri,
        "flow_run_id": flow_run_id,
    }
