"""The small records that stages talk through, and the fingerprints that name them.

A stage writes `{root}/{stage}/{fingerprint}/` and its `record.json` last: a record that is there is a stage that
is finished. A fingerprint covers the semantic fields of the stage's configuration, the fingerprints it builds on
and a version of the stage's code, and nothing that depends on the machines.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from amvl_core.contracts import storage
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.errors import DataError, StorageError, shortened
from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.progress import HISTORY, Progress, history_from_json
from amvl_core.contracts.sample import Split

RECORD_NAME = "record.json"

CHECKPOINTS, BASE = "checkpoints", "base"
"""What lies below a training stage until its record is there."""

EXAMPLES_PER_REASON = 3
"""Dropped samples that a report names for each reason."""

NOTES = 20
"""Of a source, the commonest: a file may have another field in each of its rows."""


class Record(Frozen):
    """Base of all records: frozen, and an unknown field is an error."""

    uri: str
    fingerprint: str


class Place(NamedTuple):
    """Where the record of a stage is, or will be, and what names it."""

    uri: str
    fingerprint: str


class Shard(Frozen):
    """One Parquet file of a dataset."""

    file: str
    split: Split
    rows: int
    sha256: str


class DroppedExample(Frozen):
    """A sample that was not kept, for the report."""

    sample_id: Annotated[str, AfterValidator(shortened)]
    detail: Annotated[str, AfterValidator(shortened)]


class SourceReport(Frozen):
    """What one source gave: `read == kept + sum(dropped.values())`, always.

    `notes` count what was passed over in rows that may be kept all the same, such as a field that nothing reads.
    `too_long` counts samples that were dropped as such by their tokens, rounded up (`data_prep/units.py`).
    `target_tokens` counts those that fitted by the tokens that the model is taught to write, its end of turn included.
    Repeats that were dropped later are still in it; it is empty for a published benchmark.
    """

    source: str
    split: Split
    read: int
    kept: int
    dropped: dict[str, int]
    examples: dict[str, list[DroppedExample]]
    notes: dict[str, int] = Field(default_factory=dict)
    too_long: dict[int, int] = Field(default_factory=dict)
    target_tokens: dict[int, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> SourceReport:
        if self.read != self.kept + sum(self.dropped.values()):
            raise ValueError(
                f"{self.source}, {self.split}: {self.read} samples were read, but {self.kept} are kept and "
                f"{sum(self.dropped.values())} dropped; not one may be lost"
            )
        return self

    def merged(self, other: SourceReport) -> SourceReport:
        """This part of a source and a later one as one report, with the first examples of both."""
        assert (self.source, self.split) == (other.source, other.split)
        reasons = sorted({*self.examples, *other.examples})
        return SourceReport(
            source=self.source,
            split=self.split,
            read=self.read + other.read,
            kept=self.kept + other.kept,
            dropped=dict(sorted((Counter(self.dropped) + Counter(other.dropped)).items())),
            examples={
                reason: [*self.examples.get(reason, []), *other.examples.get(reason, [])][:EXAMPLES_PER_REASON]
                for reason in reasons
            },
            notes=dict((Counter(self.notes) + Counter(other.notes)).most_common(NOTES)),
            too_long=dict(sorted((Counter(self.too_long) + Counter(other.too_long)).items())),
            target_tokens=dict(sorted((Counter(self.target_tokens) + Counter(other.target_tokens)).items())),
        )


class DatasetRecord(Record):
    """A prepared dataset: `shards` are files below `uri`, in order."""

    kind: Literal["dataset"] = "dataset"
    schema_version: int
    shards: list[Shard]
    kept: int
    dropped: dict[str, int]
    reports: list[SourceReport]

    def files(self, split: Split) -> list[Shard]:
        """The shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def rows(self, split: Split) -> int:
        """Samples in one split."""
        return sum(shard.rows for shard in self.files(split))

    def check_test_split(self) -> None:
        """Raises DataError where there is nothing to evaluate on."""
        if not self.rows("test"):
            notes = "".join(f"; {report.source}: {note}" for report in self.reports for note in list(report.notes)[:3])
            raise DataError(
                f"the dataset has no test split to evaluate on; give a source with one (data.sources){notes}"
            )


class FeaturesRecord(Record):
    """Features of all training images of a dataset by one frozen encoder (`amvl_core/data/features.py`).

    `shards` are files below `uri` with the rows of the dataset's training shards, in order. `grid` are rows and columns
    of patches, `width` is that of a feature. `encoder` has the name that the run calls it by.
    """

    kind: Literal["features"] = "features"
    encoder: EncoderConfig
    dataset: str
    grid: tuple[int, int]
    width: int
    shards: list[Shard]


class CheckpointRecord(Record):
    """A trained model: a Hugging Face folder at `uri`/model; `history` is every step that was logged."""

    kind: Literal["checkpoint"] = "checkpoint"
    stage: str
    method: str
    step: int
    config: dict[str, Any]
    dataset: str
    parent: str | None
    num_parameters: int
    metrics: dict[str, float]

    @property
    def model_uri(self) -> str:
        """Where the weights, configuration, tokenizer and processor are."""
        return storage.join(self.uri, "model")

    def history(self) -> list[Progress]:
        """The logged steps of its training; none where an earlier version trained it, which did not keep them."""
        uri = storage.join(self.uri, HISTORY)
        return history_from_json(storage.read_bytes(uri)) if storage.exists(uri) else []


class TaskScore(Frozen):
    """The mean score on one task with its 95 % interval, and what always giving the commonest answer scores.

    The commonest answer is that of the training split, or of a published benchmark itself, which has none.
    """

    task: str
    n: int
    accuracy: float
    low: float
    high: float
    majority: float


class MetricScore(Frozen):
    """A metric of a benchmark over `n` items with its 95 % interval (`eval/significance.py`), all shares of 1."""

    metric: str
    n: int
    value: float
    low: float
    high: float


class ReadingScore(Frozen):
    """Every metric under one way of reading the answers, and how many items that way did not decide.

    `unanswered` items are wrong; `drawn` ones have a fixed option in the place of a harness's random one.
    """

    reading: str
    scores: list[MetricScore]
    unanswered: int
    drawn: int


TEST_SPLIT = "test split"
"""The benchmark that every prepared dataset has."""


class EvalRecord(Record):
    """Scores of one checkpoint on one benchmark; `predictions.parquet` below `uri` holds every raw output.

    `scores` and `overall` are under the benchmark's headline reading, `readings` has all of them. `dataset` is the
    prepared dataset, or the benchmark's questions. `cut` of the `asked` answers were not at their end when the model
    had written as many tokens as it may.
    """

    kind: Literal["evaluation"] = "evaluation"
    benchmark: str = TEST_SPLIT
    checkpoint: str
    stage: str
    dataset: str
    scores: list[TaskScore]
    overall: TaskScore
    readings: list[ReadingScore] = Field(min_length=1)
    asked: int = Field(0, ge=0)
    cut: int = Field(0, ge=0)

    @property
    def mostly_cut(self) -> bool:
        """Whether the scores say more of the length that answers may have than of the model."""
        return 2 * self.cut > self.asked

    @property
    def predictions_uri(self) -> str:
        """The raw outputs the scores were computed from."""
        return storage.join(self.uri, "predictions.parquet")


UNCHANGED = "unchanged"
"""The unchanged model."""
SWAPPED = "swapped"
"""Each item has the latents of another one."""
CONSTANT = "constant"
"""Every item has the same latents: the mean of other items'."""
NO_BLOCK = "no block"
"""The question without its latent block."""


class VariantScore(Frozen):
    """A model with its latents changed in one way, against the unchanged model, on the same items.

    Shares of 1; `log_likelihood` is the mean over items of log p(y | question, latents) in nats, y being all tokens
    that the model is trained to write. Intervals are 95 %; differences are to the unchanged model, paired by item;
    `p_value` is that of `test` on the accuracies, `log_likelihood_p` that of random sign flips on the log-likelihoods.
    """

    variant: str
    n: int
    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    test: str
    log_likelihood: float
    log_likelihood_low: float
    log_likelihood_high: float
    log_likelihood_difference: float
    log_likelihood_difference_low: float
    log_likelihood_difference_high: float
    log_likelihood_p: float


class FaithfulnessRecord(Record):
    """What the latents of one checkpoint do on questions of `benchmark`, a published one or TEST_SPLIT.

    One row per variant, the unchanged model first; `verdict` is a sentence. `items.parquet` below `uri`
    holds every output and log-likelihood the rows were computed from.
    """

    kind: Literal["faithfulness"] = "faithfulness"
    benchmark: str
    checkpoint: str
    stage: str
    dataset: str
    rows: list[VariantScore]
    verdict: str

    @property
    def items_uri(self) -> str:
        """Every output and log-likelihood."""
        return storage.join(self.uri, "items.parquet")


class StepProbe(Frozen):
    """How many of the `n` test questions with a step number `step` a linear probe gives that step's text; shares of 1.

    `texts` are its different texts, `majority` is the share of the commonest. `slots` are the probes of each slot,
    `prompt` is that of the state at the last token before the block. Each question is held out of its probe's fit.
    """

    step: int
    n: int
    texts: int
    majority: float
    prompt: float
    slots: list[float]


class LinearProbeRecord(Record):
    """What linear probes read of the written steps from the slots of one checkpoint (`eval/linear_probe.py`).

    Steps that are `left_out` cannot be probed. `vectors.parquet` below `uri` holds what the probes were fitted on.
    """

    kind: Literal["linear_probe"] = "linear_probe"
    checkpoint: str
    stage: str
    dataset: str
    steps: list[StepProbe]
    left_out: list[int]

    @property
    def vectors_uri(self) -> str:
        """Of each question what its slots hold, the state before them, and its steps as JSON."""
        return storage.join(self.uri, "vectors.parquet")


GREEDY, LATENTS, TOKENS = "greedy", "latents", "tokens"
"""Where several answers of one model to one question differ: nowhere, in drawn latents, or in drawn tokens."""


class SampledScore(Frozen):
    """What `answers` answers to each of `n` questions score: shares of 1, with their 95 % intervals over questions.

    `source` is where answers differ and `scale` how far: tau of drawn latents, or the temperature of drawn tokens.
    `passed`: one of them is right. `voted`: the commonest of them is.
    """

    source: str
    scale: float
    answers: int
    n: int
    passed: float
    passed_interval: tuple[float, float]
    voted: float
    voted_interval: tuple[float, float]


class SamplingRecord(Record):
    """Drawn latents against drawn tokens of one checkpoint, at equal numbers of answers (`eval/sampling.py`)."""

    kind: Literal["sampling"] = "sampling"
    checkpoint: str
    stage: str
    dataset: str
    scores: list[SampledScore]

    @property
    def samples_uri(self) -> str:
        """Every answer."""
        return storage.join(self.uri, "samples.parquet")


class AnalysisRecord(Record):
    """What the method of one checkpoint measures of its latents on test samples; `files` lie below `uri`.

    What `numbers` are says the method's `Analysis`.
    """

    kind: Literal["analysis"] = "analysis"
    checkpoint: str
    stage: str
    dataset: str
    numbers: dict[str, Any]
    files: list[str]


class ModelRecord(Record):
    """A version in the model registry, the alias that it took when it was registered, and why that one."""

    kind: Literal["model"] = "model"
    name: str
    version: int
    alias: str
    reason: str
    run_id: str
    tracking_uri: str


class ReportRecord(Record):
    """The page of a run, `report.html` below `uri`, and the tracking run that it was logged to when it was made."""

    kind: Literal["report"] = "report"
    run_id: str


R = TypeVar("R", bound=Record)


def fingerprint(stage: str, version: int, /, **parts: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `parts` in canonical JSON.

    Raises TypeError on anything that has no stable form (a set, an object, NaN ...).
    """
    return hashlib.sha256(_canonical({"stage": stage, "version": version, "parts": parts}).encode()).hexdigest()[:16]


def check_unchanged(what: str, made: Place, now: str) -> None:
    """Raises DataError where what a stage reads has another fingerprint `now` than the place that it was `made` at.

    Then what lies there is of neither, and it is removed.
    """
    if now != made.fingerprint:
        storage.remove(made.uri)
        raise DataError(
            f"{what}: the files that it reads changed while they were read, so what was made of them is removed; run "
            "the same command again when nothing writes there"
        )


def _canonical(value: Any, path: str = "") -> str:
    if isinstance(value, BaseModel):
        return _canonical(value.model_dump(mode="json"), path)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{path or 'value'}: keys must be strings to have a stable form")
        items = (f"{json.dumps(key)}:{_canonical(value[key], f'{path}.{key}')}" for key in sorted(value))
        return "{" + ",".join(items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_canonical(item, f"{path}[{i}]") for i, item in enumerate(value)) + "]"
    if value is None or isinstance(value, (str, bool, int)):
        return json.dumps(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise TypeError(f"{path or 'value'}: {type(value).__name__} has no stable form, so it cannot be fingerprinted")


def save_record(record: Record) -> None:
    """Writes `record.json` below the record's own `uri`: the last write of a stage."""
    storage.write_bytes(storage.join(record.uri, RECORD_NAME), record.model_dump_json(indent=2).encode())


def remove_resume_state(uri: str) -> None:
    """Removes what a training stage needs until its record is there: checkpoints, and the base where it wrote one."""
    for name in (CHECKPOINTS, BASE):
        storage.remove(storage.join(uri, name))


def load_record(uri: str, kind: type[R]) -> R | None:
    """The record of a finished stage, or None where the stage has not finished."""
    where = storage.join(uri, RECORD_NAME)
    if not storage.exists(where):
        return None
    try:
        record = kind.model_validate_json(storage.read_bytes(where))
    except ValidationError as error:
        raise StorageError(
            f"{where} is damaged or was written by another version; remove the folder {uri} to redo that stage"
        ) from error
    # A storage root may be moved or reached by another path: the record is where it was found.
    return record.model_copy(update={"uri": uri.rstrip("/")})
