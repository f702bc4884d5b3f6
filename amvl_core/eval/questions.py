"""What a model is asked: the test split of a prepared dataset, or the questions of a published benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amvl_core.contracts.config import EvaluationConfig, RunConfig
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import TEST_SPLIT, DatasetRecord
from amvl_core.data.reader import ShardReader
from amvl_core.eval.batches import longest_first
from amvl_core.eval.benchmarks.prepared import benchmark_name


@dataclass(frozen=True)
class Questions:
    """Questions of `benchmark`, a published one or TEST_SPLIT; `answers` has those of tasks with few of them."""

    dataset: DatasetRecord
    benchmark: str
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: DatasetRecord) -> Questions:
        """Finds out which, without reading an image."""
        return cls(dataset, benchmark_name(ShardReader(dataset, "test")))

    @property
    def own(self) -> bool:
        """Whether they are a prepared dataset's."""
        return self.benchmark == TEST_SPLIT

    def name(self, work: str) -> str:
        """What progress calls `work` on them."""
        return work if self.own else f"{work} on {self.benchmark}"

    def max_pixels(self, config: RunConfig) -> int:
        """A published image keeps more pixels than those that the model was trained on."""
        return config.data.max_pixels if self.own else config.evaluation.max_pixels

    def chosen(self, wanted: int, seed: int) -> list[int]:
        """At most `wanted` of them by number, drawn and in random order."""
        order = np.random.default_rng(seed).permutation(self.dataset.rows("test"))
        return [int(i) for i in order[:wanted]]

    def parts(self, kind: str, settings: EvaluationConfig, rows: Sequence[int] | None = None) -> list[Part]:
        """`kind` of work on these rows (None: all) in batches of like length, the longest first."""
        rows = range(self.dataset.rows("test")) if rows is None else rows
        lengths = self.column("num_tokens", rows)
        return [
            Part(kind, tuple(rows[i] for i in batch), int(sum(lengths[i] for i in batch)))
            for batch in longest_first(lengths, settings.batch_size, settings.batch_tokens)
        ]

    def column(self, name: str, rows: Sequence[int]) -> list[Any]:
        """A stored column of these rows."""
        values = ShardReader(self.dataset, "test").column(name)
        return [values[i] for i in rows]


class Readers:
    """A reader for each dataset that a worker is asked about."""

    def __init__(self) -> None:
        self._found: dict[str, ShardReader] = {}

    def __getitem__(self, asked: Questions) -> ShardReader:
        if asked.dataset.uri not in self._found:
            self._found[asked.dataset.uri] = ShardReader(asked.dataset, "test")
        return self._found[asked.dataset.uri]
