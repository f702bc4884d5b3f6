"""The rows of the tables and the lines that a run shows: pure functions of records."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from amvl_core.contracts.method import MethodConfig, configurations
from amvl_core.contracts.records import (
    UNCHANGED,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    MetricScore,
    ModelRecord,
    TaskScore,
)
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.published import published_scores
from amvl_core.eval.faithfulness import nats, points
from amvl_core.eval.significance import Comparison, markdown, p_text
from infra.tracking import MAX_NOTE

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
"""What Prefect's `get_run_logger` returns."""
SHOWN_WARNINGS = 10


def page_text(line: str, warnings: list[str]) -> str:
    """The progress line as Markdown, with the last warnings under it, the newest first."""
    shown = warnings[: -SHOWN_WARNINGS - 1 : -1]
    return "\n".join([f"`{line}`", *(["", "**Warnings**", ""] if shown else []), *(f"- {text}" for text in shown)])


def drop_rows(dataset: DatasetRecord) -> list[dict[str, Any]]:
    """One row per source, split and drop reason, with its examples; one for the kept samples, and for each note."""
    rows: list[dict[str, Any]] = []
    for report in dataset.reports:
        where = {"source": report.source, "split": report.split, "read": report.read}
        rows.append({**where, "outcome": "kept", "samples": report.kept, "examples": ""})
        for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1]):
            examples = report.examples.get(reason, [])
            shown = "; ".join(f"{example.sample_id}: {example.detail}" for example in examples)
            rows.append({**where, "outcome": f"dropped: {reason}", "samples": count, "examples": shown})
        rows += [{**where, "outcome": note, "samples": count, "examples": ""} for note, count in report.notes.items()]
    return rows


def labels(base: EvalRecord, final: EvalRecord) -> dict[str, EvalRecord]:
    """What tables and charts call the two models, in the order they are shown."""
    first = "base model" if base.stage == "base" else f"base model ({base.stage})"
    own = configurations().get(final.stage)
    return {first: base, own.label if own else final.stage: final}


def score_rows(
    base: EvalRecord, final: EvalRecord, compared: Mapping[str, Mapping[str, Comparison]], seed: int
) -> list[dict[str, str]]:
    """A row per task, one for the whole split under each other way of reading, the overall row last.

    Where answers were cut, a row before it counts them.

    Each has n, the majority answer, accuracy with its 95 % interval for both models, and the paired difference with
    its interval, p and test (`compared`: reading -> task -> comparison on the same items). `seed` is that of the
    trainings.
    """
    first, second = labels(base, final)
    shared = _shared_source(final)
    by_task = {score.task: score for score in base.scores}

    def row(
        name: str, before: TaskScore | MetricScore | None, after: TaskScore | MetricScore, of: TaskScore, reading: str
    ) -> dict[str, str]:
        """`of` has the majority answer, which is shown where it is that of the same questions."""
        task = after.task if isinstance(after, TaskScore) else after.metric
        shown = {first: interval(before) if before else "-", second: interval(after)}
        if before and before.n != after.n:
            shown[first] += f", n = {before.n:,}"
        found = compared.get(reading, {}).get(task)
        about = {"task": name, "n": f"{after.n:,}", "majority": f"{of.majority:.1%}" if of.n == after.n else "-"}
        return {**about, **shown, **difference(found), "seed": str(seed)}

    headline, *others = [reading.reading for reading in final.readings]
    rows = [
        row(score.task.removeprefix(shared).replace("_", " "), by_task.get(score.task), score, score, headline)
        for score in final.scores
    ]
    whole = final.overall
    for reading in others:
        before, after = (_metric(record, reading, whole.task) for record in (base, final))
        if after:
            rows.append(row(f"{whole.task}, {reading}", before, after, whole, reading))
    if base.cut or final.cut:
        shown = {label: f"{one.cut:,}" for label, one in ((first, base), (second, final))}
        cut = {"task": "answers cut", "n": f"{final.asked:,}", "majority": "-"}
        rows.append({**cut, **shown, **difference(None), "seed": str(seed)})
    return [*rows, row(whole.task, base.overall, whole, whole, headline)]


def score_line(row: Mapping[str, str], models: Iterable[str]) -> str:
    """A row of a score table, for a log."""
    shown = [f"{label} {row[label]}" for label in models]
    return "  ".join([*shown, f"difference {row['difference']}", f"p {row['p']}", f"n {row['n']}"])


def cut_lines(base: EvalRecord, final: EvalRecord) -> list[str]:
    """A warning for each model that had not ended some of its answers when it had written as much as it may."""
    return [
        f"{label}: {record.cut:,} of {record.asked:,} answers were cut at evaluation.max_new_tokens"
        for label, record in labels(base, final).items()
        if record.cut
    ]


def benchmark_rows(
    base: EvalRecord,
    final: EvalRecord,
    compared: Mapping[str, Mapping[str, Comparison]],
    seed: int,
    method: type[MethodConfig],
) -> list[dict[str, str]]:
    """One row per metric and way of reading, the headline reading first.

    Both models, the paired difference (`compared`: reading -> metric -> comparison), the seed of the trainings, and
    what the benchmark's authors and the paper of `method` print.
    """
    benchmark = BENCHMARKS[final.benchmark]
    papers = published_scores(benchmark, [method])
    rows = []
    for reading in sorted(final.readings, key=lambda reading: reading.reading != benchmark.headline):
        for score in reading.scores:
            row = {"metric": score.metric.replace("_", " "), "read by": reading.reading, "n": f"{score.n:,}"}
            shown = (_metric(base, reading.reading, score.metric), score)
            row |= {label: interval(one) if one else "-" for label, one in zip(labels(base, final), shown, strict=True)}
            row |= difference(compared.get(reading.reading, {}).get(score.metric)) | {"seed": str(seed)}
            rows.append(row | {column: printed.get(score.metric, "-") for column, printed in papers.items()})
    return rows


def benchmark_notes(questions: DatasetRecord, base: EvalRecord, final: EvalRecord) -> str:
    """How many of the published questions were asked, what was dropped and why, and what could not be read."""
    size = BENCHMARKS[final.benchmark].size
    notes = [f"{questions.kept:,} of {size:,} published questions" if size else f"{questions.kept:,} questions"]
    notes += [f"{count:,} dropped: {reason}" for reason, count in questions.dropped.items()]
    for label, record in labels(base, final).items():
        for reading in record.readings:
            notes.append(f"{label}, {reading.reading}: {reading.unanswered:,} without an answer")
            if reading.drawn:
                notes[-1] += f", {reading.drawn:,} drawn for the harness"
    return "; ".join([*notes, *cut_lines(base, final)])


def difference(found: Comparison | None) -> dict[str, str]:
    """The columns of a paired difference: never without its interval, p and test; n stands in the row."""
    if found is None:
        return {"difference": "-", "p": "-", "test": "-"}
    shown = f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return {"difference": shown, "p": p_text(found.p), "test": found.test}


def interval(score: TaskScore | MetricScore) -> str:
    """`81.3% (77.1-84.9)`: a score and its 95 % interval."""
    value = score.accuracy if isinstance(score, TaskScore) else score.value
    return f"{value:.1%} ({100 * score.low:.1f}-{100 * score.high:.1f})"


def faithfulness_rows(record: FaithfulnessRecord, seed: int) -> list[dict[str, str]]:
    """One row per variant: n, accuracy and log-likelihood, each with its paired difference to the unchanged model.

    `p` and `test` are those of the accuracies, `p, nats` of sign flips; `seed` is that of the trainings.
    """
    rows = []
    for score in record.rows:
        changed = score.variant != UNCHANGED
        likelihood = f"{score.log_likelihood:.2f} ({score.log_likelihood_low:.2f} to {score.log_likelihood_high:.2f})"
        rows.append(
            {
                "latents": score.variant,
                "n": f"{score.n:,}",
                "accuracy": f"{score.accuracy:.1%} ({100 * score.low:.1f}-{100 * score.high:.1f})",
                "difference, points": points(score) if changed else "",
                "p": p_text(score.p_value) if changed else "",
                "test": score.test if changed else "",
                "log-likelihood, nats": likelihood,
                "difference, nats": nats(score) if changed else "",
                "p, nats": p_text(score.log_likelihood_p) if changed else "",
                "seed": str(seed),
            }
        )
    return rows


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; empty text for no rows."""
    if not rows:
        return ""
    return markdown([list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)])


def note(rows: list[dict[str, str]], limit: int = MAX_NOTE) -> str:
    """A score table in at most `limit` characters: the whole, and as many tasks as fit."""
    *head, whole = markdown_table(rows).split("\n")
    fitting, size = [], len(whole) + 100
    for line in head:
        size += len(line) + 1
        if size > limit:
            break
        fitting.append(line)
    left_out = len(head) - len(fitting)
    more = f"\n\n{left_out:,} more rows are in `tables/scores.md`." if left_out else ""
    return "\n".join([*fitting, whole]) + more


def summary(
    dataset: DatasetRecord,
    final: CheckpointRecord,
    rows: list[dict[str, str]],
    model: ModelRecord,
    pages: Mapping[str, str],
) -> str:
    """The run in a few lines of Markdown; `pages` are the addresses of its MLflow `run`, `data` and `model`."""
    return "\n\n".join(
        (
            f"**Data** {dataset.rows('train'):,} training and {dataset.rows('test'):,} test samples, "
            f"{sum(dataset.dropped.values()):,} dropped (`{dataset.fingerprint}`, "
            f"[report]({pages['data']}))",
            f"**Model** {final.method}, {final.num_parameters:,} parameters, stage `{final.stage}` at step "
            f"{final.step:,} (`{final.fingerprint}`), registered as "
            f"[models:/{model.name}/{model.version}]({pages['model']}) by the [MLflow run]({pages['run']})",
            f"**Gate** `{model.alias}`: {model.reason}",
            "Accuracy with 95 % intervals:",
            markdown_table(rows),
        )
    )


def _metric(record: EvalRecord, reading: str, metric: str) -> MetricScore | None:
    found = [score for r in record.readings if r.reading == reading for score in r.scores if score.metric == metric]
    return found[0] if found else None


def _shared_source(record: EvalRecord) -> str:
    """`source/` where every task is of one source, so that it need not be repeated in every row."""
    sources = {score.task.split("/", 1)[0] for score in record.scores if "/" in score.task}
    return f"{sources.pop()}/" if len(sources) == 1 and all("/" in score.task for score in record.scores) else ""
