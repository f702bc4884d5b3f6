"""Several answers to each question, by drawn latents or by drawn tokens: is one of them right, and is their vote?

A source gives `DRAWS` answers to every question. Drawn latents (`MethodConfig.draws_latents`) are answered greedily;
drawn tokens stand behind the latents' mean. So n answers of one source cost what n of the other do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from statistics import fmean
from typing import Any

import pyarrow as pa

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.method import configurations
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import (
    GREEDY,
    LATENTS,
    TOKENS,
    CheckpointRecord,
    DatasetRecord,
    Place,
    SampledScore,
    SamplingRecord,
    save_record,
)
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.scoring import headline
from amvl_core.eval.evaluation import EvaluationWorker
from amvl_core.eval.questions import Questions
from amvl_core.eval.score import normalise
from amvl_core.eval.significance import Unit, estimate
from amvl_core.eval.stored import write_table

DRAWS = 8
COUNTS = (1, 2, 4, DRAWS)
TAUS = (0.5, 1.0, 2.0)
TEMPERATURES = (0.3, 0.6, 1.0)
SOURCES = ((GREEDY, 0.0), *((LATENTS, tau) for tau in TAUS), *((TOKENS, heat) for heat in TEMPERATURES))
"""What answers come from, and the scale of the noise. The greedy answer at the latents' mean is one."""


class Sampling:
    """`model` on questions of `dataset`'s test split. Raises as `check_drawn`."""

    def __init__(self, config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, place: Place) -> None:
        check_drawn(model.method)
        dataset.check_test_split()
        self.config, self.model, self.place = config, model, place
        self.asked = Questions.of(dataset)
        self.name = f"sample {model.stage}"

    def parts(self) -> list[Part]:
        """Questions that are drawn."""
        settings = self.config.evaluation
        return self.asked.parts("samples", settings, self.asked.chosen(settings.sampled_items, settings.seed))

    def finish(self, tables: Mapping[str, pa.Table]) -> SamplingRecord:
        """Reads and scores the answers, and writes them and the record."""
        order = [("source", "ascending"), ("scale", "ascending"), ("sample_id", "ascending"), ("draw", "ascending")]
        table = tables["samples"].sort_by(order)
        rows = table.to_pylist()
        read = headline(benchmark_of(self.asked.benchmark, (row["task"] for row in rows)), rows)
        for name, values in zip(("prediction", "score"), zip(*read, strict=True), strict=True):
            table = table.append_column(name, pa.array(values))
        record = SamplingRecord(
            **self.place._asdict(),
            checkpoint=self.model.fingerprint,
            stage=self.model.stage,
            dataset=self.asked.dataset.fingerprint,
            scores=score_samples(table.to_pylist()),
        )
        write_table(record.samples_uri, table)
        save_record(record)
        return record


class SamplingWorker(EvaluationWorker):
    """A model that answers batches of questions again and again."""

    def work(self, ready: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Every draw of every source."""
        columns, prompts, _, most = ready
        none: list[list[str]] = [[] for _ in columns]
        found = []
        for source, scale in SOURCES:
            how = {LATENTS: {"tau": scale}, TOKENS: {"temperature": scale}}.get(source, {})
            for draw in range(1 if source == GREEDY else DRAWS):
                answers = self.answerer.predict(prompts.draw(draw), most, none, **how)
                found += [
                    {**known, "source": source, "scale": scale, "draw": draw, "raw_output": answer.text}
                    for known, answer in zip(columns, answers, strict=True)
                ]
        return found


def check_drawn(method: str) -> None:
    """Raises ConfigError where the latents of models that `method` trained cannot be drawn."""
    if not configurations()[method].draws_latents:
        raise ConfigError(
            f"evaluation.sampled_items: the latents of {method} have no distribution to draw from, so there is nothing "
            "to compare with drawn tokens; leave it out"
        )


def score_samples(rows: Iterable[Mapping[str, Any]]) -> list[SampledScore]:
    """Each source at each number of answers, in order of `SOURCES`.

    A row is one answer, with `source`, `scale`, `sample_id`, `group`, `prediction` and `score`; it is right if it
    scores 1.
    """
    by_source: dict[tuple[str, float], dict[tuple[str, str], list[tuple[str, bool]]]] = {}
    for row in rows:
        answers = by_source.setdefault((row["source"], row["scale"]), {})
        said = normalise(row["prediction"]), row["score"] == 1
        answers.setdefault((row["sample_id"], row["group"]), []).append(said)
    scores = []
    for source in SOURCES:
        asked = by_source[source]
        for count in COUNTS if source[0] != GREEDY else (1,):
            passed, voted = (
                estimate([Unit(name, of(answers, count), group=group) for (name, group), answers in asked.items()])
                for of in (_passed, vote_at)
            )
            scores.append(
                SampledScore(
                    source=source[0],
                    scale=source[1],
                    answers=count,
                    n=len(asked),
                    passed=passed.value,
                    passed_interval=(passed.low, passed.high),
                    voted=voted.value,
                    voted_interval=(voted.low, voted.high),
                )
            )
    return scores


def _passed(answers: Sequence[tuple[str, bool]], count: int) -> float:
    return pass_at(len(answers), sum(right for _, right in answers), count)


def pass_at(draws: int, right: int, count: int) -> float:
    """The unbiased estimate that one of `count` answers is right, where `right` of `draws` are (Chen et al. 2021)."""
    return 1 - comb(draws - right, count) / comb(draws, count)


def vote_at(answers: Sequence[tuple[str, bool]], count: int) -> float:
    """How often the commonest of `count` answers is right, the mean over all choices of so many of `answers`.

    Each is a text and whether that is right. Of equally common ones each counts for its share.
    """
    right = dict(answers)

    def one(chosen: Sequence[str]) -> float:
        counts = Counter(chosen)
        most = max(counts.values())
        return fmean(right[text] for text, number in counts.items() if number == most)

    return fmean(one(chosen) for chosen in combinations([text for text, _ in answers], count))
