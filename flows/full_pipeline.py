"""The pipeline on one page: prepare -> (features) -> train -> evaluate -> register."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from amvl_core.contracts.config import Seed
from amvl_core.contracts.records import CheckpointRecord
from flows import outbox, tasks
from flows.parameters import (
    Cluster,
    Data,
    Evaluation,
    Heldout,
    Latent,
    Model,
    Preset,
    Stage,
    Tracking,
    Trainer,
    resolve,
)
from flows.report import labels
from infra import cluster as ray_cluster
from infra.reports.run_result import RunResult
from infra.tracking import Tracker


@flow(name="amvl")
def full_pipeline(
    preset: Preset = "paper",
    storage: str | None = None,
    seed: Seed | None = None,
    data: Data | None = None,
    model: Model | None = None,
    latent: Latent | None = None,
    stages: dict[str, Stage] | None = None,
    heldout: Heldout | None = None,
    trainer: Trainer | None = None,
    cluster: Cluster | None = None,
    evaluation: Evaluation | None = None,
    tracking: Tracking | None = None,
) -> dict[str, Any]:
    """Runs every stage that has no finished record yet, in order, and returns scores, model and pages.

    `preset` is a whole configuration; every other parameter lies over it field by field.
    """
    config = resolve(
        preset,
        storage=storage,
        seed=seed,
        data=data,
        model=model,
        latent=latent,
        stages=stages,
        heldout=heldout,
        trainer=trainer,
        cluster=cluster,
        evaluation=evaluation,
        tracking=tracking,
    )
    try:
        with outbox.sending(), Tracker(config) as tracker:
            tasks.preflight(config)
            dataset = tasks.prepare(config, tracker)
            benchmarks = tasks.read_benchmarks(config, tracker) if config.evaluation.benchmarks else []
            encoders = tasks.computed_once([config])
            features = tasks.features(config, encoders, dataset, tracker) if encoders else []

            checkpoints: list[CheckpointRecord] = []
            for stage in config.stages:
                parent = checkpoints[-1] if checkpoints else None
                checkpoints.append(tasks.train(config, stage, dataset, parent, tracker, features=features))
            final = checkpoints[-1]
            # What the final model is compared with: the last one without latents before it, else the untrained base.
            plain = [name for name, stage in config.stages.items() if not stage.method.has_latents]
            base = next((c for c in reversed(checkpoints[:-1]) if c.stage in plain), None)

            name = base.stage if base else "base"
            before, *before_on = tasks.evaluate(config, name, [dataset, *benchmarks], base, tracker)
            after, *after_on = tasks.evaluate(config, final.stage, [dataset, *benchmarks], final, tracker)
            rows = tasks.show_scores(config, before, after, tracker)
            tables = tasks.show_benchmarks(benchmarks, before_on, after_on, tracker) if benchmarks else {}

            registered = tasks.register(config, dataset, final, [before, after], tracker)
            page = tasks.show_summary(config, dataset, final, rows, registered)

            suites, analysis = [], None
            if config.method.has_latents:  # what has latents must show that they matter
                if asked := tasks.swappable(config, [dataset, *benchmarks]):
                    controls = tasks.train_controls(config, dataset, checkpoints, tracker)
                    controls += [(f"without latents ({base.stage})", base)] if base else []
                    suites = tasks.faithfulness(config, asked, final, controls, tracker)
                if config.method.analysis() and config.evaluation.analysis_items:
                    analysis = tasks.analyse(config, dataset, final, tracker)

            first, second = labels(before, after)
            run = RunResult(
                config=config,
                dataset=dataset,
                checkpoint=final,
                before=before,
                after=after,
                labels=(first, second),
                scores=rows,
                model=registered,
                tables=tables,
                published=[*before_on, *after_on],
                suites=suites,
                analysis=analysis,
            )
            report = tasks.show_report(run, tracker)
    finally:
        ray_cluster.disconnect()
    return tasks.outcome(run, page, report, str(flow_run.id))
