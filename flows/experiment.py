"""An experiment over several methods: prepare -> what all arms share -> learning rates -> every arm with every seed.

Every training is a stage of its own: a run that is ended goes on where it was.
"""

from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from amvl_core.contracts.ablations import with_seed
from amvl_core.contracts.comparisons import ArmRecord, ExperimentRecord
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import NonFiniteError
from amvl_core.contracts.fingerprints import experiment_fingerprint
from amvl_core.contracts.frozen import Seed
from amvl_core.contracts.records import (
    TEST_SPLIT,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FeaturesRecord,
    save_record,
)
from amvl_core.eval.experiment import matters, trained_arm
from amvl_core.eval.seeds import score_row
from amvl_core.experiments import EXPERIMENTS
from amvl_core.experiments import experiment as named
from amvl_core.experiments.experiment import Arm, Experiment, at_rate
from amvl_core.train.flops import training_flops
from data_prep import intake
from flows import experiment_report, outbox, tasks
from flows.ablations import AblationError, Found, Plan, Result, answers_of, finished, run_rows
from flows.parameters import Cluster, Tracking, laid_over
from flows.stage import finished_or, place
from infra import cluster as ray_cluster
from infra.processes import Processes
from infra.tracking import Tracker

CHOOSING_SEED = 1000
"""Added to the run's seed where learning rates are chosen, so that more trainings of each arm choose nothing anew."""

Rates = dict[str, dict[str, float]]
"""Label of an arm -> learning rate -> its accuracy on the validation questions."""


@flow(name="amvl", flow_run_name="experiment {name}")
def experiment(
    name: Annotated[str, Field(description=", ".join(EXPERIMENTS))],
    seeds: Annotated[int | None, Field(ge=1, description="trainings of each arm; left out: the experiment's")] = None,
    storage: str | None = None,
    seed: Seed | None = None,
    cluster: Cluster | None = None,
    tracking: Tracking | None = None,
) -> dict[str, Any]:
    """Trains and evaluates each arm that has no record yet; draws accuracy against the number of dependent steps."""
    chosen = named(name)
    config = laid_over(chosen.shared, storage=storage, seed=seed, cluster=cluster, tracking=tracking)
    arms = {arm.label: arm.of(config) for arm in chosen.arms}  # what is wrong with one is said now
    number = seeds or chosen.seeds
    try:
        with outbox.sending(), Tracker(config, f"experiment {name}") as tracker, Processes(config) as processes:
            tasks.preflight(config)
            dataset = tasks.prepare(config, tracker)
            for arm in arms.values():
                intake.check_trainable(arm, dataset)
            encoders = tasks.computed_once([config, *arms.values()])
            features = tasks.features(config, encoders, dataset, tracker) if encoders else []
            shared: dict[str, CheckpointRecord] = {}
            for stage in config.stages:
                shared[stage] = tasks.train(config, stage, dataset, shared, tracker, processes, features)
            base = shared[stage]
            if chosen.learned:
                refuse_unlearned(chosen, *tasks.evaluate(config, stage, [dataset], base, tracker, processes))
            processes.close()  # the arms have their own

            rates, validation = chosen_rates(chosen, config, dataset, shared, tracker, features)
            plan = planned(chosen, config, arms, rates, number)
            configs = {label: list(by_seed.values()) for label, by_seed in plan.items()}
            judged = {arm.label: (arm.role, arm.writes) for arm in chosen.arms}
            where = place(
                config, "experiment", experiment_fingerprint(name, judged, configs, dataset, base, validation)
            )

            def make() -> ExperimentRecord:
                run_id = tracker.start()
                found = run_rows(config, plan, dataset, [dataset], shared, tracker, features, probed=True)
                record = ExperimentRecord(
                    **where._asdict(),
                    name=name,
                    dataset=dataset.fingerprint,
                    chance=chance(found),
                    arms=[line(arm, chosen, plan, rates, found, dataset, base) for arm in chosen.arms],
                    run_id=run_id,
                )
                if not any(arm.failed for arm in record.arms):
                    save_record(record)
                return record

            record = finished_or(f"experiment {name}", where, ExperimentRecord, make)
            page = experiment_report.show(config, chosen, record, tracker)
            refuse_failures(record)
    finally:
        ray_cluster.disconnect()
    return {"record": record.model_dump(mode="json"), "mlflow_page": page, "flow_run_id": str(flow_run.id)}


def refuse_unlearned(chosen: Experiment, before: EvalRecord) -> None:
    """Raises AblationError where the checkpoint that all arms start from has not learned what they begin with."""
    if missed := [score for score in before.scores if score.accuracy < chosen.learned]:
        raise AblationError(
            f"no arm was trained: the checkpoint that all arms start from (stage {before.stage}) answers "
            f"{', '.join(f'{100 * score.accuracy:.1f} % of {score.task}' for score in missed)}, and the experiment "
            f"asks {100 * chosen.learned:.0f} % of each task. Another seed may learn it (--param seed=1), or more "
            "steps of this stage"
        )


def chosen_rates(
    chosen: Experiment,
    config: RunConfig,
    dataset: DatasetRecord,
    shared: dict[str, CheckpointRecord],
    tracker: Tracker,
    features: list[FeaturesRecord],
) -> tuple[Rates, str | None]:
    """What each arm scores on the validation questions at each learning rate, trained once with a seed of its own.

    With one rate there is nothing to choose, and no score. The second value names the validation questions. A rate at
    which the gradient was not finite has no score. AblationError where a training failed otherwise: it may do better.
    """
    if len(chosen.rates) == 1:
        return {arm.label: {} for arm in chosen.arms}, None
    with Tracker(config, "validation questions", parent=tracker.start()) as own:  # the run's data are the other ones
        own.start()
        validation = tasks.prepare(chosen.validated_on(config), own)
    plan: Plan = {}
    seed = config.seed + CHOOSING_SEED
    for arm in chosen.tried:
        for rate in chosen.rates:
            tried = chosen.validated_on(at_rate(arm.of(config), config.stages, rate))
            plan[f"{arm.label}, lr {rate:g}"] = {seed: with_seed(tried, seed)}
    found = run_rows(config, plan, dataset, [validation], shared, tracker, features)
    diverged = f"{NonFiniteError.__name__}: "
    told = [(label, one) for label, by_seed in found.items() for one in by_seed.values() if isinstance(one, str)]
    if failed := [f"{label} ({reason})" for label, reason in told if not reason.startswith(diverged)]:
        raise AblationError(
            f"{len(failed)} trainings that choose a learning rate failed: {'; '.join(failed)}. The others are "
            "finished, so a second run trains only these"
        )
    rates: Rates = {}
    for label in (arm.label for arm in chosen.arms):
        tried_rates = {f"{rate:g}": finished(found, f"{label}, lr {rate:g}") for rate in chosen.rates}
        scored = {rate: one.popitem()[1].evaluations[0].overall.accuracy for rate, one in tried_rates.items() if one}
        rates[label] = scored
        get_run_logger().info("%s: learning rate %g", label, best(chosen, scored))
    return rates, validation.fingerprint


def best(chosen: Experiment, scored: dict[str, float]) -> float:
    """The rate that scores best, of equal ones the smallest; the first one where none has a score."""
    return float(min(scored, key=lambda rate: (-scored[rate], float(rate)), default=chosen.rates[0]))


def planned(chosen: Experiment, config: RunConfig, arms: dict[str, RunConfig], rates: Rates, seeds: int) -> Plan:
    """Every arm with every seed, at its learning rate."""
    numbers = range(config.seed, config.seed + seeds)
    at = {label: at_rate(arm, config.stages, best(chosen, rates[label])) for label, arm in arms.items()}
    return {label: {seed: with_seed(arm, seed) for seed in numbers} for label, arm in at.items()}


def chance(found: Found) -> dict[str, float]:
    """What the commonest answer scores, by task. Raises AblationError where every training failed."""
    told = {f"{label}, seed {seed}": one for label, by_seed in found.items() for seed, one in by_seed.items()}
    results = [one for one in told.values() if isinstance(one, Result)]
    if not results:
        raise AblationError(f"every training failed: {'; '.join(f'{name} ({why})' for name, why in told.items())}")
    return {score.task: score.majority for score in results[0].evaluations[0].scores}


def line(
    arm: Arm,
    chosen: Experiment,
    plan: Plan,
    rates: Rates,
    found: Found,
    dataset: DatasetRecord,
    base: CheckpointRecord,
) -> ArmRecord:
    """One arm from what its seeds gave."""
    results = finished(found, arm.label)
    own = answers_of(found, arm.label, TEST_SPLIT)
    controls = [
        control.label
        for control in chosen.arms
        if control.role == "control" and control.writes == arm.writes and arm.role == "latent"
    ]
    against = {control: score_row(own, answers_of(found, control, TEST_SPLIT)) for control in controls}
    whole = not any(isinstance(one, str) for label in (arm.label, *controls) for one in found[label].values())
    trained = {
        seed: trained_arm(one.checkpoint, one.evaluations[0], one.faithfulness, one.linear_probe)
        for seed, one in results.items()
    }
    config = next(iter(plan[arm.label].values()))
    failed = {seed: result for seed, result in sorted(found[arm.label].items()) if isinstance(result, str)}
    own_stages = [name for name in config.stages if name not in chosen.shared.stages]
    flops = training_flops(config, own_stages, dataset, base)
    get_run_logger().info("%s: %.2g FLOPs", arm.label, flops)  # seconds for each arm
    return ArmRecord(
        label=arm.label,
        role=arm.role,
        writes=arm.writes,
        rate=best(chosen, rates[arm.label]),
        validated=rates[arm.label],
        flops=flops,
        trained=trained,
        failed=failed,
        scores=score_row(own, None),
        against=against,
        matters=matters(trained, against, whole=whole) if arm.role == "latent" else None,
    )


def refuse_failures(record: ExperimentRecord) -> None:
    """Raises AblationError where a training failed: the run is not done, though its chart stands."""
    failed = [f"{arm.label}, seed {seed} ({reason})" for arm in record.arms for seed, reason in arm.failed.items()]
    if failed:
        raise AblationError(
            f"{len(failed)} trainings of experiment {record.name} failed: {'; '.join(failed)}. The chart is drawn "
            "without them; the others are finished, so a second run trains only these"
        )
