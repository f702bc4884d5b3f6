"""What a run gave: all that its report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import (
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    ModelRecord,
    SamplingRecord,
)
from amvl_core.contracts.records import fingerprint as record_fingerprint

VERSION = 5
"""Of the report."""
Rows = Sequence[Mapping[str, str]]
"""Rows with the same columns."""


@dataclass(frozen=True)
class RunResult:
    """What a run gave. `before` and `after` are the evaluations of the model it is compared with and of its own.

    `labels` are what tables call the two. `scores` are the rows of the score table, `tables` those of each benchmark.
    """

    config: RunConfig
    dataset: DatasetRecord
    checkpoint: CheckpointRecord
    before: EvalRecord
    after: EvalRecord
    labels: tuple[str, str]
    scores: Rows
    model: ModelRecord
    tables: Mapping[str, Rows] = field(default_factory=dict)
    published: Sequence[EvalRecord] = ()
    suites: Sequence[FaithfulnessRecord] = ()
    analysis: AnalysisRecord | None = None
    sampling: SamplingRecord | None = None

    @property
    def fingerprint(self) -> str:
        """Names the page by the gate's decision, the evaluations on benchmarks and the analyses that it shows."""
        records = [*self.published, *self.suites, *(one for one in (self.analysis, self.sampling) if one)]
        shown, model = [record.fingerprint for record in records], self.model
        gate = [model.version, model.alias, model.reason]
        return record_fingerprint("report", VERSION, model=model.fingerprint, gate=gate, records=shown)
