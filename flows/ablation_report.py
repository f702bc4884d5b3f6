"""An ablation table for people: rows, Markdown ready for the documents, CSV, and where they are shown."""

from typing import Any

from amvl_core.contracts.ablations import PAPER_COLUMNS, Table
from amvl_core.contracts.comparisons import AblationRecord, AblationRow, SeedScores
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import DatasetRecord
from amvl_core.eval.faithfulness import effect, nats, points
from amvl_core.eval.significance import p_text
from flows.outbox import create_link_artifact, create_markdown_artifact, create_table_artifact
from flows.pages import mlflow_page
from flows.report import markdown_table
from infra.tracking import Tracker


def score_rows(record: AblationRecord) -> list[dict[str, str]]:
    """One line a row: what it changes, the paper's scores, ours with both intervals, the paired test.

    Beside a score of the paper is ours with its interval over items where the run asked that benchmark.
    """
    papers = [name for name in PAPER_COLUMNS if any(name in row.paper for row in record.rows)]
    measured = {name for row in record.rows for name in row.benchmarks}
    return [
        {
            "row": _name(row, record),
            "changes": row.changes,
            **dict(_paper(row, name, asked=PAPER_COLUMNS[name] in measured) for name in papers),
            **_scores(row, row),
        }
        for row in record.rows
    ]


def benchmark_rows(record: AblationRecord) -> list[dict[str, str]]:
    """The same for every published benchmark that the run asked: one line a benchmark and row."""
    columns = {benchmark: name for name, benchmark in PAPER_COLUMNS.items()}
    asked = dict.fromkeys(name for row in record.rows for name in row.benchmarks)
    return [
        {
            "benchmark": name,
            "row": _name(row, record),
            "paper": _printed(row.paper.get(columns.get(name, ""))),
            **_scores(row.benchmarks[name], row),
        }
        for name in asked
        for row in record.rows
    ]


def swap_rows(record: AblationRecord) -> list[dict[str, str]]:
    """What swapping the latents between items does to each latent row, over its seeds and for each of them."""
    return [
        {
            "row": _name(row, record),
            "n": f"{row.swap.n:,}",
            "accuracy, points": points(row.swap),
            "p": p_text(row.swap.p_value),
            "test": row.swap.test,
            "each seed, points": " ".join(f"{100 * one.difference:+.1f}" for one in row.swaps.values()),
            "log-likelihood, nats": nats(row.swap),
            "p, nats": p_text(row.swap.log_likelihood_p),
            "each seed, nats": " ".join(f"{one.log_likelihood_difference:+.3f}" for one in row.swaps.values()),
            "on these items": effect(row.swap),
        }
        for row in record.rows
        if row.swap
    ]


def measured_rows(table: Table, record: AblationRecord) -> list[dict[str, str]]:
    """What was measured of the latents of each row that was analysed, the paper's figures beside ours."""
    names = list(dict.fromkeys(name for row in record.rows for name in row.measured))
    paper = {row.label: row.measured for row in table.rows}
    return [
        {
            "row": row.label,
            **{name: _beside(row.measured.get(name), paper.get(row.label, {}).get(name)) for name in names},
        }
        for row in record.rows
        if row.measured
    ]


def markdown(config: RunConfig, table: Table, record: AblationRecord, dataset: DatasetRecord) -> str:
    """The table with what must be known to read it."""
    sources = ", ".join(dict.fromkeys(report.source for report in dataset.reports))
    n = max(row.n for row in record.rows)
    seeds = sorted({seed for row in record.rows for seed in row.accuracies})
    counted = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})"
    beside = any(name in row.benchmarks for row in record.rows for name in PAPER_COLUMNS.values())
    parts = [
        f"## {table.title}",
        f"Ours: accuracy in per cent on the {n:,} test questions of {sources}, model `{config.model.base}`, {counted}, "
        f"dataset `{record.dataset}`, table `{record.fingerprint}`. The paper's figures are other benchmarks and a "
        "model of 7B (first row: Qwen2.5-VL-7B): they are not comparable with these, only the order of the rows is."
        + (" `paper / ours`: the same benchmark, asked of this model; the interval is over items." if beside else ""),
        "All rows start from one base checkpoint, and a seed is that of the stages after it. `over seeds`: Student's "
        "95 % interval of the seeds' means, what another training would score on these questions. `over items`: 95 % "
        "bootstrap over questions with all seeds of a question together (one seed of independent questions: Wilson's), "
        "what these trainings would score on other questions. `n`: questions of each seed. `against headline` and "
        "`p`: paired by question, seeds pooled, the answers to a question together; the interval is the bootstrap's "
        "over questions.",
        markdown_table(score_rows(record)),
    ]
    if benchmarks := benchmark_rows(record):
        parts += [
            "Published benchmarks: the overall score, read as `docs/evaluation.md` says.",
            markdown_table(benchmarks),
        ]
    if swaps := swap_rows(record):
        parts += [
            "Do the latents matter? Each question was answered again with the latents of another one (`swapped` of "
            "`docs/faithfulness.md`, latents at tau = 0): what that changes, with 95 % bootstrap "
            "intervals, the answers to a question together. `n`: answers of all seeds; `p` is that of the accuracies, "
            "`p, nats` that of random sign flips.",
            markdown_table(swaps),
        ]
    analysis = config.method.analysis()
    if analysis and (measured := measured_rows(table, record)):
        parts += [analysis.compared, markdown_table(measured)]
    failed = [f"- {row.label}, seed {seed}: {why}" for row in record.rows for seed, why in row.failed.items()]
    if failed:
        parts.append("Failed, and not in the means:\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def show(config: RunConfig, table: Table, record: AblationRecord, dataset: DatasetRecord, tracker: Tracker) -> str:
    """Table, text and link on the run's page; Markdown and CSV on the tracking page, whose address is returned."""
    rows, text = score_rows(record), markdown(config, table, record, dataset)
    key = f"ablation-{record.table}"
    create_table_artifact(rows, key=key, description=table.title)
    further = {
        "benchmarks": benchmark_rows(record),
        "latents": swap_rows(record),
        "measured": measured_rows(table, record),
    }
    further = {name: found for name, found in further.items() if found}
    for name, found in further.items():
        create_table_artifact(found, key=f"{key}-{name}", description=f"{table.title}: {name}")
    create_markdown_artifact(text, key=f"{key}-text", description=table.title)
    page = mlflow_page(config, record.run_id)
    create_link_artifact(page, key="mlflow-run", link_text="the table in MLflow", description="Nested runs, CSV")
    if tracker.run_id == record.run_id:  # else the run that computed the table has them
        tracker.table(f"ablation_{record.table}", _columns(rows))
        for name, found in further.items():
            tracker.table(f"ablation_{record.table}_{name}", _columns(found))
        tracker.text(f"tables/ablation_{record.table}.record.json", record.model_dump_json(indent=2))
        tracker.note(text, f"tables/ablation_{record.table}.md")
    return page


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _name(row: AblationRow, record: AblationRecord) -> str:
    return row.label + (" (headline)" if row.label == record.headline else "")


def _paper(row: AblationRow, name: str, *, asked: bool) -> tuple[str, str]:
    """A column's head and cell: the paper's score, and ours of that benchmark where it was asked."""
    printed = _printed(row.paper.get(name))
    if not asked:
        return f"paper {name}", printed
    ours = row.benchmarks[PAPER_COLUMNS[name]]
    shown = f"{_percent(ours.mean)} ({_range(ours.over_items)})" if ours.n else "failed"
    return f"{name}: paper / ours", f"{printed} / {shown}"


def _scores(scores: SeedScores, row: AblationRow) -> dict[str, str]:
    """The columns of what the seeds of `row` score on one benchmark."""
    each = [_percent(accuracy) for accuracy in scores.accuracies.values()]
    return {
        "n": f"{scores.n:,}",
        "ours, mean": _percent(scores.mean) if scores.n else "failed",
        "over seeds": _range(scores.over_seeds),
        "over items": _range(scores.over_items) if scores.n else "-",
        "seeds": " ".join(each + [f"({len(row.failed)} failed)"] * bool(row.failed)) or "-",
        "against headline": _difference(scores),
        "p": "-" if scores.p_value is None else p_text(scores.p_value),
        "test": scores.test or "-",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _printed(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _range(bounds: tuple[float, float] | None) -> str:
    return "-" if bounds is None else f"{_percent(bounds[0])} to {_percent(bounds[1])}"


def _difference(scores: SeedScores) -> str:
    if scores.difference is None or scores.difference_interval is None:
        return "-"
    low, high = scores.difference_interval
    return f"{100 * scores.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _beside(ours: float | None, paper: float | None) -> str:
    return ("-" if ours is None else f"{ours:.4g}") + (f" ({paper:.4g})" if paper is not None else "")
