"""The pipeline on one page: prepare -> (features) -> train -> evaluate -> register."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.frozen import Seed
from amvl_core.contracts.records import CheckpointRecord
from flows import outbox, pages, tasks
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
    flow_run_name,
    resolve,
)
from flows.report import labels
from infra import cluster as ray_cluster
from infra.processes import Processes
from infra.reports.run_result import RunResult
from infra.tracking import Tracker


@flow(name="amvl", flow_run_name=flow_run_name)
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
        with outbox.sending(), Tracker(config) as tracker, Processes(config) as processes:
            tasks.preflight(config)
            dataset = tasks.prepare(config, tracker)
            benchmarks = tasks.read_benchmarks(config, tracker) if config.evaluation.benchmarks else []
            encoders = tasks.computed_once([config])
            features = tasks.features(config, encoders, dataset, tracker) if encoders else []

            trained: dict[str, CheckpointRecord] = {}
            for stage in config.stages:
                trained[stage] = tasks.train(config, stage, dataset, trained, tracker, processes, features)
            final, plain = trained[stage], compared_with(config)
            base = trained[plain] if plain else None

            asked = [dataset, *benchmarks]
            before, *before_on = tasks.evaluate(config, plain or "base", asked, base, tracker, processes)
            after, *after_on = tasks.evaluate(config, stage, asked, final, tracker, processes)
            rows = pages.show_scores(config, before, after, tracker)
            tables = pages.show_benchmarks(benchmarks, before_on, after_on, tracker) if benchmarks else {}

            registered = tasks.register(config, dataset, final, [before, after], rows, tracker, processes)
            page = pages.show_summary(config, dataset, final, rows, registered)

            suites, analysis = [], None
            if config.method.has_latents:  # what has latents must show that they matter
                if enough := tasks.swappable(config, asked):
                    controls = tasks.train_controls(config, dataset, trained, tracker, processes)
                    controls += [(f"without latents ({plain})", base)] if base else []
                    suites = tasks.faithfulness(config, enough, final, controls, tracker, processes)
                if config.method.analysis() and config.evaluation.analysis_items:
                    analysis = tasks.analyse(config, dataset, final, tracker, processes)

            sampling = None
            if config.evaluation.sampled_items:
                sampling = tasks.sample(config, dataset, final, tracker, processes)

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
                sampling=sampling,
            )
            report = pages.show_report(run, tracker)
    finally:
        ray_cluster.disconnect()
    return pages.outcome(run, page, report, str(flow_run.id))


def compared_with(config: RunConfig) -> str | None:
    """The stage whose model the final one is compared with: the last one without latents before it.

    None: it is compared with the untrained base. A checkpoint may be of another run, which called its stage otherwise.
    """
    *earlier, _ = config.stages.items()
    return next((name for name, stage in reversed(earlier) if not stage.method.has_latents), None)
