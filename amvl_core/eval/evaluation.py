"""Scores of one model on one set of questions: answers are cut into parts, stored, and scored without the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from amvl_core.backbones.loading import base_folder, model_folder
from amvl_core.contracts import storage
from amvl_core.contracts.answer_length import max_new_tokens
from amvl_core.contracts.config import RunConfig, trained_by
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, EvalRecord, Place, save_record
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.reader import ShardReader
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.benchmark import Benchmark
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.eval.benchmarks.scoring import headline
from amvl_core.eval.benchmarks.summary import summarise
from amvl_core.eval.questions import Questions, Readers
from amvl_core.eval.score import closed_answers, majority_answers
from amvl_core.eval.stored import write_table

BASE = "base"


class Evaluation:
    """`model` (None: the untrained base) on `dataset`: a prepared one, or the questions of a published benchmark."""

    def __init__(self, config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord | None, place: Place) -> None:
        dataset.check_test_split()
        self.config, self.place = config, place
        self.stage, self.checkpoint = (model.stage, model.fingerprint) if model else (BASE, config.model.base)
        asked = Questions.of(dataset)
        self.pairs = _training_answers(dataset) if asked.own else []
        self.asked = Questions(dataset, asked.benchmark, closed_answers(self.pairs))
        self.name = asked.name(f"evaluate {self.stage}")

    def parts(self) -> list[Part]:
        """All questions."""
        return self.asked.parts("answers", self.config.evaluation)

    def finish(self, tables: Mapping[str, pa.Table]) -> EvalRecord:
        """Writes `predictions.parquet`, scores it, and writes the record."""
        asked, table = self.asked, tables["answers"].sort_by("sample_id")
        rows = table.to_pylist()
        kind = benchmark_of(asked.benchmark, (row["task"] for row in rows))
        write_table(storage.join(self.place.uri, "predictions.parquet"), with_predictions(table, rows, kind))
        scores, overall, readings = summarise(kind, rows, majority_answers(self.pairs) if asked.own else None)
        record = EvalRecord(
            **self.place._asdict(),
            benchmark=asked.benchmark,
            checkpoint=self.checkpoint,
            stage=self.stage,
            dataset=asked.dataset.fingerprint,
            scores=scores,
            overall=overall,
            readings=readings,
            asked=len(rows),
            cut=sum(row["cut"] for row in rows),
        )
        save_record(record)
        return record


class EvaluationWorker:
    """A model that answers batches of questions."""

    def __init__(self, config: RunConfig, model: CheckpointRecord | None) -> None:
        from amvl_core.eval.predict import Answerer

        self.config, self.checkpoint = config, model.fingerprint if model else config.model.base
        with base_folder(config.model) if model is None else model_folder(model.model_uri) as folder:
            settings = config.evaluation
            gpus = config.cluster.gpus_of_a_model
            self.answerer = Answerer.from_pretrained(folder, settings.latent_mode, settings.latent_steps, gpus)
        self.method = trained_by(model.config, model.stage)[0] if model else None
        self.readers = Readers()

    def prepare(self, asked: Questions, part: Part) -> tuple[Any, ...]:
        """The questions, encoded, and the candidate answers of each."""
        rows = [self.readers[asked][item] for item in part.items]
        questions = [question(row) for row in rows]
        pixels = (self.config.data.min_pixels, asked.max_pixels(self.config))
        images, texts, videos = zip(*((one.images, one.prompt, one.videos) for one in questions), strict=True)
        prompts = self.answerer.encode(images, texts, pixels, self.config.evaluation.seed, videos)
        candidates = [
            # A model that was taught to reason in words first does not answer next.
            sorted(one.options) or (list(asked.answers.get(one.task, [])) if self._answers_next(row) else [])
            for row, one in zip(rows, questions, strict=True)
        ]
        about = {"dataset": asked.dataset.fingerprint, "min_pixels": pixels[0], "max_pixels": pixels[1]}
        columns = [{**one.row(row.source), **about} for row, one in zip(rows, questions, strict=True)]
        return columns, prompts, candidates, max_new_tokens(self.config, asked.dataset)

    def work(self, ready: tuple[Any, ...]) -> list[dict[str, Any]]:
        """What is known of each question, and what the model says."""
        columns, prompts, candidates, most = ready
        settings = self.config.evaluation
        answers = self.answerer.predict(prompts, most, candidates, settings.tau)
        return [
            {
                **known,
                "raw_output": answer.text,
                "tokens": answer.tokens,
                "blocks": answer.blocks,
                "latent_steps": answer.latent_steps,
                "candidates": json.dumps(given, ensure_ascii=False),
                "log_likelihoods": json.dumps(answer.log_likelihoods),
                "temperature": 0.0,
                "tau": settings.tau,
                "seed": settings.seed,
                "max_new_tokens": most,
                "cut": answer.cut,
                "dtype": str(self.answerer.model.dtype).removeprefix("torch."),
                "checkpoint": self.checkpoint,
            }
            for known, given, answer in zip(columns, candidates, answers, strict=True)
        ]

    def _answers_next(self, row: StoredSample) -> bool:
        return self.method.answers_next(row) if self.method else not row.steps


def with_predictions(table: pa.Table, rows: Sequence[dict[str, Any]], benchmark: Benchmark) -> pa.Table:
    """With what the headline reading read, and its score: for people and pairing; scores come from the rest."""
    predictions, scores = zip(*headline(benchmark, rows), strict=True)
    return table.append_column("prediction", pa.array(predictions)).append_column("score", pa.array(scores))


def _training_answers(dataset: DatasetRecord) -> list[tuple[str, str]]:
    """(task, answer) of every training sample."""
    reader = ShardReader(dataset, "train")
    columns = (reader.column(name) for name in ("source", "task", "answer"))
    return [(f"{source}/{task}", answer) for source, task, answer in zip(*columns, strict=True)]
