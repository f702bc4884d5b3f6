"""Evaluation over a pool of Ray Data actors: predict, store, then score."""

from __future__ import annotations

import io
import json
import time
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util.annotations import RayDeprecationWarning

from amvl_core import storage
from amvl_core.base import base_folder, model_folder
from amvl_core.config import RunConfig
from amvl_core.data.reader import ShardReader
from amvl_core.errors import DataError
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.eval.extract import last_line
from amvl_core.eval.score import Item, is_correct, majority_answers, score
from amvl_core.progress import Progress, ProgressFn
from amvl_core.records import CheckpointRecord, DatasetRecord, EvalRecord, save_record
from infra.cluster import resources

BASE = "base"


class Predictor:
    """One actor: a model, and the rows of the test split by number."""

    def __init__(self, config: dict[str, Any], dataset: dict[str, Any], model_uri: str | None) -> None:
        import torch
        from transformers.utils import logging as hf_logging

        from amvl_core.eval.predict import Answerer

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.config = RunConfig.model_validate(config)
        self.reader = ShardReader(DatasetRecord.model_validate(dataset), "test")
        with base_folder(self.config.model) if model_uri is None else model_folder(model_uri) as folder:
            self.answerer = Answerer.from_pretrained(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Row numbers -> predictions."""
        settings = self.config.evaluation
        rows = [self.reader[int(i)] for i in batch["item"]]
        questions = [question(row) for row in rows]
        raw = self.answerer.answer(
            [asked.images for asked in questions],
            [asked.prompt for asked in questions],
            settings.max_new_tokens,
            settings.tau,
            settings.seed,
        )
        stored = [asked.row(row["source"]) for asked, row in zip(questions, rows, strict=True)]
        predictions = [last_line(text) for text in raw]
        return {
            **{name: np.array([row[name] for row in stored]) for name in stored[0]},
            "raw_output": np.array(raw),
            "prediction": np.array(predictions),
            "correct": np.array([is_correct(p, q.answer) for p, q in zip(predictions, questions, strict=True)]),
            "temperature": np.full(len(rows), 0.0),
            "tau": np.full(len(rows), settings.tau),
            "seed": np.full(len(rows), settings.seed),
        }


def evaluate(
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord | None,
    uri: str,
    fingerprint: str,
    on_progress: ProgressFn,
) -> EvalRecord:
    """Scores `model` (None: the untrained base) on the test split and writes predictions, then the record."""
    if dataset.rows("test") == 0:
        raise DataError("the dataset has no test split to evaluate on; give a source with one (data.sources)")
    stage = model.stage if model else BASE
    table = _predict(config, dataset, model.model_uri if model else None, f"evaluate {stage}", on_progress)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(storage.join(uri, "predictions.parquet"), buffer.getvalue())
    items = [Item(row["task"], row["answer"], row["correct"]) for row in table.to_pylist()]
    scores, overall = score(items, _majority(dataset))
    record = EvalRecord(
        uri=uri,
        fingerprint=fingerprint,
        checkpoint=model.fingerprint if model else config.model.base,
        stage=stage,
        dataset=dataset.fingerprint,
        scores=scores,
        overall=overall,
    )
    save_record(record)
    return record


def _predict(
    config: RunConfig, dataset: DatasetRecord, model_uri: str | None, name: str, on_progress: ProgressFn
) -> pa.Table:
    """All test rows through the actor pool, longest first, as one table ordered by sample id."""
    workers = resources(config.cluster)
    lengths = ShardReader(dataset, "test").column("num_tokens")
    size = config.evaluation.batch_size
    actors = min(workers.num_workers, -(-len(lengths) // size))
    items = ray.data.from_items(
        [int(i) for i in np.argsort(-lengths, kind="stable")], override_num_blocks=-(-len(lengths) // size)
    )
    with warnings.catch_warnings():
        # Ray Data has no other name yet for max_restarts. A lost actor's block is read again by another actor;
        # restarting the lost one would need its arguments kept alive, and Ray says so for each.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        results = items.map_batches(
            Predictor,
            fn_constructor_args=(config.model_dump(mode="json"), dataset.model_dump(mode="json"), model_uri),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=actors),
            max_restarts=0,
            num_gpus=workers.resources.get("GPU", 0),
            num_cpus=workers.resources["CPU"],
        )
    tables: list[pa.Table] = []
    started, done = time.perf_counter(), 0
    for table in results.iter_batches(batch_format="pyarrow", batch_size=size):
        tables.append(table)
        done += table.num_rows
        left = (time.perf_counter() - started) / done * (len(lengths) - done)
        on_progress(Progress(name, done, len(lengths), "questions", left))
    return pa.concat_tables(tables).sort_by("sample_id")


def _majority(dataset: DatasetRecord) -> dict[str, str]:
    reader = ShardReader(dataset, "train")
    extras = [json.loads(text) for text in reader.column("extra")]
    sources = reader.column("source")
    return majority_answers(
        (_task(source, extra), extra["answer"]) for source, extra in zip(sources, extras, strict=True)
    )


def _task(source: str, extra: dict[str, Any]) -> str:
    return f"{source}/{extra['task']}"
