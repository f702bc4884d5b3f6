"""Faithfulness and analysis of a latent model over a pool of Ray actors, in parts that survive a kill."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from amvl_core.backbones.loading import model_folder, set_pixel_budget
from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig, trained_by
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.fingerprints import Controls
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    FaithfulnessRecord,
    save_record,
)
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.reader import ShardReader
from amvl_core.eval.batches import in_order
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.prepared import benchmark_name, question, with_places
from amvl_core.eval.benchmarks.scoring import headline
from amvl_core.eval.faithfulness import score_variants, verdict
from infra import analysis_files
from infra.actors import Actors, part_name
from infra.cluster import resources

CHUNK = 16
"""Items of one part of an analysis."""
HEAT_MAPS = 4
INFORMATION_CHUNKS = 16
"""Groups of at most CHUNK samples of one task, each sample's question read with each one's answer."""


class Job(NamedTuple):
    """What one part holds: `kind` of work on `items` (rows of the test split), and the donor of the swap."""

    kind: str
    items: list[int]
    donor: int = -1


@dataclass(frozen=True)
class Questions:
    """The test split of a prepared dataset, or the questions of a published benchmark."""

    dataset: DatasetRecord
    benchmark: str

    @classmethod
    def of(cls, dataset: DatasetRecord) -> Questions:
        """Finds out which, without reading an image."""
        shards = ShardReader(dataset, "test")
        return cls(dataset, benchmark_name(shards))

    def name(self, work: str) -> str:
        """What progress calls `work` on them."""
        return work if self.benchmark == TEST_SPLIT else f"{work} on {self.benchmark}"


class Worker:
    """One actor: a model, and the parts it writes. `label` names a control; the latent model has none."""

    def __init__(self, config: RunConfig, model: CheckpointRecord, label: str) -> None:
        import torch
        from transformers.utils import logging as hf_logging

        from amvl_core.eval.controls import Control
        from amvl_core.eval.predict import Answerer

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.data, self.settings, self.label = config.data, config.evaluation, label
        with model_folder(model.model_uri) as folder:
            answerer = Answerer.from_pretrained(folder)
        self.processor = answerer.processor
        method, latent = trained_by(model.config, model.stage)
        if label:
            self.control = Control(answerer, method, latent)
        else:
            self.prober = method.implementation().prober(answerer.model, answerer.processor, method)
        self.readers: dict[str, ShardReader] = {}
        self.working = threading.Lock()

    def write(self, asked: Questions, job: Job, uri: str) -> None:
        """Writes the part of `job` to `uri`."""
        with self.working:
            self.asked = asked
            self.reader = self.readers.setdefault(asked.dataset.uri, ShardReader(asked.dataset, "test"))
            # As in the evaluation: a published image keeps more pixels than those that the model was trained on.
            most = self.data.max_pixels if asked.benchmark == TEST_SPLIT else self.settings.max_pixels
            set_pixel_budget(self.processor, self.data.model_copy(update={"max_pixels": most}))
            samples = [with_places(self.reader[i]) for i in job.items]
            if job.kind == "answers":
                columns = self._answers(samples, with_places(self.reader[job.donor]))
            else:
                columns = self._analysed(job.kind, samples)
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(columns), buffer)
            storage.write_bytes(uri, buffer.getvalue())

    def _answers(self, samples: list[StoredSample], donor: StoredSample) -> list[dict[str, Any]]:
        """Every variant on every item, read as the evaluation reads answers."""
        settings = self.settings
        if self.label:
            answers = self.control(samples, self.label, settings.max_new_tokens)
        else:
            answers = self.prober(samples, donor, settings.max_new_tokens, settings.seed)
        asked = {sample.sample_id: question(sample) for sample in samples}
        following = [*samples[1:], donor]
        donors = {sample.sample_id: other.sample_id for sample, other in zip(samples, following, strict=True)}
        stored = [
            {**asked[answer.sample_id].row(self.asked.benchmark), "raw_output": answer.raw_output} for answer in answers
        ]
        benchmark = benchmark_of(self.asked.benchmark, (row["task"] for row in stored))
        return [
            {
                **answer._asdict(),
                **{name: row[name] for name in ("task", "group", "answer")},
                "prediction": prediction,
                "correct": correct,
                "donor": donors[answer.sample_id],
            }
            for answer, row, (prediction, correct) in zip(answers, stored, headline(benchmark, stored), strict=True)
        ]

    def _analysed(self, kind: str, samples: list[StoredSample]) -> list[dict[str, Any]]:
        """One part of the method's analysis, with the task of each sample."""
        rows = self.prober.analyse(kind, samples, self.settings.seed, min(CHUNK, self.settings.batch_size))
        return [{**row, "task": question(sample).task} for sample, row in zip(samples, rows, strict=True)]


def faithfulness(
    config: RunConfig,
    asked: Sequence[tuple[DatasetRecord, str, str]],
    model: CheckpointRecord,
    controls: Controls,
    on_progress: ProgressFn,
) -> list[FaithfulnessRecord]:
    """Asks `model` and the `controls` the same questions, `model` under every change of its latents.

    `asked` holds datasets, each with the uri and fingerprint of its record: prepared ones, of which the test split is
    asked, and the questions of published benchmarks. A model is loaded once for all. Items lie on one random cycle: the
    next one is the donor of the swap, so none is swapped with itself.
    """
    suites = [(Questions.of(dataset), uri, fingerprint) for dataset, uri, fingerprint in asked]
    jobs = {uri: _suite_jobs(config, questions) for questions, uri, _ in suites}
    tables: dict[str, list[pa.Table]] = {uri: [] for uri in jobs}
    for label, one in [("", model), *controls]:
        with Actors(config, Worker, config, one, label) as actors:
            for questions, uri, _ in suites:
                name = questions.name(f"faithfulness {label or model.stage}")
                tables[uri].append(_parts(actors, questions, one, jobs[uri], uri, name, on_progress)["answers"])
    records = []
    for questions, uri, fingerprint in suites:
        items = _in_order_of_variants(tables[uri])
        rows = score_variants(items.to_pylist(), config.evaluation.seed)
        record = FaithfulnessRecord(
            uri=uri,
            fingerprint=fingerprint,
            benchmark=questions.benchmark,
            checkpoint=model.fingerprint,
            stage=model.stage,
            dataset=questions.dataset.fingerprint,
            rows=rows,
            verdict=verdict(rows),
        )
        analysis_files.write_table(record.items_uri, items)
        save_record(record)
        storage.remove(storage.join(uri, "parts"))
        records.append(record)
    return records


def _suite_jobs(config: RunConfig, asked: Questions) -> list[Job]:
    """Runs of the cycle, each with the one behind it as the donor of its last. Raises DataError below two questions."""
    settings = config.evaluation
    chosen = _chosen(settings.faithfulness_items, settings.seed, asked.dataset)
    if len(chosen) < 2:
        raise DataError(
            f"the {asked.benchmark} has {len(chosen)} questions; the faithfulness suite swaps latents between at "
            "least 2: give more, or set evaluation.faithfulness_items = 0"
        )
    size = min(settings.batch_size, -(-len(chosen) // resources(config.cluster).num_workers))
    lengths = _column(asked.dataset, "num_tokens", chosen)
    batches = [[chosen[i] for i in batch] for batch in in_order(lengths, size, settings.batch_tokens)]
    return [Job("answers", batch, after[0]) for batch, after in zip(batches, [*batches[1:], batches[0]], strict=True)]


def _in_order_of_variants(tables: Iterable[pa.Table]) -> pa.Table:
    """Variants in the order of the suite, items by name: the same file however the parts were placed."""
    items = pa.concat_tables(tables)
    names = list(dict.fromkeys(items["variant"].to_pylist()))
    place = pa.array([names.index(name) for name in items["variant"].to_pylist()])
    items = items.append_column("place", place).sort_by([("place", "ascending"), ("sample_id", "ascending")])
    return items.drop_columns(["place"])


def analyse(
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord,
    uri: str,
    fingerprint: str,
    on_progress: ProgressFn,
) -> AnalysisRecord:
    """Reads the latents of `model` on test samples, and what follows from them; writes data, figures and the record."""
    seed = config.evaluation.seed
    chosen = _chosen(config.evaluation.analysis_items, seed, dataset)
    if len(chosen) < 2:
        raise DataError(f"{len(chosen)} test samples to analyse; at least 2 are needed (evaluation.analysis_items)")
    with_images = [i for i, images in zip(chosen, _column(dataset, "image_sizes", chosen), strict=True) if len(images)]
    jobs = [Job("latents", chosen[i : i + CHUNK]) for i in range(0, len(chosen), CHUNK)]
    jobs += [Job("information", group) for group in _groups(dataset, chosen)[:INFORMATION_CHUNKS]]
    jobs += [Job("occlusion", [item]) for item in with_images[:HEAT_MAPS]]
    with Actors(config, Worker, config, model, "") as actors:
        tables = _parts(actors, Questions.of(dataset), model, jobs, uri, f"analyse {model.stage}", on_progress)
    for kind, table in tables.items():
        analysis_files.write_table(storage.join(uri, f"{kind}.parquet"), table.sort_by("sample_id"))
    record = AnalysisRecord(
        uri=uri,
        fingerprint=fingerprint,
        checkpoint=model.fingerprint,
        stage=model.stage,
        dataset=dataset.fingerprint,
        files=[f"{kind}.parquet" for kind in tables],
        **analysis_files.summary(tables, slots=int(model.config["latent"]["num_slots"])),
    )
    record = record.model_copy(update={"files": [*record.files, *analysis_files.write_figures(record)]})
    save_record(record)
    storage.remove(storage.join(uri, "parts"))
    return record


def _chosen(wanted: int, seed: int, dataset: DatasetRecord) -> list[int]:
    """At most `wanted` rows of the test split, drawn and in random order."""
    order = np.random.default_rng(seed).permutation(dataset.rows("test"))
    return [int(i) for i in order[:wanted]]


def _column(dataset: DatasetRecord, name: str, rows: Sequence[int]) -> list[Any]:
    values = ShardReader(dataset, "test").column(name)
    return [values[i] for i in rows]


def _groups(dataset: DatasetRecord, chosen: Sequence[int]) -> list[list[int]]:
    """Groups of at most CHUNK rows of one task, and of at least two; one of each task first."""
    by_task: dict[str, list[int]] = {}
    sources, tasks = _column(dataset, "source", chosen), _column(dataset, "task", chosen)
    for i, source, task in zip(chosen, sources, tasks, strict=True):
        by_task.setdefault(f"{source}/{task}", []).append(i)
    groups = [
        (start, task, rows[start : start + CHUNK])
        for task, rows in sorted(by_task.items())
        for start in range(0, len(rows), CHUNK)
    ]
    return [rows for _, _, rows in sorted(groups, key=lambda group: group[:2]) if len(rows) > 1]


def _parts(
    actors: Actors,
    asked: Questions,
    model: CheckpointRecord,
    jobs: Sequence[Job],
    uri: str,
    name: str,
    on_progress: ProgressFn,
) -> dict[str, pa.Table]:
    """All jobs, those that have no part yet; the parts of each kind as one table, in order."""
    folder = storage.join(uri, "parts", model.fingerprint)
    parts = [part_name(number, job) for number, job in enumerate(jobs)]
    there = set(storage.list_names(folder))
    shared = ray.put(asked)
    todo = [
        (shared, job, storage.join(folder, part)) for job, part in zip(jobs, parts, strict=True) if part not in there
    ]
    started = time.perf_counter()
    for done, _ in enumerate(actors.run("write", todo, name), 1):
        left = (time.perf_counter() - started) / done * (len(todo) - done)
        on_progress(Progress(name, len(jobs) - len(todo) + done, len(jobs), "parts", left))
    tables: dict[str, list[pa.Table]] = {}
    for part, job in zip(parts, jobs, strict=True):
        content = storage.read_bytes(storage.join(folder, part))
        tables.setdefault(job.kind, []).append(ParquetStream(content).read())
    return {kind: pa.concat_tables(found) for kind, found in tables.items()}
