"""An ablation table for people: rows, Markdown ready for the documents, CSV, and where they are shown."""

from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from amvl_core.ablations import HR_4K, HR_8K, TABLES, VSTAR, Table
from amvl_core.analysis.geometry import TABLE_7
from amvl_core.config import RunConfig
from amvl_core.records import AblationRecord, AblationRow, DatasetRecord
from flows.report import markdown_table
from flows.tasks import mlflow_page
from infra.tracking import Tracker


def score_rows(record: AblationRecord) -> list[dict[str, str]]:
    """One line a row: what it changes, the paper's scores, ours with both intervals, the paired test."""
    papers = [name for name in (VSTAR, HR_4K, HR_8K) if any(name in row.paper for row in record.rows)]
    return [
        {
            "row": row.label + (" (headline)" if row.label == record.headline else ""),
            "changes": row.changes,
            **{f"paper {name}": f"{row.paper[name]:.2f}" if name in row.paper else "-" for name in papers},
            "ours, mean": _percent(row.mean) if row.n else "failed",
            "over seeds": _range(row.over_seeds),
            "over items": _range(row.over_items) if row.n else "-",
            "seeds": _seeds(row),
            "against headline": _difference(row),
            "p": "-" if row.p_value is None else f"{row.p_value:.4f}",
        }
        for row in record.rows
    ]


def geometry_rows(record: AblationRecord) -> list[dict[str, str]]:
    """Table 7: the latents' geometry of each row that was analysed, the paper's figures beside ours."""
    names = list(dict.fromkeys(name for row in record.rows for name in row.geometry))
    return [
        {
            "row": row.label,
            **{name: _beside(row.geometry.get(name), _paper_geometry(row.label).get(name)) for name in names},
        }
        for row in record.rows
        if row.geometry
    ]


def markdown(config: RunConfig, table: Table, record: AblationRecord, dataset: DatasetRecord) -> str:
    """The table with what must be known to read it."""
    sources = ", ".join(dict.fromkeys(report.source for report in dataset.reports))
    n = max(row.n for row in record.rows)
    seeds = sorted({seed for row in record.rows for seed in row.accuracies})
    counted = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})"
    parts = [
        f"## {table.title}",
        f"Ours: accuracy in per cent on the {n:,} test questions of {sources}, model `{config.model.base}`, {counted}, "
        f"dataset `{record.dataset}`, table `{record.fingerprint}`. The paper's columns are other benchmarks and a "
        "model of 7B (first row: Qwen2.5-VL-7B): its figures are not comparable with ours, only the "
        "order of the rows is.",
        "All rows start from one base checkpoint, and a seed is that of the stages after it. `over seeds`: Student's "
        "95 % interval of the seeds' means, what another training would score on these questions. `over items`: 95 % "
        "bootstrap over questions with all seeds of a question together (one seed: Wilson's), what these trainings "
        "would score on other questions. `against headline` and `p`: paired by question, seeds pooled, the signs of "
        "questions flipped at random (one seed: McNemar's exact test); the interval is the bootstrap's over questions.",
        markdown_table(score_rows(record)),
    ]
    if geometry := geometry_rows(record):
        parts += [
            "Table 7, geometry of the latents: ours, mean over seeds (paper). Scales differ with the width of the "
            "latents; `D_L2` against `D_shift`, and the cosine, can be compared.",
            markdown_table(geometry),
        ]
    failed = [f"- {row.label}, seed {seed}: {why}" for row in record.rows for seed, why in row.failed.items()]
    if failed:
        parts.append("Failed, and not in the means:\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def show(config: RunConfig, table: Table, record: AblationRecord, dataset: DatasetRecord, tracker: Tracker) -> str:
    """Table, text and link on the run's page; Markdown and CSV on the tracking page, whose address is returned."""
    rows, text = score_rows(record), markdown(config, table, record, dataset)
    key = f"ablation-{record.table}"
    create_table_artifact(rows, key=key, description=table.title)
    create_markdown_artifact(text, key=f"{key}-text", description=table.title)
    page = mlflow_page(config, record.run_id)
    create_link_artifact(page, key="mlflow-run", link_text="the table in MLflow", description="Nested runs, CSV")
    if tracker.run_id == record.run_id:  # else the run that computed the table has them
        tracker.table(f"ablation_{record.table}", _columns(rows))
        if geometry := geometry_rows(record):
            tracker.table(f"ablation_{record.table}_geometry", _columns(geometry))
        tracker.text(f"tables/ablation_{record.table}.md", text)
        tracker.text(f"tables/ablation_{record.table}.record.json", record.model_dump_json(indent=2))
        tracker.tag({"mlflow.note.content": text})
    return page


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(bounds: tuple[float, float] | None) -> str:
    return "-" if bounds is None else f"{_percent(bounds[0])} to {_percent(bounds[1])}"


def _seeds(row: AblationRow) -> str:
    each = [_percent(accuracy) for accuracy in row.accuracies.values()]
    return " ".join(each + [f"({len(row.failed)} failed)"] * bool(row.failed)) or "-"


def _difference(row: AblationRow) -> str:
    if row.difference is None or row.difference_interval is None:
        return "-"
    low, high = row.difference_interval
    return f"{100 * row.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _paper_geometry(label: str) -> dict[str, float]:
    return TABLE_7.get("AMVL" if label == TABLES[3].headline else label, {})


def _beside(ours: float | None, paper: float | None) -> str:
    return ("-" if ours is None else f"{ours:.4g}") + (f" ({paper:.4g})" if paper is not None else "")
