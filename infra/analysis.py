"""`python -m infra.analysis NAME --checkpoint URI`: one table or figure of the paper, from a checkpoint into MLflow.

The answers and latents behind it are those of the pipeline's stages `faithfulness`, `analyse` and `sampling`: what a
pipeline or an earlier command has made is not made again. What there is to draw is said by the methods.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.figure import Figure

from amvl_core.contracts import fingerprints, storage
from amvl_core.contracts.analysis import Analysis, Columns, Study
from amvl_core.contracts.config import RunConfig, override, validate
from amvl_core.contracts.errors import AmvlError, DataError
from amvl_core.contracts.method import configurations
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import (
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    FaithfulnessRecord,
    Place,
    Record,
    SamplingRecord,
    load_record,
)
from amvl_core.eval.analysis import analysis_of, read_tables
from amvl_core.eval.questions import Questions
from infra import cluster, ray_eval
from infra.actors import Actors
from infra.mlflow_client import address, client, experiment
from infra.reports import figures, page
from infra.tracking import run_name

SUITE, SAMPLING = "faithfulness", "sampling"
Made = TypeVar("Made", bound=Record)


def analyses() -> list[Analysis]:
    """Those of all methods."""
    return [found for method in configurations().values() if (found := method.analysis())]


def names() -> dict[str, str]:
    """What can be drawn, and what each is."""
    found = {
        SUITE: "what changing the latents does (Table 11 and the controls)",
        SAMPLING: "several answers by drawn latents and by drawn tokens; give --items",
    }
    for one in analyses():
        found |= {**one.figures, **{name: said for name, (said, _) in one.studies.items()}}
    return found


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 1 where a message says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.analysis",
        description=__doc__,
        epilog="\n".join(f"  {name:14} {what}" for name, what in names().items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(names()))
    parser.add_argument("--checkpoint", nargs="*", default=[], metavar="URI", help="{storage}/train/{fingerprint}")
    parser.add_argument("--dataset", metavar="URI", help="a prepared dataset; else the one it was trained on")
    parser.add_argument("--items", type=int, help="test samples; else as the checkpoint's configuration says")
    parser.add_argument("--control", nargs=2, action="append", default=[], metavar=("LABEL", "URI"))
    chosen = parser.parse_args(arguments)
    try:
        run(chosen.name, chosen.checkpoint, chosen.dataset, chosen.items, chosen.control)
    except AmvlError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        cluster.disconnect()
    return 0


def run(
    name: str, checkpoints: Sequence[str], dataset: str | None, items: int | None, controls: Sequence[tuple[str, str]]
) -> str:
    """Draws `name` and logs figure and data to a run of its own; the run's id. Raises AmvlError."""
    models = [load(uri, CheckpointRecord) for uri in checkpoints]
    study: Study | None = next((one.studies[name][1] for one in analyses() if name in one.studies), None)
    if study and not models:
        return log(PRESETS["demo"](), name, *study.draw([]), {})
    if not models or (len(models) > 1 and not study):
        raise DataError(f"{name} is of one checkpoint; give --checkpoint with the folder of its record")
    analysis, *_ = [analysis_of(model) for model in models]
    if name not in {SUITE, SAMPLING, *analysis.figures, *analysis.studies}:
        raise DataError(f"{name} is not drawn for {models[0].method}: {models[0].uri}")
    if study:
        study.check(models)
    config = configuration(models[0], items)
    if name == SAMPLING:
        config = override(config, {"evaluation": {"sampled_items": items or config.evaluation.sampled_items}})
        if not config.evaluation.sampled_items:
            raise DataError("sampling asks as many test questions as --items says; give it")
    data = load(dataset or storage.join(config.storage, "prepare", models[0].dataset), DatasetRecord)
    if not (asked := Questions.of(data)).own:
        raise DataError(f"{data.uri} holds questions of {asked.benchmark}; a run asks them (evaluation.benchmarks)")
    others = [(label, load(uri, CheckpointRecord)) for label, uri in controls]
    tags = {"amvl.checkpoint": " ".join(model.fingerprint for model in models), "amvl.dataset": data.fingerprint}
    if study:
        measured = [(m, suite_of(config, data, m, []), latents_of(config, data, m)) for m in models]
        return log(config, name, *study.draw(measured), tags)
    if name == SUITE:
        found = suite_of(config, data, models[0], others)
        columns = {key: [getattr(row, key) for row in found.rows] for key in type(found.rows[0]).model_fields}
        seeds = {label: seed(control) for label, control in others}
        columns["seed"] = [seeds.get(row.variant, seed(models[0])) for row in found.rows]
        print(found.verdict)
        return log(config, name, figures.faithfulness_chart(found.rows, found.verdict), columns, tags)
    if name == SAMPLING:
        sampled = samples_of(config, data, models[0])
        rows = page.sampling(sampled)
        return log(
            config, name, figures.sampling_chart(sampled), {key: [r[key] for r in rows] for key in rows[0]}, tags
        )
    record = latents_of(config, data, models[0])
    tables = read_tables(record)
    if name not in (drawn := analysis.draw(record, tables)):
        raise DataError(f"there is nothing to draw for {name}: no test sample has what it shows (an image, words)")
    return log(config, name, drawn[name], analysis.data(record, tables, name), tags)


def load(uri: str, kind: type[Any]) -> Any:
    """The record at `uri`, or a DataError."""
    record = load_record(storage.absolute(uri), kind)
    if record is None:
        raise DataError(
            f"{uri} holds no {kind.__name__}; give the folder that a finished stage left its record.json in"
        )
    return record


def configuration(model: CheckpointRecord, items: int | None) -> RunConfig:
    """The checkpoint's own, with the storage that it lies in."""
    config = validate(model.config).model_copy(update={"storage": model.uri.rsplit("/", 2)[0]})
    if items is None:
        return config
    return override(config, {"evaluation": {"faithfulness_items": items, "analysis_items": items}})


def seed(model: CheckpointRecord) -> int:
    """The seed of the checkpoint's training."""
    return int(model.config["seed"])


def suite_of(
    config: RunConfig, data: DatasetRecord, model: CheckpointRecord, controls: fingerprints.Controls
) -> FaithfulnessRecord:
    """The stage's record, made now where it is not there yet."""

    def make(actors: Actors, place: Place) -> FaithfulnessRecord:
        (record,) = ray_eval.faithfulness(actors, config, [(data, place)], model, controls, _show)
        return record

    fingerprint = fingerprints.faithfulness_fingerprint(config, data, model, controls)
    return _found(config, "faithfulness", fingerprint, FaithfulnessRecord, make)


def latents_of(config: RunConfig, data: DatasetRecord, model: CheckpointRecord) -> AnalysisRecord:
    """The stage's record, made now where it is not there yet."""

    def make(actors: Actors, place: Place) -> AnalysisRecord:
        return ray_eval.analyse(actors, config, data, model, place, _show)

    return _found(config, "analyse", fingerprints.analyse_fingerprint(config, data, model), AnalysisRecord, make)


def samples_of(config: RunConfig, data: DatasetRecord, model: CheckpointRecord) -> SamplingRecord:
    """The stage's record, made now where it is not there yet."""

    def make(actors: Actors, place: Place) -> SamplingRecord:
        return ray_eval.sample(actors, config, data, model, place, _show)

    return _found(config, "sampling", fingerprints.sampling_fingerprint(config, data, model), SamplingRecord, make)


def _found(
    config: RunConfig, stage: str, fingerprint: str, kind: type[Made], make: Callable[[Actors, Place], Made]
) -> Made:
    place = Place(storage.join(config.storage, stage, fingerprint), fingerprint)
    if (record := load_record(place.uri, kind)) is not None:
        return record
    cluster.connect(config.cluster)
    with Actors(config) as actors:
        return make(actors, place)


def log(config: RunConfig, name: str, figure: Figure, columns: Columns, tags: Mapping[str, str]) -> str:
    """Figure, table and CSV in a run of their own; prints where."""
    import pandas as pd

    mlflow_client = client(config)
    run = mlflow_client.create_run(
        experiment(config, mlflow_client),
        tags={**tags, "mlflow.runName": run_name(config, name) if tags else f"{name}, of no checkpoint"},
    )
    frame = pd.DataFrame(columns)
    mlflow_client.log_figure(run.info.run_id, figure, f"figures/{name}.png")
    mlflow_client.log_table(run.info.run_id, frame, f"tables/{name}.json")
    mlflow_client.log_text(run.info.run_id, frame.to_csv(index=False), f"tables/{name}.csv")
    mlflow_client.set_terminated(run.info.run_id)
    print(frame.head(40).to_string(index=False))
    print(f"run {run.info.run_id} of {address(config)}: figures/{name}.png, tables/{name}.csv")
    return str(run.info.run_id)


def _show(progress: Progress) -> None:
    print(progress.line(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
