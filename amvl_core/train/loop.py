"""Training of one stage on one rank. It knows batches, an engine and named terms. It knows no method and no Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from amvl_core.backbones.loading import model_folder, set_pixel_budget
from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts import storage
from amvl_core.contracts.config import MIN_HELDOUT, RunConfig
from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.progress import HISTORY, Advice, Progress, ProgressFn, history_to_json
from amvl_core.contracts.records import (
    CHECKPOINTS,
    CheckpointRecord,
    DatasetRecord,
    FeaturesRecord,
    load_record,
    remove_resume_state,
    save_record,
)
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import Batch
from amvl_core.data.encode import Encoded, Encoder, laid_out_to_train
from amvl_core.data.features import FeatureReader
from amvl_core.data.heldout import interval, repeats
from amvl_core.data.loader import HELDOUT, StepDataset, read_ahead
from amvl_core.data.order import Sizes, num_steps, rows_of_share
from amvl_core.data.reader import ShardReader
from amvl_core.data.stored_features import StoredFeatures
from amvl_core.methods.method import Clock, Method
from amvl_core.train.checkpoint import Checkpoints, Due
from amvl_core.train.engine import DTYPES, Engine
from amvl_core.train.everywhere import from_all, from_first
from amvl_core.train.export import save_model
from amvl_core.train.schedules import cosine_with_warmup
from amvl_core.train.steplog import Pace, StepLog
from amvl_core.train.watch import Skips, watches


class TrainJob(Frozen):
    """All that a worker needs to know. It crosses process borders as JSON.

    `start_from` is the folder or Hub id of the weights, `parent` the fingerprint of the checkpoint they belong to.
    `teacher` is the folder of the frozen teacher (`RunConfig.parents`), where the stage has one.
    `features` are those of the encoders that the method aligns with, where they were computed before.
    """

    config: RunConfig
    stage: str
    dataset: DatasetRecord
    start_from: str
    parent: str | None
    uri: str
    fingerprint: str
    teacher: str | None = None
    features: tuple[FeaturesRecord, ...] = ()


def train_stage(job: TrainJob, on_progress: ProgressFn, interrupted: Callable[[], bool]) -> bool:
    """Runs a stage from its last complete checkpoint to its end and writes its record. Returns whether it got there.

    torch.distributed is up, and every rank calls this. Rank 0 calls `on_progress` for each logged step and each
    warning. The logged steps of the checkpoint that it goes on from come first. Once `interrupted` is true on any rank,
    all ranks write a checkpoint at the end of the step and return False. If the storage fails, they try again after the
    next step. Where another run has finished the stage meanwhile, they end with that and touch nothing of its model.
    """
    config, stage = job.config, job.config.stages[job.stage]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if from_first(lambda: _finished(job.uri)):  # started again after its last step
        return True
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    reader, features = ShardReader(job.dataset, "train"), computed_features(job)
    method, processor = build_method(job, features)
    engine = Engine(method, stage, config.trainer, world_size)
    sizes = _sizes(reader, stage.method, config, rank, world_size)
    rows = rows_of_share(sizes.trained, stage.data_share)
    total = num_steps(stage.epochs, stage.steps, rows, stage.global_batch)
    every = interval(config.heldout.every, len(sizes.heldout), stage.global_batch) if len(sizes.heldout) else total + 1
    dataset = StepDataset(reader, sizes, encoding(job, processor, features), stage, config.seed, rank, world_size)
    done = 0

    def warn(text: str) -> None:
        on_progress(Progress(job.stage, done, total, "steps", warnings=(Advice("checkpoint", text),)))

    checkpoints = Checkpoints(storage.join(job.uri, CHECKPOINTS), config.trainer.keep_last, warn)
    start, history = checkpoints.resume(engine)
    columns = stage.method.columns
    for event in history:
        on_progress(replace(event, columns=columns))

    def send(event: Progress) -> None:
        if event.metrics:
            history.append(replace(event, columns={}, warnings=()))
        on_progress(event)

    log = StepLog(job.stage, total, start, send if rank == 0 else _silent, watches(stage, config.latent), columns)
    if config.heldout.samples and not len(sizes.heldout):
        log.warn(start, [Advice("heldout", _too_few(len(reader)))])
    skips = Skips(config.trainer.on_nonfinite)
    evaluated = {*range(every, total, every), total} if len(sizes.heldout) else set()
    items = [item for step in range(start, total) for item in ((step, HELDOUT) if step + 1 in evaluated else (step,))]
    batches = read_ahead(dataset, items, config.trainer.loader_workers)
    metrics: dict[str, float] = {}
    due = Due(config.trainer.checkpoint_every, start)
    for step in range(start, total):
        log.waiting()
        micro = next(batches)
        log.working()
        lr = stage.lr * cosine_with_warmup(step, total, stage.warmup_ratio)
        engine.set_lr(lr)
        sums, stop = _optimiser_step(engine, micro, config.seed, step, interrupted())
        done = step + 1
        refusal = engine.refusal()
        advice, fault = skips.step(done, refusal)
        log.warn(done, advice)
        if fault is not None:
            raise fault
        log.worked(sum(batch.num_tokens for batch in micro), skipped=refusal is not None)
        if done % config.trainer.log_every == 0 or done == total or done in evaluated:
            terms = {"lr": lr}
            if refusal is None:
                terms |= method.scalars(_all_reduced(sums))
                terms["grad_norm"] = engine.gradient_norm()
            if done in evaluated:
                repeated = repeats(len(sizes.heldout), world_size, rank)
                terms |= _heldout(engine, next(batches), config.seed, done, repeated)
            metrics = log.step(done, terms, _of_all_ranks(log.pace(engine.memory()), engine.device))
        if not (stop or done >= due.next or done == total):
            continue
        if from_first(lambda: _finished(job.uri)):
            log.warn(
                done, [Advice("finished", "another run in this storage has finished the stage; its model is kept")]
            )
            engine.close()
            return True
        if done < total:
            written = checkpoints.save(engine, done, history)
            due.tried(done, written)
            if written and stop:
                engine.close()
                return False
    parameters = save_model(engine, processor, storage.join(job.uri, "model"))
    engine.close()
    record = CheckpointRecord(
        uri=job.uri,
        fingerprint=job.fingerprint,
        stage=job.stage,
        method=stage.method.kind,
        step=total,
        config=config.model_dump(mode="json"),
        dataset=job.dataset.fingerprint,
        parent=job.parent,
        num_parameters=parameters,
        metrics=metrics,
    )
    from_first(lambda: _finish(record, history))
    return True


def _finished(uri: str) -> bool:
    """Whether the stage has its record; then what it would be resumed from goes."""
    found = load_record(uri, CheckpointRecord) is not None
    if found:
        remove_resume_state(uri)
    return found


def _finish(record: CheckpointRecord, history: list[Progress]) -> None:
    """Writes what a finished stage leaves beside its model; the record that it counts by is the last."""
    storage.write_bytes(storage.join(record.uri, HISTORY), history_to_json(history))
    save_record(record)
    remove_resume_state(record.uri)


def computed_features(job: TrainJob) -> dict[str, FeatureReader | StoredFeatures]:
    """Those of the stage's encoders that need not run: features in shards of this run, or of a folder."""
    found: dict[str, FeatureReader | StoredFeatures] = {
        record.encoder.name: FeatureReader(record) for record in job.features
    }
    for encoder in job.config.stages[job.stage].method.aligned_with:
        if encoder.name not in found and encoder.stored is not None:
            found[encoder.name] = StoredFeatures(encoder.stored)
    return found


def encoding(
    job: TrainJob, processor: AMVLProcessor, features: Mapping[str, FeatureReader | StoredFeatures]
) -> Callable[[int, StoredSample], Encoded]:
    """How a row becomes what the stage's method trains on."""
    encoder, method, latent = Encoder(processor), job.config.stages[job.stage].method, job.config.latent

    def encode(row: int, sample: StoredSample) -> Encoded:
        found = {name: source.of(row, sample) for name, source in features.items()}
        return laid_out_to_train(encoder, method, latent, sample, found)

    return encode


def build_method(job: TrainJob, features: Mapping[str, FeatureReader | StoredFeatures]) -> tuple[Method, AMVLProcessor]:
    """The stage's method on the weights it starts from, and the processor that goes with them."""
    config, stage = job.config, job.config.stages[job.stage]
    method, processor = _loaded(job, stage.method, job.start_from)
    method.model.train()
    set_pixel_budget(processor, config.data)
    teacher = None
    if job.teacher is not None:
        name = config.parents(job.stage).teacher
        assert name is not None
        teacher, _ = _loaded(job, config.stages[name].method, job.teacher)
    method.equip(processor, {name: source.patches for name, source in features.items()}, teacher)
    return method, processor


def _loaded(job: TrainJob, config: MethodConfig, uri: str) -> tuple[Method, AMVLProcessor]:
    """A stage's method on the model in a folder."""
    kind, dtype = config.implementation(), DTYPES[job.config.trainer.precision]
    with model_folder(uri) as folder:
        processor = load_processor(folder)
        method: Method = kind(kind.load(folder, processor, job.config.latent, dtype=dtype), config)
    return method, processor


def _sizes(reader: ShardReader, method: MethodConfig, config: RunConfig, rank: int, world_size: int) -> Sizes:
    """The sizes, of which each rank reads a share for all. Every rank calls this."""
    heldout = config.heldout.samples
    parts = from_all(lambda: reader.index(rank, world_size, heldout, config.data.seed))
    return reader.sizes_of(parts, method.added_tokens(config.latent), method.sequences, heldout)


def _optimiser_step(
    engine: Engine, micro: list[Batch], seed: int, step: int, interrupted: bool
) -> tuple[dict[str, Tensor], bool]:
    """Forward and backward over the rank's micro-batches, one optimiser step.

    Returns the terms' sums on this rank, and whether any rank is `interrupted`. All ranks learn of it together with the
    weight of the label tokens.
    """
    clock, interrupts = _clock(engine, micro, seed, step, interrupted)
    sums: dict[str, Tensor] = {}
    for batch in micro:
        output = engine.forward(batch, clock)
        engine.backward(output, batch.sample_ids)
        _add(sums, output.terms, engine.device)
    engine.step()
    return sums, interrupts


def _heldout(engine: Engine, micro: list[Batch], seed: int, step: int, repeated: bool) -> dict[str, float]:
    """The terms of the progress line on all held-out samples after `step` optimiser steps; `micro` are the rank's.

    If the last one is `repeated`, it runs and does not count.
    """
    counted = micro[:-1] if repeated else micro
    clock, _ = _clock(engine, counted, seed, step, False)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro):
        terms = engine.evaluate(batch, clock)
        _add(sums, terms if number < len(counted) else {name: 0 * term for name, term in terms.items()}, engine.device)
    found = engine.method.scalars(_all_reduced(sums))
    shown = (name for names in engine.method.config.columns.values() for name in names)
    return {f"heldout_{name}": found[name] for name in shown if name in found}


def _clock(engine: Engine, micro: list[Batch], seed: int, step: int, interrupted: bool) -> tuple[Clock, bool]:
    """The clock of these micro-batches of all ranks, and whether any rank is `interrupted`. Every rank calls this."""
    labels = sum(engine.method.label_weight(batch) for batch in micro)
    samples = sum(len(batch.lengths) for batch in micro)
    reduced = torch.tensor([labels, samples, int(interrupted)], dtype=torch.float64, device=engine.device)
    dist.all_reduce(reduced)
    num_labels, num_samples, interrupts = reduced.tolist()
    return Clock(seed, step, max(1.0, num_labels), int(num_samples)), interrupts > 0


def _add(sums: dict[str, Tensor], terms: Mapping[str, Tensor], device: torch.device) -> None:
    """Adds the terms of one micro-batch."""
    for name, value in terms.items():
        sums[name] = sums.get(name, 0.0) + value.to(device, torch.float64)


def _too_few(rows: int) -> str:
    return (
        f"no held-out loss: a tenth of the {rows:,} training samples is fewer than {MIN_HELDOUT}, so all are trained "
        "on; set heldout.samples=0, or prepare more data"
    )


def _all_reduced(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each term's sum over all ranks. Every rank calls this."""
    names = sorted(sums)
    totals = torch.cat([sums[name].flatten() for name in names])
    dist.all_reduce(totals)
    parts = totals.cpu().split([sums[name].numel() for name in names])
    return {name: part.view(sums[name].shape) for name, part in zip(names, parts, strict=True)}


def _of_all_ranks(pace: Pace, device: torch.device) -> list[Pace]:
    """The paces of all ranks. Every rank calls this."""
    mine = torch.tensor(pace, dtype=torch.float64, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return [Pace(*values) for values in torch.stack(found).tolist()]


def _silent(progress: Progress) -> None:
    """Ranks other than 0 report nothing."""
