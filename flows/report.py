"""The rows of the tables and the lines that a run shows: pure functions of records."""

from typing import Any

from amvl_core.progress import Progress
from amvl_core.records import CheckpointRecord, DatasetRecord, EvalRecord, ModelRecord, TaskScore

SHOWN_METRICS = ("loss", "ntp", "kl_forward", "kl_reverse", "tokens_per_s")


def progress_line(progress: Progress) -> str:
    """One compact line: only the metrics a person watches."""
    shown = {name: progress.metrics[name] for name in SHOWN_METRICS if name in progress.metrics}
    return Progress(progress.stage, progress.done, progress.total, progress.unit, progress.seconds_left, shown).line()


def drop_rows(dataset: DatasetRecord) -> list[dict[str, Any]]:
    """One row per source, split and drop reason, with its examples; the kept samples in a row of their own."""
    rows: list[dict[str, Any]] = []
    for report in dataset.reports:
        where = {"source": report.source, "split": report.split, "read": report.read}
        rows.append({**where, "outcome": "kept", "samples": report.kept, "examples": ""})
        for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1]):
            examples = report.examples.get(reason, [])
            shown = "; ".join(f"{example.sample_id}: {example.detail}" for example in examples)
            rows.append({**where, "outcome": f"dropped: {reason}", "samples": count, "examples": shown})
    return rows


def labels(base: EvalRecord, final: EvalRecord) -> dict[str, EvalRecord]:
    """What tables and charts call the two models, in the order they are shown."""
    first = "base model" if base.stage == "base" else f"base model ({base.stage})"
    return {first: base, final.stage.upper() if final.stage == "amvl" else final.stage: final}


def score_rows(base: EvalRecord, final: EvalRecord) -> list[dict[str, str]]:
    """One row per task and an overall row: n, majority answer, and accuracy with its 95 % interval for each model."""
    shared = _shared_source(final)
    rows = []
    for score in (*final.scores, final.overall):
        row = {"task": score.task.removeprefix(shared).replace("_", " "), "n": f"{score.n:,}"}
        row["majority"] = f"{score.majority:.1%}"
        for label, record in labels(base, final).items():
            found = [other for other in (*record.scores, record.overall) if other.task == score.task]
            row[label] = interval(found[0]) if found else "-"
        rows.append(row)
    return rows


def interval(score: TaskScore) -> str:
    """`81.3% (77.1-84.9)`: accuracy and its 95 % Wilson interval."""
    return f"{score.accuracy:.1%} ({100 * score.low:.1f}-{100 * score.high:.1f})"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; empty text for no rows."""
    if not rows:
        return ""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def summary(dataset: DatasetRecord, final: CheckpointRecord, rows: list[dict[str, str]], model: ModelRecord) -> str:
    """The run in a few lines of Markdown."""
    return "\n\n".join(
        (
            f"**Data** {dataset.rows('train'):,} training and {dataset.rows('test'):,} test samples, "
            f"{sum(dataset.dropped.values()):,} dropped (`{dataset.fingerprint}`)",
            f"**Model** {final.method}, {final.num_parameters:,} parameters, stage `{final.stage}` at step "
            f"{final.step:,} (`{final.fingerprint}`), registered as `models:/{model.name}/{model.version}`",
            f"**Gate** `{model.alias}`: {model.reason}",
            "Accuracy with 95 % intervals:",
            markdown_table(rows),
        )
    )


def _shared_source(record: EvalRecord) -> str:
    """`source/` where every task is of one source, so that it need not be repeated in every row."""
    sources = {score.task.split("/", 1)[0] for score in record.scores if "/" in score.task}
    return f"{sources.pop()}/" if len(sources) == 1 and all("/" in score.task for score in record.scores) else ""
