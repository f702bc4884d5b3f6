"""Evaluation, faithfulness suite, linear probes, draws and analysis over Ray actors.

`amvl_core/eval` says what is asked and made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

import pyarrow as pa

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import StorageError
from amvl_core.contracts.fingerprints import Controls
from amvl_core.contracts.parts import Part, Worker
from amvl_core.contracts.progress import ProgressFn
from amvl_core.contracts.records import (
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    LinearProbeRecord,
    Place,
    R,
    SamplingRecord,
    load_record,
)
from amvl_core.eval.analysis import LatentAnalysis
from amvl_core.eval.evaluation import Evaluation, EvaluationWorker
from amvl_core.eval.linear_probe import LinearProbe
from amvl_core.eval.questions import Questions
from amvl_core.eval.sampling import Sampling, SamplingWorker
from amvl_core.eval.suite import ANSWERS, ProbingWorker, Suite
from infra.actors import Actors

Made = TypeVar("Made", covariant=True)


class Stage(Protocol[Made]):
    """What asks one model, and makes a record of the tables that come of it."""

    place: Place
    asked: Questions
    name: str

    def finish(self, tables: Mapping[str, pa.Table]) -> Made:
        """Writes the record."""


Asked = Sequence[tuple[DatasetRecord, Place]]
"""Prepared datasets or questions of published benchmarks, each with the place of its record."""


def evaluate(
    actors: Actors, config: RunConfig, asked: Asked, model: CheckpointRecord | None, on_progress: ProgressFn
) -> Iterator[EvalRecord]:
    """Scores of `model` (None: the untrained base), which is loaded once for all."""
    make = partial(EvaluationWorker, config, model)
    for dataset, place in asked:
        yield evaluate_with(actors, make, Evaluation(config, dataset, model, place), on_progress)


def evaluate_with(
    actors: Actors, make: Callable[[], Worker], evaluation: Evaluation, on_progress: ProgressFn
) -> EvalRecord:
    """One evaluation by actors that hold its model, or load it with `make`."""
    return _recorded(EvalRecord, actors, make, evaluation, evaluation.parts(), on_progress)


def faithfulness(
    actors: Actors,
    config: RunConfig,
    asked: Asked,
    model: CheckpointRecord,
    controls: Controls,
    on_progress: ProgressFn,
) -> Iterator[FaithfulnessRecord]:
    """`model` under every change of its latents, and the `controls`, on the same questions; each is loaded once."""
    suites = [Suite(config, dataset, model, place) for dataset, place in asked]
    parts = [suite.parts(config.cluster.num_workers) for suite in suites]
    answers: dict[Suite, list[pa.Table]] = {suite: [] for suite in suites}
    elsewhere: dict[Suite, FaithfulnessRecord] = {}
    for label, one in [("", model), *controls]:
        make = partial(ProbingWorker, config, one, label)
        for suite, cut in zip(suites, parts, strict=True):
            if suite in elsewhere:
                continue
            folder = storage.join(_parts(suite.place), one.fingerprint)
            name = suite.asked.name(f"faithfulness {label or model.stage}")
            try:
                answers[suite].append(actors.tables(make, suite.asked, cut, folder, name, on_progress)[ANSWERS])
            except StorageError as error:
                elsewhere[suite] = _elsewhere(FaithfulnessRecord, suite.place, error)
    for suite, found in answers.items():
        yield elsewhere.get(suite) or _made(FaithfulnessRecord, suite.place, partial(suite.finish, found))


def analyse(
    actors: Actors,
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord,
    place: Place,
    on_progress: ProgressFn,
) -> AnalysisRecord:
    """What the model's method measures of its latents on test samples."""
    analysis = LatentAnalysis(config, dataset, model, place)
    make = partial(ProbingWorker, config, model, "")
    return _recorded(AnalysisRecord, actors, make, analysis, analysis.parts(), on_progress)


def linear_probe(
    actors: Actors,
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord,
    place: Place,
    on_progress: ProgressFn,
) -> LinearProbeRecord:
    """What linear probes read of the written steps from the model's slots."""
    probe = LinearProbe(dataset, model, place)
    make = partial(ProbingWorker, config, model, "")
    return _recorded(LinearProbeRecord, actors, make, probe, probe.parts(config), on_progress)


def sample(
    actors: Actors,
    config: RunConfig,
    dataset: DatasetRecord,
    model: CheckpointRecord,
    place: Place,
    on_progress: ProgressFn,
) -> SamplingRecord:
    """Several answers of `model` to each question, by drawn latents and by drawn tokens."""
    sampling = Sampling(config, dataset, model, place)
    make = partial(SamplingWorker, config, model)
    return _recorded(SamplingRecord, actors, make, sampling, sampling.parts(), on_progress)


def _recorded(
    kind: type[R],
    actors: Actors,
    make: Callable[[], Worker],
    stage: Stage[R],
    parts: list[Part],
    on_progress: ProgressFn,
) -> R:
    """The record that a stage makes of what the actors give for `parts`."""
    folder = _parts(stage.place)
    return _made(
        kind,
        stage.place,
        lambda: stage.finish(actors.tables(make, stage.asked, parts, folder, stage.name, on_progress)),
    )


def _made(kind: type[R], place: Place, make: Callable[[], R]) -> R:
    """The record that `make` writes at `place`. The files of its parts are then gone."""
    try:
        record = make()
        storage.remove(_parts(place))
        return record
    except StorageError as error:
        return _elsewhere(kind, place, error)


def _elsewhere(kind: type[R], place: Place, error: StorageError) -> R:
    """The record of another run in the same storage, which removes the files of this one's parts when it has made it.

    Where there is none, `error` is raised.
    """
    record = load_record(place.uri, kind)
    if record is None:
        raise error
    with suppress(StorageError):
        storage.remove(_parts(place))
    return record


def _parts(place: Place) -> str:
    return storage.join(place.uri, "parts")
