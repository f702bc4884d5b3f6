"""Training of one stage on one rank. Knows batches, an engine and named terms; no method, no Ray."""

from __future__ import annotations

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from amvl_core import storage
from amvl_core.base import model_folder, set_pixel_budget
from amvl_core.config import RunConfig
from amvl_core.data.batch import Batch
from amvl_core.data.encode import Encoder
from amvl_core.data.loader import StepDataset, steps_from
from amvl_core.data.order import Sizes, num_steps
from amvl_core.data.reader import ShardReader
from amvl_core.methods import METHODS, Clock, Method
from amvl_core.processor import AMVLProcessor, load_processor
from amvl_core.progress import Progress, ProgressFn
from amvl_core.records import CheckpointRecord, DatasetRecord, save_record
from amvl_core.schedules import cosine_with_warmup
from amvl_core.train.checkpoint import load_latest, save_checkpoint, save_model
from amvl_core.train.engine import DTYPES, Engine
from amvl_core.train.steplog import StepLog
from amvl_core.train.watch import Skips, watches


class TrainJob(BaseModel):
    """All that a worker needs to know; crosses process borders as JSON.

    `start_from` is the folder or Hub id of the weights, `parent` the fingerprint of the checkpoint they belong to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: RunConfig
    stage: str
    dataset: DatasetRecord
    start_from: str
    parent: str | None
    uri: str
    fingerprint: str


def train_stage(job: TrainJob, on_progress: ProgressFn) -> None:
    """Runs a stage from its last complete checkpoint to its end and writes the stage's record.

    torch.distributed is up; every rank calls this. `on_progress` is called on rank 0, once per logged step and
    where a warning arises.
    """
    config, stage = job.config, job.config.stages[job.stage]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    method, processor = build_method(job)
    encoder = Encoder(processor, METHODS[stage.method.kind].slots(config.latent))
    reader = ShardReader(job.dataset, "train")
    total = num_steps(stage.epochs, stage.steps, len(reader), stage.global_batch)
    engine = Engine(method, stage, config.trainer, world_size)
    sizes = _sizes(reader, rank, engine.device)
    dataset = StepDataset(reader, sizes, encoder, stage, config.seed, rank, world_size)
    checkpoints = storage.join(job.uri, "checkpoints")
    start = load_latest(engine, checkpoints, world_size)
    log = StepLog(job.stage, total, start, on_progress if rank == 0 else _silent, watches(stage, config.latent))
    skips = Skips(config.trainer.on_nonfinite)
    batches = steps_from(dataset, start, total, config.trainer.loader_workers)
    metrics: dict[str, float] = {}
    for step in range(start, total):
        log.waiting()
        micro = next(batches)
        log.working()
        lr = stage.lr * cosine_with_warmup(step, total, stage.warmup_ratio)
        engine.set_lr(lr)
        sums = _optimiser_step(engine, micro, config.seed, step)
        done = step + 1
        suspects = engine.suspects()
        log.warn(done, skips.step(done, suspects))
        log.worked(sum(batch.num_tokens for batch in micro) * world_size, skipped=suspects is not None)
        if done % config.trainer.log_every == 0 or done == total:
            terms = {"lr": lr, **engine.memory()}
            if suspects is None:
                terms |= method.scalars(_all_reduced(sums))
                terms["grad_norm"] = engine.gradient_norm()
            metrics = log.step(done, terms)
        if done % config.trainer.checkpoint_every == 0 and done < total:
            save_checkpoint(engine, checkpoints, done, rank, world_size)
    parameters = save_model(engine, processor, storage.join(job.uri, "model"), rank)
    engine.close()
    if rank == 0:
        save_record(
            CheckpointRecord(
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
        )
        storage.remove(checkpoints)
        storage.remove(storage.join(job.uri, "base"))
    dist.barrier()


def build_method(job: TrainJob) -> tuple[Method, AMVLProcessor]:
    """The stage's method on the weights it starts from, and the processor that goes with them."""
    config, stage = job.config, job.config.stages[job.stage]
    kind = METHODS[stage.method.kind]
    dtype = DTYPES[config.trainer.precision]
    with model_folder(job.start_from) as folder:
        processor = load_processor(folder)
        set_pixel_budget(processor, config.data)
        model = kind.load(folder, processor, config.latent, dtype=dtype)
    model.train()
    return kind(model, stage.method), processor


def _sizes(reader: ShardReader, rank: int, device: torch.device) -> Sizes:
    """Read once, by rank 0; every rank calls it."""
    found = [reader.sizes() if rank == 0 else None]
    dist.broadcast_object_list(found, device=device)
    assert found[0] is not None
    return found[0]


def _optimiser_step(engine: Engine, micro: list[Batch], seed: int, step: int) -> dict[str, Tensor]:
    """Forward and backward over the rank's micro-batches, one optimiser step; the terms' sums on this rank."""
    labels = sum(batch.num_label_tokens for batch in micro)
    counts = torch.tensor([labels, sum(len(batch.lengths) for batch in micro)], device=engine.device)
    dist.all_reduce(counts)
    clock = Clock(seed, step, max(1.0, float(counts[0])), int(counts[1]))
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro, 1):
        output = engine.forward(batch, clock, last=number == len(micro))
        engine.backward(output.loss, batch.sample_ids)
        for name, value in output.terms.items():
            sums[name] = sums.get(name, 0.0) + value.to(engine.device, torch.float64)
    engine.step()
    return sums


def _all_reduced(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each term's sum over all ranks; every rank calls it."""
    names = sorted(sums)
    totals = torch.cat([sums[name].flatten() for name in names])
    dist.all_reduce(totals)
    parts = totals.cpu().split([sums[name].numel() for name in names])
    return {name: part.view(sums[name].shape) for name, part in zip(names, parts, strict=True)}


def _silent(progress: Progress) -> None:
    """Ranks other than 0 report nothing."""
