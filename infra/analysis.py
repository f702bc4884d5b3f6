"""`python -m infra.analysis NAME --checkpoint URI`: one table or figure of the paper, from a checkpoint into MLflow.

The answers and latents behind it are those of the pipeline's stages `faithfulness` and `analyse`: what a pipeline or
an earlier command has made is not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from amvl_core.contracts import fingerprints, storage
from amvl_core.contracts.config import RunConfig, flatten, override, validate
from amvl_core.contracts.errors import AmvlError, DataError
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import (
    PRIOR,
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    FaithfulnessRecord,
    VariantScore,
    load_record,
)
from amvl_core.methods.amvl.presets import demo
from infra import analysis_files, cluster, ray_analysis
from infra.mlflow_client import client, experiment, tracking_uri
from infra.reports import figures
from infra.tracking import run_name

Columns = dict[str, list[Any]]
FIGURES = {
    "geometry": "Table 7, as it is and centred",
    "similarity": "Figure 4, left: cosine between slots",
    "sensitivity": "Figure 4, right: image against text",
    "information": "KL per slot, active units, I_q(Z; Y | X) of Prop. C.5",
    "occlusion": "Figure 3: heat maps",
    "faithfulness": "what changing the latents does (Table 11 and the controls)",
    "contamination": "Prop. C.1, C.4: leakage against gamma; of a linear-Gaussian problem where no checkpoint is given",
}
GAMMAS = [0.1 * i for i in range(21)]


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 1 where a message says what is wrong."""
    named = "\n".join(f"  {name:14} {what}" for name, what in FIGURES.items())
    parser = argparse.ArgumentParser(
        prog="python -m infra.analysis",
        description=__doc__,
        epilog=named,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(FIGURES))
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
    if name == "contamination" and not models:
        return log(demo(), name, *linear_gaussian(), {})
    if not models or (len(models) > 1 and name != "contamination"):
        raise DataError(f"{name} is of one checkpoint; give --checkpoint with the folder of its record")
    if odd := [model.uri for model in models if model.method != "amvl"]:
        raise DataError(f"{odd[0]} was trained by another method and has no latents; give a checkpoint of AMVL")
    if name == "contamination":
        check_one_sweep(models)
    config = configuration(models[0], items)
    data = load(dataset or storage.join(config.storage, "prepare", models[0].dataset), DatasetRecord)
    if (published := ray_analysis.Questions.of(data).benchmark) != TEST_SPLIT:
        raise DataError(f"{data.uri} holds questions of {published}; a run asks them (evaluation.benchmarks)")
    others = [(label, load(uri, CheckpointRecord)) for label, uri in controls]
    tags = {"amvl.checkpoint": models[0].fingerprint, "amvl.dataset": data.fingerprint}
    if name == "contamination":
        records = [(m, faithfulness(config, data, m, []), analysis(config, data, m)) for m in models]
        return log(config, name, *contamination(records), {**tags, "amvl.checkpoint": " ".join(checkpoints)})
    if name == "faithfulness":
        found = faithfulness(config, data, models[0], others)
        columns = {key: [getattr(row, key) for row in found.rows] for key in type(found.rows[0]).model_fields}
        seeds = {label: seed(control) for label, control in others}
        columns["seed"] = [seeds.get(row.variant, seed(models[0])) for row in found.rows]
        print(found.verdict)
        return log(config, name, figures.faithfulness_chart(found.rows, found.verdict), columns, tags)
    record = analysis(config, data, models[0])
    if name not in (drawn := analysis_files.draw(record)):
        raise DataError(f"there is nothing to draw for {name}: no test sample has what it shows (an image, words)")
    return log(config, name, drawn[name], analysis_files.data(record, name), tags)


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


def gamma(model: CheckpointRecord) -> float:
    """The weight of the reverse KL after its warm-up that the checkpoint was trained with."""
    return float(model.config["stages"][model.stage]["method"]["gamma_max"])


def seed(model: CheckpointRecord) -> int:
    """The seed of the checkpoint's training."""
    return int(model.config["seed"])


def check_one_sweep(models: Sequence[CheckpointRecord]) -> None:
    """Checkpoints that are drawn against gamma differ in `gamma_max` of their AMVL stages, and in nothing else.

    Raises DataError that names the fields in which one of them differs from the first.
    """
    first = trained(models[0])
    for model in models[1:]:
        other = trained(model)
        same_data = model.dataset == models[0].dataset
        odd = [
            f"{name} ({first.get(name, 'not there')}, {other.get(name, 'not there')})"
            for name in dict.fromkeys([*first, *other])
            if first.get(name) != other.get(name) and not (same_data and name.startswith("data."))
        ]
        if odd:
            raise DataError(
                f"{models[0].uri} and {model.uri} differ in more than gamma_max: {', '.join(odd)}; give checkpoints "
                "that are alike in everything else"
            )


def trained(model: CheckpointRecord) -> dict[str, str]:
    """What a checkpoint depends on by dotted path, but for `gamma_max`: not how the same steps are computed."""
    config = validate(model.config)
    names = list(config.stages)
    stages = names[: names.index(model.stage) + 1]
    fields = {
        name: value
        for name, value in flatten(config.model_copy(update={"stages": {n: config.stages[n] for n in stages}})).items()
        if (name.split(".")[0] in ("seed", "data", "model", "latent", "stages") or name == "trainer.precision")
        and not name.endswith((".gamma_max", ".micro_tokens"))
    }
    return {"dataset": model.dataset, "stage": model.stage, **fields}


def faithfulness(
    config: RunConfig, data: DatasetRecord, model: CheckpointRecord, controls: fingerprints.Controls
) -> FaithfulnessRecord:
    """The stage's record, made now where it is not there yet."""
    fingerprint = fingerprints.faithfulness_fingerprint(config, data, model, controls)
    uri = storage.join(config.storage, "faithfulness", fingerprint)
    if (record := load_record(uri, FaithfulnessRecord)) is not None:
        return record
    cluster.connect(config.cluster)
    (made,) = ray_analysis.faithfulness(config, [(data, uri, fingerprint)], model, controls, _show)
    return made


def analysis(config: RunConfig, data: DatasetRecord, model: CheckpointRecord) -> AnalysisRecord:
    """The stage's record, made now where it is not there yet."""
    fingerprint = fingerprints.analyse_fingerprint(config, data, model)
    uri = storage.join(config.storage, "analyse", fingerprint)
    if (record := load_record(uri, AnalysisRecord)) is not None:
        return record
    cluster.connect(config.cluster)
    return ray_analysis.analyse(config, data, model, uri, fingerprint, _show)


def linear_gaussian() -> tuple[Figure, Columns]:
    """Prop. C.1 and C.4 where they can be solved by hand: the closed form, and descent on our own objectives."""
    from amvl_core.methods.amvl.analysis.leakage import Problem, closed_form, optimised

    problem, sharp = Problem(), Problem(sigma=Problem().sigma / 2)
    closed = [closed_form(problem, gamma) for gamma in GAMMAS]
    found = [optimised(problem, gamma) for gamma in GAMMAS[::4]]
    sharper = [closed_form(sharp, gamma) for gamma in GAMMAS]
    kinds = {"closed form": closed, "optimised": found, "closed form, sharper posterior": sharper}
    rows = [{"kind": kind, **asdict(point)} for kind, points in kinds.items() for point in points]
    return figures.contamination_chart(closed, found, sharper), {key: [row[key] for row in rows] for key in rows[0]}


def contamination(
    records: Sequence[tuple[CheckpointRecord, FaithfulnessRecord, AnalysisRecord]],
) -> tuple[Figure, Columns]:
    """What can be measured of a real model's leakage at each gamma.

    mu^(x), the mean that knows x alone, is not known there; so: KL(q || p), I_q(Z; Y | X), and what the posterior's
    latents tell of the answer beyond the prior's. `NAME_low` and `NAME_high` are the 95 % interval of NAME over `n`
    questions; KL and I_q are means over `n of KL and I_q` without one.
    """
    rows: list[dict[str, float]] = []
    for model, faithful, analysed in sorted(records, key=lambda entry: gamma(entry[0])):
        by_name = {row.variant: row for row in faithful.rows}
        prior, oracle, swapped = (by_name[name] for name in (PRIOR, "posterior", "swapped"))
        rows.append(
            {
                "gamma": gamma(model),
                "seed": seed(model),
                "n": prior.n,
                "n of KL and I_q": analysed.n,
                "KL(q || p), nats": sum(analysed.kl_per_slot),
                "I_q(Z; Y | X) at least, nats": analysed.mutual_information,
                **_likelihood("log-likelihood with posterior - with prior latents, nats", oracle),
                **_likelihood("log-likelihood with swapped - with own latents, nats", swapped),
                **_accuracy("accuracy with prior latents", prior),
                **_accuracy("accuracy with posterior latents", oracle),
            }
        )
    columns: Columns = {key: [row[key] for row in rows] for key in rows[0]}
    about = ("seed", "n", "n of KL and I_q")
    seeds, counts, fewer = (", ".join(map(str, dict.fromkeys(columns[name]))) for name in about)
    title = f"n = {counts} (KL and I_q: {fewer}), 95 % intervals over questions, seed {seeds}"
    drawn = {name: values for name, values in columns.items() if name not in about}
    return figures.lines_chart("gamma", drawn, title), columns


def _likelihood(name: str, row: VariantScore) -> dict[str, float]:
    """The difference to the unchanged model, in nats, with its interval."""
    low, high = row.log_likelihood_difference_low, row.log_likelihood_difference_high
    return {name: row.log_likelihood_difference, f"{name}_low": low, f"{name}_high": high}


def _accuracy(name: str, row: VariantScore) -> dict[str, float]:
    return {name: row.accuracy, f"{name}_low": row.low, f"{name}_high": row.high}


def log(config: RunConfig, name: str, figure: Figure, columns: Columns, tags: dict[str, str]) -> str:
    """Figure, table and CSV in a run of their own; prints where."""
    import pandas as pd

    mlflow_client = client(config)
    tags = {**tags, "mlflow.runName": run_name(config, name) if tags else f"{name}, linear-Gaussian"}
    run = mlflow_client.create_run(experiment(config, mlflow_client), tags=tags)
    frame = pd.DataFrame(columns)
    mlflow_client.log_figure(run.info.run_id, figure, f"figures/{name}.png")
    mlflow_client.log_table(run.info.run_id, frame, f"tables/{name}.json")
    mlflow_client.log_text(run.info.run_id, frame.to_csv(index=False), f"tables/{name}.csv")
    mlflow_client.set_terminated(run.info.run_id)
    print(frame.head(40).to_string(index=False))
    print(f"run {run.info.run_id} of {tracking_uri(config)}: figures/{name}.png, tables/{name}.csv")
    return str(run.info.run_id)


def _show(progress: Progress) -> None:
    print(progress.line(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
