"""The analysis of a latent model on test samples: what is measured, drawn and said is its method's (`Analysis`)."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pyarrow as pa

from amvl_core.contracts import storage
from amvl_core.contracts.analysis import Analysis, Item, Tables
from amvl_core.contracts.config import RunConfig, trained_by
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.method import configurations
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import AnalysisRecord, CheckpointRecord, DatasetRecord, Place, save_record
from amvl_core.eval.questions import Questions
from amvl_core.eval.stored import read_table, write_table

TABLE, PICTURE = ".parquet", ".png"


class LatentAnalysis:
    """`model` on test samples of `dataset`. Raises DataError where its method analyses nothing."""

    def __init__(self, config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, place: Place) -> None:
        self.config, self.model, self.place = config, model, place
        self.asked = Questions.of(dataset)
        self.name = f"analyse {model.stage}"
        self.analysis, self.latent = analysis_of(model), trained_by(model.config, model.stage)[1]

    def parts(self) -> list[Part]:
        """Those of the method, on samples that are drawn."""
        settings, asked = self.config.evaluation, self.asked
        rows = asked.chosen(settings.analysis_items, settings.seed)
        if len(rows) < 2:
            raise DataError(f"{len(rows)} test samples to analyse; at least 2 are needed (evaluation.analysis_items)")
        columns = (asked.column(name, rows) for name in ("source", "task", "image_sizes"))
        items = [
            Item(row, f"{source}/{task}", len(sizes)) for row, source, task, sizes in zip(rows, *columns, strict=True)
        ]
        return self.analysis.parts(items)

    def finish(self, tables: Mapping[str, pa.Table]) -> AnalysisRecord:
        """Writes tables, figures and the record."""
        for kind, table in tables.items():
            write_table(storage.join(self.place.uri, f"{kind}{TABLE}"), table.sort_by("sample_id"))
        record = AnalysisRecord(
            **self.place._asdict(),
            checkpoint=self.model.fingerprint,
            stage=self.model.stage,
            dataset=self.asked.dataset.fingerprint,
            numbers=self.analysis.numbers(tables, self.latent),
            files=[f"{kind}{TABLE}" for kind in tables],
        )
        record = record.model_copy(update={"files": [*record.files, *write_figures(self.analysis, record)]})
        save_record(record)
        return record


def analysis_of(model: CheckpointRecord) -> Analysis:
    """What the checkpoint's method measures. Raises DataError where that is nothing."""
    if (found := configurations()[model.method].analysis()) is None:
        raise DataError(
            f"{model.uri} was trained by {model.method} and has no latents; give a checkpoint that has some"
        )
    return found


def read_tables(record: AnalysisRecord) -> Tables:
    """The stored tables by kind; a kind that had nothing to do is not there."""
    kinds = [name.removesuffix(TABLE) for name in record.files if name.endswith(TABLE)]
    return {kind: read_table(storage.join(record.uri, f"{kind}{TABLE}")) for kind in kinds}


def write_figures(analysis: Analysis, record: AnalysisRecord) -> list[str]:
    """Writes every figure below the record's `uri`; the names of the files."""
    names = []
    for name, figure in analysis.draw(record, read_tables(record)).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        storage.write_bytes(storage.join(record.uri, f"{name}{PICTURE}"), buffer.getvalue())
        names.append(f"{name}{PICTURE}")
    return names
