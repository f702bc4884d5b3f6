"""Evaluation over a pool of Ray actors: predict, store, then score.

Batches are cut once, longest first. A worker decodes the images of its next batch while the model answers the present
one, and writes each batch to a file of its own: an evaluation that was killed goes on with the batches that have none.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from amvl_core.backbones.loading import base_folder, model_folder
from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.contracts.records import TEST_SPLIT, CheckpointRecord, DatasetRecord, EvalRecord, save_record
from amvl_core.data.reader import ShardReader
from amvl_core.eval.batches import longest_first
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.benchmark import Benchmark
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.eval.benchmarks.scoring import headline
from amvl_core.eval.benchmarks.summary import summarise
from amvl_core.eval.score import closed_answers, majority_answers
from infra.actors import Actors, part_name

BASE = "base"


@dataclass(frozen=True)
class Job:
    """What a worker must know of one evaluation beside its model."""

    dataset: DatasetRecord
    uri: str
    """Folder of the parts."""
    checkpoint: str
    pixels: tuple[int, int]
    answers: dict[str, list[str]]
    """Closed answer sets of tasks without options."""


class Predictor:
    """One actor: a model that answers batches of questions."""

    def __init__(self, config: RunConfig, model_uri: str | None) -> None:
        import torch
        from transformers.utils import logging as hf_logging

        from amvl_core.eval.predict import Answerer

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.settings = config.evaluation
        with base_folder(config.model) if model_uri is None else model_folder(model_uri) as folder:
            self.answerer = Answerer.from_pretrained(folder)
        self.readers: dict[str, ShardReader] = {}
        self.reading, self.answering = threading.Lock(), threading.Lock()

    def predict(self, job: Job, number: int, batch: list[int], part: str) -> int:
        """Answers the questions of a batch, given by their numbers, into the file `part`; the batch's own `number`."""
        settings = self.settings
        with self.reading:
            reader = self.readers.setdefault(job.dataset.uri, ShardReader(job.dataset, "test"))
            rows = [reader[item] for item in batch]
            questions = [question(row) for row in rows]
            images, texts = [asked.images for asked in questions], [asked.prompt for asked in questions]
            prompts = self.answerer.encode(images, texts, job.pixels, settings.seed)
        candidates = [
            # A model that was taught to reason in words first does not answer next.
            sorted(asked.options) or ([] if row.steps else job.answers.get(asked.task, []))
            for row, asked in zip(rows, questions, strict=True)
        ]
        with self.answering:
            answers = self.answerer.predict(prompts, settings.max_new_tokens, candidates, settings.tau)
        stored = [
            {
                **asked.row(row.source),
                "raw_output": answer.text,
                "candidates": json.dumps(given, ensure_ascii=False),
                "log_likelihoods": json.dumps(answer.log_likelihoods),
                "temperature": 0.0,
                "tau": settings.tau,
                "seed": settings.seed,
                "max_new_tokens": settings.max_new_tokens,
                "min_pixels": job.pixels[0],
                "max_pixels": job.pixels[1],
                "dtype": str(self.answerer.model.dtype).removeprefix("torch."),
                "checkpoint": job.checkpoint,
                "dataset": job.dataset.fingerprint,
            }
            for row, asked, given, answer in zip(rows, questions, candidates, answers, strict=True)
        ]
        _write(pa.Table.from_pylist(stored), storage.join(job.uri, part))
        return number


class Pool(Actors):
    """Actors that hold one model (None: the untrained base): `with Pool(...) as pool`."""

    def __init__(self, config: RunConfig, model: CheckpointRecord | None) -> None:
        super().__init__(config, Predictor, config, model.model_uri if model else None)
        self.model = model

    def evaluate(
        self, dataset: DatasetRecord, benchmark: str, uri: str, fingerprint: str, on_progress: ProgressFn
    ) -> EvalRecord:
        """Answers what has no stored answer yet, writes `predictions.parquet` at `uri`, scores it, writes the record.

        `dataset` is a prepared one (`benchmark` is TEST_SPLIT) or holds the questions of a published benchmark.
        """
        dataset.check_test_split()
        stage = self.model.stage if self.model else BASE
        checkpoint = self.model.fingerprint if self.model else self.config.model.base
        own, data, settings = benchmark == TEST_SPLIT, self.config.data, self.config.evaluation
        pairs = _training_answers(dataset) if own else []
        job = Job(
            dataset=dataset,
            uri=storage.join(uri, "parts"),
            checkpoint=checkpoint,
            pixels=(data.min_pixels, data.max_pixels if own else settings.max_pixels),
            answers=closed_answers(pairs),
        )
        name = f"evaluate {stage}" if own else f"evaluate {stage} on {benchmark}"
        table = self._predict(job, name, on_progress)
        rows = table.to_pylist()
        kind = benchmark_of(benchmark, (row["task"] for row in rows))
        _write(_with_predictions(table, rows, kind), storage.join(uri, "predictions.parquet"))
        scores, overall, readings = summarise(kind, rows, majority_answers(pairs) if own else None)
        record = EvalRecord(
            uri=uri,
            fingerprint=fingerprint,
            benchmark=benchmark,
            checkpoint=checkpoint,
            stage=stage,
            dataset=dataset.fingerprint,
            scores=scores,
            overall=overall,
            readings=readings,
        )
        save_record(record)
        storage.remove(job.uri)
        return record

    def _predict(self, job: Job, name: str, on_progress: ProgressFn) -> pa.Table:
        """The stored answers to all questions, ordered by sample id."""
        lengths = ShardReader(job.dataset, "test").column("num_tokens")
        settings = self.config.evaluation
        batches = longest_first(lengths, settings.batch_size, settings.batch_tokens)
        parts = [part_name(number, batch) for number, batch in enumerate(batches)]
        there = set(storage.list_names(job.uri))
        waiting = [pair for pair in zip(batches, parts, strict=True) if pair[1] not in there]
        tokens = [int(lengths[batch].sum()) for batch, _ in waiting]
        left, total = sum(tokens), len(lengths)
        done = total - sum(len(batch) for batch, _ in waiting)
        started, at_start = time.monotonic(), left
        on_progress(Progress(name, done, total, "questions"))
        shared = ray.put(job)
        for number in self.run("predict", [(shared, number, *task) for number, task in enumerate(waiting)], name):
            done += len(waiting[number][0])
            left -= tokens[number]
            seconds = (time.monotonic() - started) / (at_start - left) * left
            on_progress(Progress(name, done, total, "questions", seconds))
        return pa.concat_tables(_read(storage.join(job.uri, part)) for part in parts).sort_by("sample_id")


def evaluate(
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord | None,
    uri: str,
    fingerprint: str,
    on_progress: ProgressFn,
) -> EvalRecord:
    """Scores `model` (None: the untrained base) on the test split and writes predictions, then the record."""
    with Pool(config, model) as pool:
        return pool.evaluate(dataset, TEST_SPLIT, uri, fingerprint, on_progress)


def _with_predictions(table: pa.Table, rows: Sequence[dict[str, Any]], benchmark: Benchmark) -> pa.Table:
    """With what the headline reading read, and whether it is right: for people; scores are computed from the rest."""
    predictions, right = zip(*headline(benchmark, rows), strict=True)
    return table.append_column("prediction", pa.array(predictions)).append_column("correct", pa.array(right))


def _training_answers(dataset: DatasetRecord) -> list[tuple[str, str]]:
    """(task, answer) of every training sample."""
    reader = ShardReader(dataset, "train")
    columns = (reader.column(name) for name in ("source", "task", "answer"))
    return [(f"{source}/{task}", answer) for source, task, answer in zip(*columns, strict=True)]


def _write(table: pa.Table, uri: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def _read(uri: str) -> pa.Table:
    return ParquetStream(storage.read_bytes(uri)).read()
