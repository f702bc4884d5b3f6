"""Faithfulness and analysis of a latent model over a pool of Ray actors, in parts that survive a kill."""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util.annotations import RayDeprecationWarning

from amvl_core import storage
from amvl_core.base import model_folder, set_pixel_budget
from amvl_core.config import RunConfig
from amvl_core.data.reader import ShardReader
from amvl_core.errors import DataError
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.base import Question
from amvl_core.eval.benchmarks.prepared import benchmark_name, laid_out, question
from amvl_core.eval.benchmarks.scoring import outcomes, readers
from amvl_core.eval.faithfulness import score_variants, verdict
from amvl_core.progress import Progress, ProgressFn
from amvl_core.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    FaithfulnessRecord,
    save_record,
)
from infra import analysis_files
from infra.cluster import resources
from infra.fingerprints import Controls

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


class Worker:
    """One actor: a model, the test split, and the parts it writes."""

    def __init__(self, config: dict[str, Any], dataset: dict[str, Any], model: dict[str, Any], label: str) -> None:
        import torch
        from transformers.utils import logging as hf_logging

        from amvl_core.eval.predict import Answerer
        from amvl_core.eval.variants import Control, Prober

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        run = RunConfig.model_validate(config)
        self.settings = run.evaluation
        self.reader = ShardReader(DatasetRecord.model_validate(dataset), "test")
        self.benchmark = benchmark_name(self.reader[0])
        self.label = label
        record = CheckpointRecord.model_validate(model)
        with model_folder(record.model_uri) as folder:
            answerer = Answerer.from_pretrained(folder)
        if self.benchmark != TEST_SPLIT:  # its images are larger than those that the model was trained on
            budget = run.data.model_copy(update={"max_pixels": self.settings.max_pixels})
            set_pixel_budget(answerer.processor, budget)
        if label:
            self.control = Control(answerer)
            self.slots = len(self.control.encoder.slots)
        else:
            positions = record.config["stages"][record.stage]["method"]["posterior_positions"]
            self.prober = Prober(answerer.model, answerer.processor, positions)
            self.slots = len(self.prober.encoder.slots)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Jobs with the place of their part -> the same places, when the parts are written."""
        for uri, kind, items, donor in zip(batch["uri"], batch["kind"], batch["items"], batch["donor"], strict=True):
            rows = [self.reader[int(i)] for i in items]
            columns = getattr(self, f"_{kind}")(rows, int(donor))
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(columns), buffer)
            storage.write_bytes(str(uri), buffer.getvalue())
        return {"uri": batch["uri"]}

    def _item(self, row: dict[str, Any]) -> Any:
        from amvl_core.eval.variants import Item

        return Item(row["sample_id"], laid_out(row, self.slots), row["images"])

    def _answers(self, rows: list[dict[str, Any]], donor: int) -> list[dict[str, Any]]:
        """Every variant on every item."""
        settings, items = self.settings, [self._item(row) for row in rows]
        if self.label:
            answers = self.control(items, self.label, settings.max_new_tokens)
        else:
            other = self._item(self.reader[donor])
            answers = self.prober(items, other, settings.max_new_tokens, settings.seed)
        asked = {row["sample_id"]: question(row) for row in rows}
        following = [*rows[1:], self.reader[donor]]
        donors = {row["sample_id"]: other["sample_id"] for row, other in zip(rows, following, strict=True)}
        stored = []
        for answer in answers:
            about = asked[answer.sample_id]
            prediction, correct = self._read(about, answer.raw_output)
            stored.append(
                {
                    **answer._asdict(),
                    "task": about.task,
                    "group": about.group,
                    "answer": about.answer,
                    "prediction": prediction,
                    "correct": correct,
                    "donor": donors[answer.sample_id],
                }
            )
        return stored

    def _read(self, about: Question, raw_output: str) -> tuple[str, bool]:
        """What the headline reading of the evaluation reads, and whether it is right."""
        benchmark = benchmark_of(self.benchmark, [about.task])
        reader = readers(benchmark)[benchmark.headline]
        row = {**about.row(self.benchmark), "raw_output": raw_output}
        found, ((outcome,), _, _) = reader(row), outcomes(reader, [row])
        return (found.answer if found else None) or "", outcome.correct

    def _latents(self, rows: list[dict[str, Any]], donor: int) -> list[dict[str, Any]]:
        """Prior and posterior of every item, and how far the prior moves when image or words are permuted."""
        import torch

        from amvl_core.analysis.sensitivity import permutation_shifts

        items = [self._item(row) for row in rows]
        with torch.inference_mode():
            _, reading = self.prober.read(items)
        shifts = permutation_shifts(self.prober, items, self.settings.seed)
        columns = {
            "prior_mean": reading.prior.mean,
            "prior_logvar": reading.prior.logvar,
            "posterior_mean": reading.posterior.mean,
            "posterior_logvar": reading.posterior.logvar,
            "image_shift": shifts.image,
            "text_shift": shifts.text,
        }
        flat = {name: value.float().flatten(1).cpu().tolist() for name, value in columns.items()}
        return [
            {"sample_id": row["sample_id"], "task": question(row).task, **{k: v[i] for k, v in flat.items()}}
            for i, row in enumerate(rows)
        ]

    def _information(self, rows: list[dict[str, Any]], donor: int) -> list[dict[str, Any]]:
        """The bounds of I_q(Z; Y | X) for every question, over the targets of all of these items."""
        import torch

        from amvl_core.analysis.information import cross_posteriors, information_bounds
        from amvl_core.gaussian import Gaussian

        items = [self._item(row) for row in rows]
        with torch.inference_mode():
            _, reading = self.prober.read(items)
            crossed = cross_posteriors(self.prober.model, reading, self.prober.method.config.posterior_positions)
            generator = torch.Generator().manual_seed(self.settings.seed)
            flat = Gaussian(crossed.mean.flatten(2), crossed.logvar.flatten(2))
            bounds = information_bounds(flat, draws=4, generator=generator)
        return [
            {
                "sample_id": row["sample_id"],
                "task": question(row).task,
                "lower": float(bounds.lower[i]),
                "upper": float(bounds.upper[i]),
                "candidates": len(rows),
            }
            for i, row in enumerate(rows)
        ]

    def _occlusion(self, rows: list[dict[str, Any]], donor: int) -> list[dict[str, Any]]:
        """The heat map of every item, with its image."""
        from amvl_core.analysis.occlusion import occlusion_map

        stored = []
        for row in rows:
            map_HWK = occlusion_map(self.prober, self._item(row), min(CHUNK, self.settings.batch_size))
            about = question(row)
            stored.append(
                {
                    "sample_id": row["sample_id"],
                    "question": about.prompt,
                    "answer": about.answer,
                    "image": row["images"][0],
                    "shape": list(map_HWK.shape),
                    "shift": map_HWK.flatten().tolist(),
                }
            )
        return stored


def faithfulness(
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord,
    controls: Controls,
    uri: str,
    fingerprint: str,
    on_progress: ProgressFn,
) -> FaithfulnessRecord:
    """Asks `model` and the `controls` the same questions, `model` under every change of its latents.

    `dataset` is a prepared one, of which the test split is asked, or holds the questions of a published benchmark.
    Items lie on one random cycle: the next one is the donor of the swap, so none is swapped with itself.
    """
    settings = config.evaluation
    chosen = _chosen(settings.faithfulness_items, settings.seed, dataset)
    if len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} test samples; the faithfulness suite swaps latents between at least 2: prepare more test "
            "samples, or set evaluation.faithfulness_items = 0"
        )
    size = min(settings.batch_size, -(-len(chosen) // resources(config.cluster).num_workers))
    groups = _runs(chosen, _column(dataset, "num_tokens", chosen), size, settings.batch_tokens)
    jobs = [Job("answers", part, after[0]) for part, after in zip(groups, [*groups[1:], groups[0]], strict=True)]
    benchmark = benchmark_name(ShardReader(dataset, "test")[0])
    where = "" if benchmark == TEST_SPLIT else f" on {benchmark}"
    tables = []
    for label, asked in [("", model), *controls]:
        name = f"faithfulness {label or model.stage}{where}"
        tables.append(_parts(config, dataset, asked, label, jobs, uri, name, on_progress)["answers"])
    items = pa.concat_tables(tables)
    # Variants in the order of the suite, items by name: the same file however the parts were placed.
    names = list(dict.fromkeys(items["variant"].to_pylist()))
    place = pa.array([names.index(name) for name in items["variant"].to_pylist()])
    items = items.append_column("place", place).sort_by([("place", "ascending"), ("sample_id", "ascending")])
    items = items.drop_columns(["place"])
    rows = score_variants(items.to_pylist(), config.evaluation.seed)
    record = FaithfulnessRecord(
        uri=uri,
        fingerprint=fingerprint,
        benchmark=benchmark,
        checkpoint=model.fingerprint,
        stage=model.stage,
        dataset=dataset.fingerprint,
        rows=rows,
        verdict=verdict(rows),
    )
    analysis_files.write_table(storage.join(record.uri, "items.parquet"), items)
    save_record(record)
    storage.remove(storage.join(uri, "parts"))
    return record


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
    tables = _parts(config, dataset, model, "", jobs, uri, f"analyse {model.stage}", on_progress)
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


def _runs(items: Sequence[int], lengths: Sequence[int], max_items: int, max_tokens: int) -> list[list[int]]:
    """`items` in order, in runs of at most `max_items` and `max_tokens` tokens with padding; a longer one is alone."""
    runs: list[list[int]] = []
    longest = 0
    for item, length in zip(items, lengths, strict=True):
        longest = max(longest, length)
        if runs and len(runs[-1]) < max_items and (len(runs[-1]) + 1) * longest <= max_tokens:
            runs[-1].append(item)
        else:
            runs.append([item])
            longest = length
    return runs


def _column(dataset: DatasetRecord, name: str, rows: Sequence[int]) -> list[Any]:
    values = ShardReader(dataset, "test").column(name)
    return [values[i] for i in rows]


def _groups(dataset: DatasetRecord, chosen: Sequence[int]) -> list[list[int]]:
    """Groups of at most CHUNK rows of one task, and of at least two; one of each task first."""
    by_task: dict[str, list[int]] = {}
    sources, extras = _column(dataset, "source", chosen), _column(dataset, "extra", chosen)
    for i, source, extra in zip(chosen, sources, extras, strict=True):
        by_task.setdefault(f"{source}/{json.loads(extra)['task']}", []).append(i)
    groups = [
        (start, task, rows[start : start + CHUNK])
        for task, rows in sorted(by_task.items())
        for start in range(0, len(rows), CHUNK)
    ]
    return [rows for _, _, rows in sorted(groups, key=lambda group: group[:2]) if len(rows) > 1]


def _parts(
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord,
    label: str,
    jobs: Sequence[Job],
    uri: str,
    name: str,
    on_progress: ProgressFn,
) -> dict[str, pa.Table]:
    """All jobs through one actor pool, those that have no part yet; the parts of each kind as one table, in order."""
    folder = storage.join(uri, "parts", model.fingerprint)
    parts = [storage.join(folder, _part(number, job)) for number, job in enumerate(jobs)]
    there = {storage.join(folder, name) for name in storage.list_names(folder)}
    todo = [{"uri": part, **job._asdict()} for part, job in zip(parts, jobs, strict=True) if part not in there]
    workers = resources(config.cluster)
    if todo:
        with warnings.catch_warnings():
            # As in ray_eval: Ray Data has no other name yet for max_restarts.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            results = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
                Worker,
                fn_constructor_args=(*(part.model_dump(mode="json") for part in (config, dataset, model)), label),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers.num_workers, len(todo))),
                max_restarts=0,
                num_gpus=workers.resources.get("GPU", 0),
                num_cpus=workers.resources["CPU"],
            )
        started = time.perf_counter()
        for done, _ in enumerate(results.iter_batches(batch_size=1), 1):
            left = (time.perf_counter() - started) / done * (len(todo) - done)
            on_progress(Progress(name, len(jobs) - len(todo) + done, len(jobs), "parts", left))
    tables: dict[str, list[pa.Table]] = {}
    for part, job in zip(parts, jobs, strict=True):
        tables.setdefault(job.kind, []).append(pq.read_table(io.BytesIO(storage.read_bytes(part))))
    return {kind: pa.concat_tables(found) for kind, found in tables.items()}


def _part(number: int, job: Job) -> str:
    """The file of a part; its name says what is in it, so that another cut never finds it."""
    digest = hashlib.sha256(json.dumps(job).encode()).hexdigest()[:12]
    return f"{job.kind}-{number:05d}-{digest}.parquet"
