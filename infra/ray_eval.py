"""Evaluation over a pool of Ray actors: predict, store, then score.

Batches are cut once, longest first. A worker decodes the images of its next batch while the model answers the present
one, and writes each batch to a file of its own: an evaluation that was killed goes on with the batches that have none.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool

from amvl_core import storage
from amvl_core.base import base_folder, model_folder
from amvl_core.config import RunConfig
from amvl_core.data.reader import ShardReader
from amvl_core.errors import AmvlError, ClusterError, DataError
from amvl_core.eval.batches import longest_first
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.base import Benchmark
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.eval.benchmarks.scoring import outcomes, readers
from amvl_core.eval.benchmarks.summary import summarise
from amvl_core.eval.score import closed_answers, majority_answers
from amvl_core.progress import Progress, ProgressFn
from amvl_core.records import TEST_SPLIT, CheckpointRecord, DatasetRecord, EvalRecord, save_record
from infra.cluster import resources

BASE = "base"
RESTARTS = 3
IN_FLIGHT = 2
"""Batches that a worker has at once: one is answered, the next one's images are decoded."""


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
            sorted(asked.options) or ([] if _has_steps(row) else job.answers.get(asked.task, []))
            for row, asked in zip(rows, questions, strict=True)
        ]
        with self.answering:
            answers = self.answerer.predict(prompts, settings.max_new_tokens, candidates, settings.tau)
        stored = [
            {
                **asked.row(row["source"]),
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
        _write(pa.Table.from_pylist(stored), part)
        return number


class Pool:
    """Workers that hold one model (None: the untrained base), started when first needed: `with Pool(...) as pool`."""

    def __init__(self, config: RunConfig, model: CheckpointRecord | None) -> None:
        self.config, self.model = config, model
        self.workers: list[Any] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for worker in self.workers:
            ray.kill(worker)

    def evaluate(
        self, dataset: DatasetRecord, benchmark: str, uri: str, fingerprint: str, on_progress: ProgressFn
    ) -> EvalRecord:
        """Answers what has no stored answer yet, writes `predictions.parquet` at `uri`, scores it, writes the record.

        `dataset` is a prepared one (`benchmark` is TEST_SPLIT) or holds the questions of a published benchmark.
        """
        if dataset.rows("test") == 0:
            raise DataError("the dataset has no test split to evaluate on; give a source with one (data.sources)")
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
        parts = [_part(job.uri, number, batch) for number, batch in enumerate(batches)]
        there = set(storage.list_names(job.uri))
        waiting = [pair for pair in zip(batches, parts, strict=True) if pair[1].rpartition("/")[2] not in there]
        tokens = [int(lengths[batch].sum()) for batch, _ in waiting]
        left, total = sum(tokens), len(lengths)
        done = total - sum(len(batch) for batch, _ in waiting)
        started, at_start = time.monotonic(), left
        on_progress(Progress(name, done, total, "questions"))
        for number in self._answered(job, waiting):
            done += len(waiting[number][0])
            left -= tokens[number]
            seconds = (time.monotonic() - started) / (at_start - left) * left
            on_progress(Progress(name, done, total, "questions", seconds))
        return pa.concat_tables(_read(part) for part in parts).sort_by("sample_id")

    def _answered(self, job: Job, waiting: Sequence[tuple[list[int], str]]) -> Iterator[int]:
        """Runs the batches, in order; the place of each in `waiting` as soon as its file is there."""
        if not waiting:
            return
        shared = ray.put(job)
        pool = ActorPool(self._start(len(waiting)) * IN_FLIGHT)
        try:
            yield from pool.map_unordered(
                lambda worker, task: worker.predict.remote(shared, *task),
                [(number, batch, part) for number, (batch, part) in enumerate(waiting)],
            )
        except RayTaskError as error:
            if isinstance(error.cause, AmvlError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise ClusterError(
                f"an evaluation worker died {RESTARTS + 1} times ({error}); if it was out of memory, lower "
                "evaluation.batch_tokens; the answers so far are kept, and a second run goes on from them"
            ) from error

    def _start(self, batches: int) -> list[Any]:
        workers = resources(self.config.cluster)
        options = {
            "num_cpus": workers.resources["CPU"],
            "num_gpus": workers.resources.get("GPU", 0),
            "max_concurrency": IN_FLIGHT,
            "max_restarts": RESTARTS,
            "max_task_retries": RESTARTS,
        }
        kind = ray.remote(Predictor).options(**options)
        uri = self.model.model_uri if self.model else None
        while len(self.workers) < min(workers.num_workers, batches):
            self.workers.append(kind.remote(self.config, uri))
        return self.workers


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
    reader = readers(benchmark)[benchmark.headline]
    read = [reader(row) for row in rows]
    right = [outcome.correct for outcome in outcomes(reader, rows)[0]]
    predictions = [(found.answer if found else None) or "" for found in read]
    return table.append_column("prediction", pa.array(predictions)).append_column("correct", pa.array(right))


def _training_answers(dataset: DatasetRecord) -> list[tuple[str, str]]:
    """(task, answer) of every training sample."""
    reader = ShardReader(dataset, "train")
    extras = [json.loads(text) for text in reader.column("extra")]
    return [
        (f"{source}/{extra['task']}", extra["answer"])
        for source, extra in zip(reader.column("source"), extras, strict=True)
    ]


def _has_steps(row: dict[str, Any]) -> bool:
    """Whether the model was taught to reason in words first: its answer is then not what comes next."""
    return any(segment.kind == "step" for segment in row["segments"])


def _part(folder: str, number: int, batch: Sequence[int]) -> str:
    """The file of a batch; its name says which questions are in it, so that another cut never finds it."""
    digest = hashlib.sha256(json.dumps(list(batch)).encode()).hexdigest()[:12]
    return storage.join(folder, f"{number:06d}-{digest}.parquet")


def _write(table: pa.Table, uri: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def _read(uri: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))
