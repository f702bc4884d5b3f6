"""Collects what the report of a run shows, from records and stored predictions, within a bound on its size."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amvl_core.contracts import storage
from amvl_core.contracts.config import flatten
from amvl_core.contracts.method import configurations
from amvl_core.contracts.records import (
    AnalysisRecord,
    DatasetRecord,
    EvalRecord,
    SourceReport,
)
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, shown_by_question
from amvl_core.data.reader import ShardReader
from amvl_core.eval.pairing import compare_evaluations
from amvl_core.eval.stored import read_table
from amvl_core.pages import data_url, render, thumbnail
from infra.provenance import provenance
from infra.registry import change
from infra.reports import figures, page
from infra.reports.run_result import RunResult

NAME = "report.html"
TEMPLATE = Path(__file__).parent / "templates" / "run.html"
SECTIONS = (
    "Scores",
    "Faithfulness",
    "Latents",
    "Sampling",
    "Answers",
    "Training",
    "Data",
    "Configuration",
    "Provenance",
)
BEGINNING, END = 120, 280
"""Characters of a longer raw output that are shown; `predictions.parquet` holds all of it."""
SHOWN_ANSWERS = 12
IMAGE_PIXELS = 400
IMAGES_PER_ANSWER = 4
PICTURE_BYTES = 3 * 2**20
"""Of the analysis's pictures together: the page stays a few MB."""
KINDS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg"}


@dataclass(frozen=True)
class Answered:
    """One answered question; `images` are data URLs, `before` is what the other model answered."""

    sample_id: str
    task: str
    question: str
    answer: str
    prediction: str
    before: str
    raw_output: str
    score: float
    images: Sequence[str]


def build(run: RunResult, history: figures.History, links: Mapping[str, str]) -> str:
    """The page as text, with the training curves of `history`.

    `links` are the addresses of the pages of the `run`, the registered `model` and the report of the `data`.
    """
    config, dataset, checkpoint, model = run.config, run.dataset, run.checkpoint, run.model
    evaluations = dict(zip(run.labels, (run.before, run.after), strict=True))
    method = configurations()[checkpoint.method]
    analysis = method.analysis()
    pictures, left_out = _pictures(run.analysis)
    absent = {"Latents"} if method.has_latents and not analysis else set()
    absent |= set() if run.sampling else {"Sampling"}
    whole = run.scores[-1]
    tiles = [(whole.get(label, "-").split(" ")[0], f"{label}, {whole.get('n', '')} questions") for label in run.labels]
    tiles += [(f"{checkpoint.step:,}", f"steps of {checkpoint.method}, last stage")]
    tiles += [(f"{checkpoint.num_parameters:,}", "parameters")]
    return render(
        TEMPLATE,
        title=f"{checkpoint.stage} on {', '.join(dict.fromkeys(report.source for report in dataset.reports))}",
        sections=[name for name in SECTIONS if name not in absent],
        tiles_shown=tiles,
        labels=run.labels,
        method=checkpoint.method,
        has_latents=method.has_latents,
        dataset=dataset,
        model=model,
        scores=run.scores,
        benchmarks=run.tables,
        verdict=change(compare_evaluations(run.before, run.after)),
        scores_chart=figure_url(figures.score_chart(evaluations)),
        curves={name: figure_url(figures.curves(history, {name: stage})) for name, stage in config.stages.items()},
        links=links,
        suites=[page.suite(record) for record in run.suites],
        analysis=analysis.section(run.analysis) if analysis and run.analysis else "",
        pictures=pictures,
        captions={f"{name}.png": shown for name, shown in analysis.figures.items()} if analysis else {},
        left_out=left_out,
        sampling=page.sampling(run.sampling) if run.sampling else (),
        sampling_chart=figure_url(figures.sampling_chart(run.sampling)) if run.sampling else "",
        sampling_note=page.SAMPLING,
        answers=answers(dataset, run.before, run.after),
        sources=[_source(report) for report in dataset.reports],
        config=flatten(config),
        provenance={
            **provenance(),
            "seed": str(config.seed),
            "data seed": str(config.data.seed),
            "evaluation seed": str(config.evaluation.seed),
            "dataset": dataset.fingerprint,
            "checkpoint": checkpoint.fingerprint,
            "parent checkpoint": checkpoint.parent or "none",
            **{f"evaluation, {label}": record.fingerprint for label, record in evaluations.items()},
            "tracking run": model.run_id,
        },
    )


def _source(report: SourceReport) -> dict[str, str]:
    dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in report.dropped.items())
    return {
        "source": report.source,
        "split": report.split,
        "read": f"{report.read:,}",
        "kept": f"{report.kept:,}",
        "dropped": dropped or "none",
    }


def answers(dataset: DatasetRecord, base: EvalRecord, final: EvalRecord) -> list[Answered]:
    """Answers of the final model, half of them wrong where there are enough, from as many tasks as there are."""
    rows = _rows(final, ["sample_id", "task", "prompt", "answer", "prediction", "raw_output", "score"])
    before = {row["sample_id"]: row["prediction"] for row in _rows(base, ["sample_id", "prediction"])}
    wrong, right = (_over_tasks([row for row in rows if (row["score"] == 1) is found]) for found in (False, True))
    half = SHOWN_ANSWERS // 2
    chosen = wrong[: max(half, SHOWN_ANSWERS - len(right))]
    chosen += right[: SHOWN_ANSWERS - len(chosen)]
    reader = ShardReader(dataset, "test")
    places = {sample_id: i for i, sample_id in enumerate(reader.column("sample_id"))}

    def images(sample_id: str) -> list[bytes]:
        sample = reader[places[sample_id]]
        return list(sample.images[: shown_by_question(sample.images, sample.steps)][:IMAGES_PER_ANSWER])

    return [
        Answered(
            sample_id=row["sample_id"],
            task=row["task"],
            question=" ".join(row["prompt"].replace(IMAGE_PLACEHOLDER, " ").split()),
            answer=row["answer"],
            prediction=row["prediction"],
            before=before.get(row["sample_id"], ""),
            raw_output=_ends(row["raw_output"]),
            score=row["score"],
            images=[thumbnail(image, IMAGE_PIXELS) for image in images(row["sample_id"])],
        )
        for row in chosen
    ]


def _ends(text: str) -> str:
    """The beginning and the end of a long text."""
    return text if len(text) <= BEGINNING + END else f"{text[:BEGINNING]} ... {text[-END:]}"


def figure_url(figure: Any) -> str:
    """A matplotlib figure as a PNG within its URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return data_url(buffer.getvalue(), "png")


def _rows(record: EvalRecord, columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(record.predictions_uri, columns).to_pylist()
    return sorted(rows, key=lambda row: row["sample_id"])


def _over_tasks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of every task, then the second of every task, and so on."""
    rank: dict[str, int] = {}
    keyed = []
    for row in rows:
        rank[row["task"]] = rank.get(row["task"], -1) + 1
        keyed.append((rank[row["task"]], row["task"], row))
    return [row for *_, row in sorted(keyed, key=lambda item: item[:2])]


def _pictures(analysis: AnalysisRecord | None) -> tuple[dict[str, str], list[str]]:
    """The analysis's pictures as URLs by name, as many as fit the bound, and the names of the others."""
    shown, left_out, size = {}, [], 0
    for name in analysis.files if analysis else []:
        kind = KINDS.get(name.rsplit(".", 1)[-1].lower())
        if analysis is None or kind is None:
            continue
        data = storage.read_bytes(storage.join(analysis.uri, name))
        if size + len(data) > PICTURE_BYTES:
            left_out.append(name)
            continue
        size += len(data)
        shown[name] = data_url(data, kind)
    return shown, left_out
