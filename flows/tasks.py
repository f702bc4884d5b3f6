"""The tasks of the pipeline: each looks for the stage's record and calls one function of the rooms below."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from amvl_core.contracts import ablations, fingerprints, storage
from amvl_core.contracts.config import BenchmarkSource, RunConfig
from amvl_core.contracts.encoders import BASE, EncoderConfig
from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    FeaturesRecord,
    LinearProbeRecord,
    ModelRecord,
    Place,
    SamplingRecord,
    remove_resume_state,
)
from data_prep import intake
from flows import checks, pages, report
from flows.outbox import create_table_artifact, progress_page
from flows.reporter import Reporter
from flows.stage import all_finished_or, finished_or, place, unchanged, working
from infra import cluster, registry
from infra.processes import Processes
from infra.reports.page import SAMPLING, sampling
from infra.tracking import Tracker


@task(cache_policy=NO_CACHE)
def preflight(config: RunConfig) -> None:
    """Refuses what cannot work before anything is computed."""
    checks.check_run(config)


@task(cache_policy=NO_CACHE)
def prepare(config: RunConfig, tracker: Tracker) -> DatasetRecord:
    """Sources -> shards."""
    from data_prep import pipeline

    where = place(config, "prepare", pipeline.fingerprint(config))

    def make() -> DatasetRecord:
        with working(config, tracker, "prepare") as on_progress:
            return unchanged("prepare", where, pipeline.prepare(config, where.uri, on_progress))

    record = finished_or("prepare", where, DatasetRecord, make)
    tracker.dataset(record)
    rows = report.drop_rows(record)
    create_table_artifact(rows, key="drop-reasons", description="What was read, kept and dropped, and why")
    tracker.text("tables/drop_reasons.md", report.markdown_table(rows))
    for name in ("report.html", "report.json"):
        tracker.text(f"data/{name}", storage.read_bytes(storage.join(record.uri, name)).decode())
    log = get_run_logger()
    for line in intake.lines(record):
        log.info("%s", line)
    for line in (*intake.warnings(record.reports), *intake.cut_targets(config, record)):
        log.warning("%s", line)
    record.check_test_split()  # now, not after all training
    intake.check_trainable(config, record)
    if not config.data.accept_losses:
        intake.check(record)
    return record


@task(cache_policy=NO_CACHE)
def read_benchmarks(config: RunConfig, tracker: Tracker) -> list[DatasetRecord]:
    """The questions of each published benchmark, as a dataset with a test split alone."""
    from data_prep import published

    def read(source: BenchmarkSource) -> DatasetRecord:
        name, where = f"read {source.name}", place(config, published.STAGE, published.fingerprint(config, source))

        def make() -> DatasetRecord:
            tracker.start()
            log = get_run_logger()
            on_progress = Reporter(tracker, log, progress_page(f"read-{source.name}"))
            return unchanged(name, where, published.read(config, source, where.uri, on_progress))

        return finished_or(name, where, DatasetRecord, make)

    return [read(source) for source in config.evaluation.benchmarks]


def computed_once(configs: Iterable[RunConfig]) -> list[EncoderConfig]:
    """The encoders whose features are computed before training: all but the base model's own, which is trained with."""
    found = (encoder for config in configs if config.data.features for encoder in config.encoders)
    return list(dict.fromkeys(encoder for encoder in found if encoder.source != BASE))


@task(cache_policy=NO_CACHE)
def features(
    config: RunConfig, encoders: Sequence[EncoderConfig], dataset: DatasetRecord, tracker: Tracker
) -> list[FeaturesRecord]:
    """Features of all training images by each of the frozen encoders."""
    from data_prep import features as shards

    def one(encoder: EncoderConfig) -> FeaturesRecord:
        name, where = f"features {encoder.name}", place(config, shards.STAGE, shards.fingerprint(dataset, encoder))

        def make() -> FeaturesRecord:
            with working(config, tracker, f"features-{encoder.name}") as on_progress:
                workers = cluster.resources(config.cluster)
                on = workers.num_workers, workers.device
                return unchanged(name, where, shards.compute(dataset, encoder, where.uri, *on, on_progress))

        record = finished_or(name, where, FeaturesRecord, make)
        return record.model_copy(update={"encoder": encoder})  # another run may have called it otherwise

    return [one(encoder) for encoder in encoders]


@task(task_run_name="train-{stage}", cache_policy=NO_CACHE)
def train(
    config: RunConfig,
    stage: str,
    dataset: DatasetRecord,
    trained: Mapping[str, CheckpointRecord],
    tracker: Tracker,
    processes: Processes,
    features: Sequence[FeaturesRecord] = (),
) -> CheckpointRecord:
    """One training stage; `trained` are the stages before it.

    It is given those of `features` that its method aligns with.
    """
    parent, teacher = parents(config, stage, trained)
    where = place(config, "train", fingerprints.train_fingerprint(config, stage, dataset, parent, teacher))

    def make() -> CheckpointRecord:
        with working(config, tracker, f"train-{stage}") as on_progress:
            tracker.plan(dataset.rows("train"))
            needed = [one for one in features if one.encoder in config.stages[stage].method.aligned_with]
            return processes.trainers().train(config, stage, dataset, parent, *where, on_progress, needed, teacher)

    def found(record: CheckpointRecord) -> None:
        remove_resume_state(record.uri)
        tracker.reused(stage, record)

    record = finished_or(f"train {stage}", where, CheckpointRecord, make, found)
    tracker.checkpoint(stage, record)
    return record


def parents(
    config: RunConfig, stage: str, trained: Mapping[str, CheckpointRecord]
) -> tuple[CheckpointRecord | None, CheckpointRecord | None]:
    """What a stage starts from and its frozen teacher, of the stages that are `trained`; None where it has none."""
    start, teacher = config.parents(stage)
    return trained[start] if start else None, trained[teacher] if teacher else None


def train_controls(
    config: RunConfig,
    dataset: DatasetRecord,
    trained: Mapping[str, CheckpointRecord],
    tracker: Tracker,
    processes: Processes,
) -> list[tuple[str, CheckpointRecord]]:
    """The models without latents that a latent one is held against, trained from where its latent stages start."""
    found = []
    for label, control in ablations.controls(config).items():
        done = {stage: trained[stage] for stage in ablations.shared_stages(config)}
        for stage in control.stages:
            if stage not in done:
                done[stage] = train(control, stage, dataset, done, tracker, processes)
        found.append((label, done[list(control.stages)[-1]]))
    return found


@task(task_run_name="evaluate-{name}", cache_policy=NO_CACHE)
def evaluate(
    config: RunConfig,
    name: str,
    asked: list[DatasetRecord],
    model: CheckpointRecord | None,
    tracker: Tracker,
    processes: Processes,
) -> list[EvalRecord]:
    """Scores of one model (None: the untrained base) on each of `asked`, in one loading of it.

    They are a prepared dataset, of which the test split is asked, and questions of published benchmarks.
    """
    places = {
        place(config, "evaluate", fingerprints.evaluate_fingerprint(config, dataset, model)): dataset
        for dataset in asked
    }

    def make(missing: list[Place]) -> Iterator[EvalRecord]:
        with working(config, tracker, f"evaluate-{name}", cluster.evaluators) as on_progress:
            from infra import ray_eval

            todo = [(places[where], where) for where in missing]
            yield from ray_eval.evaluate(processes.evaluators(), config, todo, model, on_progress)

    def about(record: EvalRecord) -> str:
        on = "" if record.benchmark == TEST_SPLIT else f" on {record.benchmark}"
        return f"evaluate {name}{on}: reused {record.fingerprint}"

    records = all_finished_or(f"evaluate {name}", list(places), EvalRecord, make, about=about)
    for record in records:
        tracker.evaluation(record)
    return [record.model_copy(update={"stage": name}) for record in records]  # another run may have called it otherwise


def swappable(config: RunConfig, asked: Sequence[DatasetRecord]) -> list[DatasetRecord]:
    """Those with questions enough to swap latents between; a warning names the others."""
    if not config.evaluation.faithfulness_items:
        return []
    enough = [questions for questions in asked if questions.rows("test") > 1]
    for questions in asked:
        if questions not in enough:
            said = "faithfulness: left out for %s: a swap needs at least 2 questions, it has %d"
            get_run_logger().warning(said, questions.uri, questions.rows("test"))
    return enough


@task(task_run_name="faithfulness-{model.stage}", cache_policy=NO_CACHE)
def faithfulness(
    config: RunConfig,
    asked: list[DatasetRecord],
    model: CheckpointRecord,
    controls: list[tuple[str, CheckpointRecord]],
    tracker: Tracker,
    processes: Processes,
) -> list[FaithfulnessRecord]:
    """A latent model with its latents changed, and models without latents, on the same questions.

    `asked` are a prepared dataset, of which the test split is asked, and questions of published benchmarks.
    """
    places = {
        place(config, "faithfulness", fingerprints.faithfulness_fingerprint(config, one, model, controls)): one
        for one in asked
    }

    def make(missing: list[Place]) -> Iterator[FaithfulnessRecord]:
        with working(config, tracker, f"faithfulness-{model.stage}", cluster.evaluators) as on_progress:
            from infra import ray_eval

            todo = [(places[where], where) for where in missing]
            yield from ray_eval.faithfulness(processes.evaluators(), config, todo, model, controls, on_progress)

    def about(record: FaithfulnessRecord) -> str:
        return f"faithfulness {model.stage} on {record.benchmark}: reused {record.fingerprint}"

    records = all_finished_or(f"faithfulness {model.stage}", list(places), FaithfulnessRecord, make, about=about)
    for record in records:
        pages.show_faithfulness(record, tracker)
    return records


@task(task_run_name="linear-probe-{model.stage}", cache_policy=NO_CACHE)
def linear_probe(
    config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, tracker: Tracker, processes: Processes
) -> LinearProbeRecord:
    """What linear probes read of the written steps from a latent model's slots, on all test questions."""
    where = place(config, "linear_probe", fingerprints.linear_probe_fingerprint(dataset, model))

    def make() -> LinearProbeRecord:
        with working(config, tracker, f"linear-probe-{model.stage}", cluster.evaluators) as on_progress:
            from infra import ray_eval

            return ray_eval.linear_probe(processes.evaluators(), config, dataset, model, where, on_progress)

    record = finished_or(f"linear probe {model.stage}", where, LinearProbeRecord, make)
    if record.left_out:
        said = "linear probe: step %s left out: one text alone, too many different ones, or too few questions"
        get_run_logger().warning(said, ", ".join(map(str, record.left_out)))
    return record


@task(task_run_name="sample-{model.stage}", cache_policy=NO_CACHE)
def sample(
    config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, tracker: Tracker, processes: Processes
) -> SamplingRecord:
    """Drawn latents against drawn tokens, at equal numbers of answers, on questions of the test split."""
    where = place(config, "sampling", fingerprints.sampling_fingerprint(config, dataset, model))

    def make() -> SamplingRecord:
        with working(config, tracker, f"sample-{model.stage}", cluster.evaluators) as on_progress:
            from infra import ray_eval

            return ray_eval.sample(processes.evaluators(), config, dataset, model, where, on_progress)

    record = finished_or(f"sample {model.stage}", where, SamplingRecord, make)
    rows = sampling(record)
    create_table_artifact(rows, key="sampling", description=SAMPLING)
    if tracker.run_id is not None:
        from infra.reports import figures

        pages.log_rows(tracker, "sampling", rows, SAMPLING)
        tracker.figure("figures/sampling.png", figures.sampling_chart(record))
    return record


@task(task_run_name="analyse-{model.stage}", cache_policy=NO_CACHE)
def analyse(
    config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, tracker: Tracker, processes: Processes
) -> AnalysisRecord | None:
    """What the method of a latent model measures of its latents on test samples.

    Of one sample there is nothing to compare: then a warning, and None.
    """
    if (items := min(config.evaluation.analysis_items, dataset.rows("test"))) < 2:
        said = "analyse: left out: %d test sample, at least 2 are compared (evaluation.analysis_items is %d)"
        get_run_logger().warning(said, items, config.evaluation.analysis_items)
        return None
    where = place(config, "analyse", fingerprints.analyse_fingerprint(config, dataset, model))

    def make() -> AnalysisRecord:
        with working(config, tracker, f"analyse-{model.stage}", cluster.evaluators) as on_progress:
            from infra import ray_eval

            return ray_eval.analyse(processes.evaluators(), config, dataset, model, where, on_progress)

    record = finished_or(f"analyse {model.stage}", where, AnalysisRecord, make)
    if tracker.run_id is not None:
        from amvl_core.eval.analysis import analysis_of, read_tables

        analysis, tables = analysis_of(model), read_tables(record)
        tracker.analysis(analysis.metrics(record))
        for name, figure in analysis.draw(record, tables).items():
            tracker.table(name, analysis.data(record, tables, name))
            tracker.figure(f"figures/{name}.png", figure)
    return record


@task(cache_policy=NO_CACHE)
def register(
    config: RunConfig,
    dataset: DatasetRecord,
    checkpoint: CheckpointRecord,
    evaluations: list[EvalRecord],
    rows: list[dict[str, str]],
    tracker: Tracker,
    processes: Processes,
) -> ModelRecord:
    """The checkpoint as a version of the registered model, which `rows` of its scores describe."""
    where = place(config, "register", registry.fingerprint(config, checkpoint, evaluations))

    def make() -> ModelRecord:
        run_id = tracker.start()
        tracker.flush()
        decision = _gate(config, dataset, evaluations[-1], run_id, processes)
        scores = report.note(rows, registry.MAX_TABLE)
        record = registry.register(config, run_id, dataset, checkpoint, evaluations, decision, where.uri, scores)
        get_run_logger().info(
            "register: models:/%s/%d, alias %s: %s", record.name, record.version, record.alias, record.reason
        )
        for said in registry.unservable(dataset):
            get_run_logger().warning("%s", said)
        return record

    def about(record: ModelRecord) -> str:
        return f"register: reused models:/{record.name}/{record.version}"

    return finished_or(
        "register", where, ModelRecord, make, valid=partial(registry.is_current, config, evaluations[-1]), about=about
    )


def _gate(
    config: RunConfig, dataset: DatasetRecord, new: EvalRecord, run_id: str, processes: Processes
) -> registry.Decision:
    """The alias of a new version; the champion and the best version so far are asked its items first, if need be.

    Neither is asked where it is of other data, nor is a best version that is the new one, which is decided again.
    """
    present, best = registry.champion(config), registry.best(config)
    sources = registry.sources(config, dataset)
    if present and (left := registry.unasked(present, sources)):
        return registry.of_other_data(config, present, best, left)
    itself = best and best.checkpoint and best.checkpoint.fingerprint == new.checkpoint
    if best and (itself or registry.unasked(best, sources)):
        best = None
    scored: dict[int, EvalRecord] = {}
    trouble = ""
    held = present.version if present else 0
    asked = {version.version: version.checkpoint for version in (present, best) if version and version.checkpoint}
    for number, checkpoint in asked.items():
        label = f"{'champion' if number == held else 'best'}-{number}"
        try:
            # A tracking run of its own below the pipeline's: the metrics of two models must not mix.
            with Tracker(config, label, parent=run_id) as tracker:
                (scored[number],) = evaluate(config, label, [dataset], checkpoint, tracker, processes)
        except AmvlError as error:
            if number == held:
                trouble = f"it cannot be evaluated on these items ({error})"
            else:
                get_run_logger().warning("register: not compared with version %d, the best: %s", number, error)
    decision = registry.decide(config, new, present, scored.get(held), trouble, scored)
    if best and best.version in asked.keys() - scored.keys():  # it is there and was not compared, so it stays the best
        return decision._replace(best=best.version)
    return decision
