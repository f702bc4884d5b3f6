"""The ablation tables: prepare -> the stages that all rows share -> every row with every seed -> one table.

A row is evaluated as the pipeline's final model is: test split, published benchmarks, and for a latent one the
faithfulness suite (on the test split, without controls) and the analysis.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from amvl_core.contracts.ablations import Row, Table, difference, shared_stages, table_of, with_seed
from amvl_core.contracts.comparisons import AblationRecord, AblationRow, SeedScores
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.fingerprints import (
    ablation_fingerprint,
    analyse_fingerprint,
    evaluate_fingerprint,
    faithfulness_fingerprint,
    linear_probe_fingerprint,
    train_fingerprint,
)
from amvl_core.contracts.frozen import Seed
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import (
    SWAPPED,
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    FeaturesRecord,
    LinearProbeRecord,
    save_record,
)
from amvl_core.eval.analysis import analysis_of
from amvl_core.eval.pairing import outcomes, variant_items
from amvl_core.eval.seeds import base_scores, score_row, swap_row
from amvl_core.eval.significance import Unit
from flows import ablation_report, outbox, tasks
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
from flows.reporter import Reporter
from flows.stage import finished_or, place
from infra import cluster as ray_cluster
from infra.processes import Processes
from infra.tracking import Tracker


class AblationError(AmvlError):
    """Rows of a table failed; the message names them. The others are finished, and a second run takes them up."""


class Result(NamedTuple):
    """What one row gave with one seed."""

    checkpoint: CheckpointRecord
    evaluations: list[EvalRecord]
    """On the test split, and on each published benchmark of the run."""
    faithfulness: FaithfulnessRecord | None
    analysis: AnalysisRecord | None
    linear_probe: LinearProbeRecord | None = None


Plan = dict[str, dict[int, RunConfig]]
"""Label of a row -> seed -> its configuration."""
Found = dict[str, dict[int, Result | str]]
"""Label of a row -> seed -> what it gave, or why it failed."""
Free = SimpleQueue[Processes]
"""The processes that no row works with: a row leaves them to the next one."""


@flow(name="amvl", flow_run_name=flow_run_name)
def ablations(
    table: Annotated[str | int, Field(description="a table of the last stage's method: 3, 4 ... controls")],
    seeds: Annotated[int, Field(ge=1, description="trainings of each row, from `seed` on")] = 3,
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
    """Trains and evaluates each row that has no record yet, and shows the table: the paper's figures and ours."""
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
    chosen = table_of(config, table)
    plan = planned(config, chosen, seeds)
    try:
        with outbox.sending(), Tracker(config, f"table {table}") as tracker, Processes(config) as processes:
            tasks.preflight(config)
            dataset = tasks.prepare(config, tracker)
            benchmarks = tasks.read_benchmarks(config, tracker) if config.evaluation.benchmarks else []
            configs = {label: list(by_seed.values()) for label, by_seed in plan.items()}
            encoders = tasks.computed_once([config, *(one for row in configs.values() for one in row)])
            features = tasks.features(config, encoders, dataset, tracker) if encoders else []
            shared: dict[str, CheckpointRecord] = {}
            for stage in shared_stages(config):
                shared[stage] = tasks.train(config, stage, dataset, shared, tracker, processes, features)
            base = list(shared.values())[-1] if shared else None

            fingerprint = ablation_fingerprint(str(table), configs, dataset, base, benchmarks)
            where = place(config, "ablation", fingerprint)

            def make() -> AblationRecord:
                run_id = tracker.start()
                name, asked = base.stage if base else "base", [dataset, *benchmarks]
                before = tasks.evaluate(config, name, asked, base, tracker, processes)
                processes.close()  # the rows have their own
                found = run_rows(config, plan, dataset, asked, shared, tracker, features)
                record = AblationRecord(
                    **where._asdict(),
                    table=str(table),
                    headline=chosen.headline,
                    dataset=dataset.fingerprint,
                    rows=[
                        base_line(before, found, chosen),
                        *(line(config, row, found, chosen) for row in chosen.rows),
                    ],
                    run_id=run_id,
                )
                if not any(row.failed for row in record.rows):
                    save_record(record)
                return record

            record = finished_or(f"table {table}", where, AblationRecord, make)
            page = ablation_report.show(config, chosen, record, dataset, tracker)
            refuse_failures(record)
    finally:
        ray_cluster.disconnect()
    return {"record": record.model_dump(mode="json"), "mlflow_page": page, "flow_run_id": str(flow_run.id)}


def planned(config: RunConfig, table: Table, seeds: int) -> Plan:
    """Every configuration of the table, checked before anything is computed."""
    numbers = range(config.seed, config.seed + seeds)
    return {row.label: {seed: with_seed(row.change(config), seed) for seed in numbers} for row in table.rows}


def run_rows(
    config: RunConfig,
    plan: Plan,
    dataset: DatasetRecord,
    asked: list[DatasetRecord],
    shared: dict[str, CheckpointRecord],
    tracker: Tracker,
    features: list[FeaturesRecord],
    probed: bool = False,
) -> Found:
    """All rows with all seeds, as many at a time as the cluster takes; a row that fails does not stop the others.

    They are trained on `dataset` and evaluated on each of `asked`, the first of which has the suite, and where rows are
    `probed` linear probes.
    """
    ray_cluster.connect(config.cluster)
    jobs = ray_cluster.jobs_at_once(config.cluster)
    log = get_run_logger()
    report = Reporter(tracker, log, outbox.progress_page("rows"))
    parent = tracker.start()
    found: Found = {label: {} for label in plan}
    todo = [(label, seed, row) for label, by_seed in plan.items() for seed, row in by_seed.items()]
    log.info("%d trainings of %d rows, %d at a time", len(todo), len(plan), jobs)
    began = time.monotonic()
    with ExitStack() as stack:
        free: Free = SimpleQueue()
        for _ in range(jobs):
            free.put(stack.enter_context(Processes(config, jobs)))
        threads = stack.enter_context(Threads(jobs))
        started: dict[Future[Result], tuple[str, int]] = {}
        for label, seed, row in todo:
            # The flow's context, which its tasks need, is each thread's own copy.
            run = partial(run_row, row, f"{label}, seed {seed}", dataset, asked, shared, parent, free, features, probed)
            started[threads.submit(copy_context().run, run)] = (label, seed)
        for done, future in enumerate(as_completed(started), 1):
            label, seed = started[future]
            try:
                found[label][seed] = result = future.result()
                log.info("%s, seed %d: %.1f %%", label, seed, 100 * result.evaluations[0].overall.accuracy)
            except Exception as error:  # whatever it is, it is this row's: it stands in the table with its reason
                found[label][seed] = reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                log.warning("%s, seed %d failed: %s", label, seed, reason)
            left = (time.monotonic() - began) / done * (len(todo) - done)
            report(Progress("rows", done, len(todo), "trainings", left))
    return found


class Threads(ThreadPoolExecutor):
    """Threads that an interrupt does not wait for: the rows end when Ray is left."""

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.shutdown(wait=kind is None, cancel_futures=True)


_working: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""A lock for each result that rows may share: those that differ in tau only (Table 11) train and probe one model. Rows
whose changes come to the same share their answers too."""


@task(task_run_name="{label}", cache_policy=NO_CACHE)
def run_row(
    config: RunConfig,
    label: str,
    dataset: DatasetRecord,
    asked: list[DatasetRecord],
    shared: dict[str, CheckpointRecord],
    parent_run: str,
    free: Free,
    features: list[FeaturesRecord],
    probed: bool,
) -> Result:
    """One row with one seed: its own stages behind the shared ones, then its evaluation, in a nested run."""
    trained = dict(shared)
    with Tracker(config, label, parent=parent_run) as tracker, taken(free) as processes:
        tracker.start()
        for stage in config.stages:
            if stage not in trained:
                with _working[train_fingerprint(config, stage, dataset, *tasks.parents(config, stage, trained))]:
                    trained[stage] = tasks.train(config, stage, dataset, trained, tracker, processes, features)
        checkpoint = list(trained.values())[-1]
        with ExitStack() as alone:
            for name in sorted({evaluate_fingerprint(config, one, checkpoint) for one in asked}):
                alone.enter_context(_working[name])
            evaluations = tasks.evaluate(config, checkpoint.stage, asked, checkpoint, tracker, processes)
        faithfulness = analysis = probe = None
        if config.method.has_latents:
            if swapped := tasks.swappable(config, asked[:1]):
                with _working[faithfulness_fingerprint(config, asked[0], checkpoint, [])]:
                    (faithfulness,) = tasks.faithfulness(config, swapped, checkpoint, [], tracker, processes)
            if config.method.analysis() and config.evaluation.analysis_items:
                with _working[analyse_fingerprint(config, dataset, checkpoint)]:
                    analysis = tasks.analyse(config, dataset, checkpoint, tracker, processes)
            if probed:
                with _working[linear_probe_fingerprint(asked[0], checkpoint)]:
                    probe = tasks.linear_probe(config, asked[0], checkpoint, tracker, processes)
        return Result(checkpoint, evaluations, faithfulness, analysis, probe)


@contextmanager
def taken(free: Free) -> Iterator[Processes]:
    """Processes for one row."""
    processes = free.get()
    try:
        yield processes
    finally:
        free.put(processes)


def line(config: RunConfig, row: Row, found: Found, table: Table) -> AblationRow:
    """One row of the table from what its seeds gave."""
    failed = {seed: result for seed, result in sorted(found[row.label].items()) if isinstance(result, str)}
    results = finished(found, row.label)
    measured = [compared(result) for result in results.values() if result.analysis]
    suites = {seed: result.faithfulness for seed, result in results.items() if result.faithfulness}

    def scores(benchmark: str) -> SeedScores:
        headline = None if row.label == table.headline else answers_of(found, table.headline, benchmark)
        return score_row(answers_of(found, row.label, benchmark), headline)

    return AblationRow(
        label=row.label,
        changes=difference(config, row.change(config)),
        paper=dict(row.paper),
        checkpoints={seed: result.checkpoint.uri for seed, result in results.items()},
        failed=failed,
        benchmarks={source.name: scores(source.name) for source in config.evaluation.benchmarks},
        swaps={seed: next(r for r in suite.rows if r.variant == SWAPPED) for seed, suite in suites.items()},
        swap=swap_row({seed: variant_items(suite) for seed, suite in suites.items()}),
        measured={name: sum(one[name] for one in measured) / len(measured) for name in (measured or [{}])[0]},
        **scores(TEST_SPLIT).model_dump(),
    )


def base_line(before: list[EvalRecord], found: Found, table: Table) -> AblationRow:
    """The model that all rows start from, from its evaluations."""
    headline = table.headline
    own, *published = [base_scores(outcomes(one), answers_of(found, headline, one.benchmark)) for one in before]
    return AblationRow(
        label=f"before ({before[0].stage})",
        changes="before the stages that rows change",
        paper=dict(table.base),
        checkpoints={},
        failed={},
        benchmarks={one.benchmark: scores for one, scores in zip(before[1:], published, strict=True)},
        swaps={},
        swap=None,
        measured={},
        **own.model_dump(),
    )


def compared(result: Result) -> dict[str, float]:
    """What the method's analysis gives to compare."""
    assert result.analysis is not None
    return analysis_of(result.checkpoint).compare(result.analysis)


def finished(found: Found, label: str) -> dict[int, Result]:
    """What the seeds of a row gave that did not fail."""
    return {seed: result for seed, result in sorted(found[label].items()) if isinstance(result, Result)}


def answers_of(found: Found, label: str, benchmark: str) -> dict[int, list[Unit]]:
    """What each seed of a row that finished answered on one benchmark."""
    return {
        seed: outcomes(evaluation)
        for seed, result in finished(found, label).items()
        for evaluation in result.evaluations
        if evaluation.benchmark == benchmark
    }


def refuse_failures(record: AblationRecord) -> None:
    """Raises AblationError where a training failed: the run is not done, though its table stands."""
    failed = [f"{row.label}, seed {seed} ({reason})" for row in record.rows for seed, reason in row.failed.items()]
    if failed:
        raise AblationError(
            f"{len(failed)} trainings of table {record.table} failed: {'; '.join(failed)}. The table is shown without "
            "them; the others are finished, so a second run trains only these"
        )
