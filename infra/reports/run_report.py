"""Collects what the report of a run shows, from records and stored predictions, within a bound on its size."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig, flatten
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.records import (
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    ModelRecord,
    Record,
    fingerprint,
)
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER
from amvl_core.data.reader import ShardReader
from amvl_core.eval.pairing import compare_evaluations
from amvl_core.pages import data_url, thumbnail
from infra.provenance import provenance
from infra.registry import change
from infra.reports import figures
from infra.reports import page as report_page
from infra.reports.page import Sample, Table

VERSION = 4
NAME = "report.html"
SHOWN_ANSWERS = 12
IMAGE_PIXELS = 400
IMAGES_PER_ANSWER = 4
PICTURE_BYTES = 3 * 2**20
"""Of the analysis's pictures together: the page stays a few MB."""
KINDS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg"}


def report_fingerprint(model: ModelRecord, *records: Record | None) -> str:
    """Names a page by the registration, and the evaluations on benchmarks and the analyses that it shows."""
    return fingerprint(
        "report", VERSION, model=model.fingerprint, version=model.version, records=[r.fingerprint for r in records if r]
    )


def build(
    config: RunConfig,
    dataset: DatasetRecord,
    checkpoint: CheckpointRecord,
    evaluations: Mapping[str, EvalRecord],
    model: ModelRecord,
    scores: Table,
    history: figures.History,
    benchmarks: Mapping[str, Table] | None = None,
    faithfulness: Sequence[FaithfulnessRecord] = (),
    analysis: AnalysisRecord | None = None,
) -> str:
    """The page as text. `evaluations` are the base's and the final model's by label, `scores` the score table's rows,
    `benchmarks` those of further tables by title.
    """
    (first, base), (second, final) = evaluations.items()
    charts = {"scores": figure_url(figures.score_chart(dict(evaluations)))}
    if history:
        charts["training"] = figure_url(figures.curves(history, list(config.stages)))
    pictures, left_out = _pictures(analysis)
    return report_page.render(
        report_page.Run(
            title=f"{checkpoint.stage} on {', '.join(dict.fromkeys(report.source for report in dataset.reports))}",
            labels=(first, second),
            method=checkpoint.method,
            steps=checkpoint.step,
            parameters=checkpoint.num_parameters,
            dataset=dataset,
            model=model,
            scores=scores,
            verdict=change(compare_evaluations(base, final)),
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
            samples=samples(dataset, base, final),
            benchmarks=benchmarks or {},
            charts=charts,
            faithfulness=faithfulness,
            analysis=analysis,
            analysis_pictures=pictures,
            left_out=left_out,
        )
    )


def samples(dataset: DatasetRecord, base: EvalRecord, final: EvalRecord) -> list[Sample]:
    """Answers of the final model, half of them wrong where there are enough, from as many tasks as there are."""
    rows = _rows(final, ["sample_id", "task", "prompt", "answer", "prediction", "raw_output", "correct"])
    before = {row["sample_id"]: row["prediction"] for row in _rows(base, ["sample_id", "prediction"])}
    wrong, right = (_over_tasks([row for row in rows if row["correct"] is found]) for found in (False, True))
    half = SHOWN_ANSWERS // 2
    chosen = wrong[: max(half, SHOWN_ANSWERS - len(right))]
    chosen += right[: SHOWN_ANSWERS - len(chosen)]
    reader = ShardReader(dataset, "test")
    places = {sample_id: i for i, sample_id in enumerate(reader.column("sample_id"))}

    def images(sample_id: str) -> list[bytes]:
        return list(reader[places[sample_id]].images[:IMAGES_PER_ANSWER])

    return [
        Sample(
            sample_id=row["sample_id"],
            task=row["task"],
            question=" ".join(row["prompt"].replace(IMAGE_PLACEHOLDER, " ").split()),
            answer=row["answer"],
            prediction=row["prediction"],
            before=before.get(row["sample_id"], ""),
            raw_output=row["raw_output"],
            correct=row["correct"],
            images=[thumbnail(image, IMAGE_PIXELS) for image in images(row["sample_id"])],
        )
        for row in chosen
    ]


def figure_url(figure: Any) -> str:
    """A matplotlib figure as a PNG within its URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return data_url(buffer.getvalue(), "png")


def _rows(record: EvalRecord, columns: list[str]) -> list[dict[str, Any]]:
    with storage.opened(record.predictions_uri) as file:
        rows: list[dict[str, Any]] = ParquetStream(file).read(columns).to_pylist()
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
