"""The faithfulness suite: a latent model with its latents changed, and models without latents, on the same questions.

Items lie on one random cycle: the next one is the donor of the swap, so none is swapped with itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from amvl_core.backbones.loading import model_folder, set_pixel_budget
from amvl_core.contracts.answer_length import max_new_tokens
from amvl_core.contracts.config import RunConfig, trained_by
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, FaithfulnessRecord, Place, save_record
from amvl_core.contracts.sample import StoredSample
from amvl_core.eval.batches import in_order
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.prepared import question, with_places
from amvl_core.eval.benchmarks.scoring import headline
from amvl_core.eval.faithfulness import score_variants, verdict
from amvl_core.eval.linear_probe import SLOTS
from amvl_core.eval.questions import Questions, Readers
from amvl_core.eval.stored import write_table

ANSWERS = "answers"
"""The kind of part that asks every variant; every kind but this and `SLOTS` is one of the method's analysis."""
ROWS = 16
"""Sequences that an analysis runs at a time, at most."""


class Suite:
    """`model` asked questions of `dataset`: a prepared one's test split, or those of a published benchmark."""

    def __init__(self, config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, place: Place) -> None:
        self.config, self.model, self.place = config, model, place
        self.asked = Questions.of(dataset)

    def parts(self, workers: int) -> list[Part]:
        """Runs of the cycle, one for each of `workers` at least; the first item of the next is its last one's donor.

        Raises DataError below two questions.
        """
        settings = self.config.evaluation
        chosen = self.asked.chosen(settings.faithfulness_items, settings.seed)
        if len(chosen) < 2:
            raise DataError(
                f"the {self.asked.benchmark} has {len(chosen)} questions; the faithfulness suite swaps latents between "
                "at least 2: give more, or set evaluation.faithfulness_items = 0"
            )
        size = min(settings.batch_size, -(-len(chosen) // workers))
        lengths = self.asked.column("num_tokens", chosen)
        batches = in_order(lengths, size, settings.batch_tokens)
        return [
            Part(ANSWERS, tuple(chosen[i] for i in batch), int(sum(lengths[i] for i in batch)), chosen[after[0]])
            for batch, after in zip(batches, [*batches[1:], batches[0]], strict=True)
        ]

    def finish(self, tables: Iterable[pa.Table]) -> FaithfulnessRecord:
        """Writes every answer of every model, and the record; `tables` are those of the latent model, then controls."""
        items = _in_order_of_variants(tables)
        rows = score_variants(items.to_pylist(), self.config.evaluation.seed)
        record = FaithfulnessRecord(
            **self.place._asdict(),
            benchmark=self.asked.benchmark,
            checkpoint=self.model.fingerprint,
            stage=self.model.stage,
            dataset=self.asked.dataset.fingerprint,
            rows=rows,
            verdict=verdict(rows),
        )
        write_table(record.items_uri, items)
        save_record(record)
        return record


class _Ready(NamedTuple):
    asked: Questions
    part: Part
    samples: list[StoredSample]
    donor: StoredSample | None


class ProbingWorker:
    """A latent model under its probes and analysis; or, where `label` names one, a control that has no latents."""

    def __init__(self, config: RunConfig, model: CheckpointRecord, label: str) -> None:
        from amvl_core.eval.controls import Control
        from amvl_core.eval.predict import Answerer

        self.config, self.label, self.readers = config, label, Readers()
        with model_folder(model.model_uri) as folder:
            answerer = Answerer.from_pretrained(folder, gpus=config.cluster.gpus_of_a_model)
        self.processor = answerer.processor
        method, latent = trained_by(model.config, model.stage)
        if label:
            self.control = Control(answerer, method, latent)
        else:
            self.prober = method.implementation().prober(answerer.model, answerer.processor, method)

    def prepare(self, asked: Questions, part: Part) -> _Ready:
        """The samples of the part."""
        reader = self.readers[asked]
        samples = [with_places(reader[i]) for i in part.items]
        return _Ready(asked, part, samples, None if part.donor is None else with_places(reader[part.donor]))

    def work(self, ready: _Ready) -> list[dict[str, Any]]:
        """Every variant's answers, what slots hold, or rows of the method's analysis."""
        data = self.config.data.model_copy(update={"max_pixels": ready.asked.max_pixels(self.config)})
        set_pixel_budget(self.processor, data)
        if ready.donor is not None:
            return self._answers(ready, ready.donor)
        settings, samples = self.config.evaluation, ready.samples
        if ready.part.kind == SLOTS:
            return self._held(samples)
        rows = self.prober.analyse(ready.part.kind, samples, settings.seed, min(ROWS, settings.batch_size))
        return [{**row, "task": question(sample).task} for sample, row in zip(samples, rows, strict=True)]

    def _held(self, samples: list[StoredSample]) -> list[dict[str, Any]]:
        """What the slots of each sample hold, and the state before them."""
        held = self.prober.held(samples)
        vectors = zip(held.prompt_BD.float().tolist(), held.slots_BKD.float().tolist(), strict=True)
        return [
            {
                "sample_id": sample.sample_id,
                "group": question(sample).group,
                "steps": json.dumps(sample.steps, ensure_ascii=False),
                "prompt": prompt,
                "slots": slots,
            }
            for sample, (prompt, slots) in zip(samples, vectors, strict=True)
        ]

    def _answers(self, ready: _Ready, donor: StoredSample) -> list[dict[str, Any]]:
        """Read as the evaluation reads answers."""
        samples, most = ready.samples, max_new_tokens(self.config, ready.asked.dataset)
        if self.label:
            answers = self.control(samples, self.label, most)
        else:
            answers = self.prober(samples, donor, most, self.config.evaluation.seed)
        questions = {sample.sample_id: question(sample) for sample in samples}
        following = [*samples[1:], donor]
        donors = {sample.sample_id: other.sample_id for sample, other in zip(samples, following, strict=True)}
        stored = [
            {**questions[answer.sample_id].row(ready.asked.benchmark), "raw_output": answer.raw_output}
            for answer in answers
        ]
        benchmark = benchmark_of(ready.asked.benchmark, (row["task"] for row in stored))
        return [
            {
                **answer._asdict(),
                **{name: row[name] for name in ("task", "group", "answer")},
                "prediction": prediction,
                "score": score,
                "donor": donors[answer.sample_id],
            }
            for answer, row, (prediction, score) in zip(answers, stored, headline(benchmark, stored), strict=True)
        ]


def _in_order_of_variants(tables: Iterable[pa.Table]) -> pa.Table:
    """Variants in the order of the suite, items by name: the same file however the parts were placed."""
    items = pa.concat_tables(tables)
    names = list(dict.fromkeys(items["variant"].to_pylist()))
    place = pa.array([names.index(name) for name in items["variant"].to_pylist()])
    items = items.append_column("place", place).sort_by([("place", "ascending"), ("sample_id", "ascending")])
    return items.drop_columns(["place"])
