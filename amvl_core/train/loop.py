"""Training of one stage on one rank. Knows batches, an engine and named terms; no method, no Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

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
from amvl_core.data.order import num_steps
from amvl_core.data.reader import ShardReader
from amvl_core.errors import AmvlError
from amvl_core.methods import METHODS, Clock, Method
from amvl_core.processor import AMVLProcessor, load_processor
from amvl_core.progress import Progress, ProgressFn
from amvl_core.records import BestModel, CheckpointRecord, DatasetRecord, load_record, save_record
from amvl_core.schedules import cosine_with_warmup
from amvl_core.train.checkpoint import Checkpoints, mean_loss, save_model
from amvl_core.train.engine import DTYPES, Engine


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


def train_stage(
    job: TrainJob, on_progress: ProgressFn, warn: Callable[[str], None], interrupted: Callable[[], bool]
) -> bool:
    """Runs a stage from its last complete checkpoint to its end and writes the stage's record; whether it got there.

    torch.distributed is up; every rank calls this. `on_progress` is called on rank 0, once per logged step, first for
    those of the checkpoint it goes on from. Once `interrupted` is true on any rank, all write a checkpoint at the end
    of the step and return False.
    """
    if load_record(job.uri, CheckpointRecord) is not None:
        return True  # started again after its last step
    config, stage = job.config, job.config.stages[job.stage]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    method, processor = build_method(job)
    encoder = Encoder(processor, METHODS[stage.method.kind].slots(config.latent))
    dataset = StepDataset(ShardReader(job.dataset, "train"), encoder, stage, config.seed, rank, world_size)
    total = num_steps(stage.epochs, stage.steps, len(dataset.num_tokens), stage.global_batch)
    engine = Engine(method, stage, config.trainer, world_size)
    checkpoints = Checkpoints(storage.join(job.uri, "checkpoints"), config.trainer.keep_last, warn)
    start, history = checkpoints.resume(engine)
    for event in history:
        on_progress(event)

    def send(event: Progress) -> None:
        history.append(event)
        on_progress(event)

    log = _Log(job.stage, total, start, send if rank == 0 else _silent)
    batches = steps_from(dataset, start, total, config.trainer.loader_workers)
    metrics: dict[str, float] = {}
    saved = start
    for step in range(start, total):
        log.waiting()
        micro = next(batches)
        log.working()
        lr = stage.lr * cosine_with_warmup(step, total, stage.warmup_ratio)
        engine.set_lr(lr)
        sums, stop = _optimiser_step(engine, micro, config.seed, step, world_size, interrupted())
        done = step + 1
        if done % config.trainer.log_every == 0 or done == total:
            terms = method.scalars(_mean(sums, len(micro) * world_size, engine.device))
            terms |= {"lr": lr, "grad_norm": engine.gradient_norm()}
            metrics = log.step(done, terms, sum(batch.num_tokens for batch in micro) * world_size)
        if (stop or done % config.trainer.checkpoint_every == 0) and done < total:
            checkpoints.save(engine, done, mean_loss(history, saved), history)
            saved = done
            if stop:
                engine.close()
                return False
    parameters = save_model(engine, processor, storage.join(job.uri, "model"), rank)
    best = _save_best(engine, processor, checkpoints, mean_loss(history, saved), storage.join(job.uri, "best"), rank)
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
                best=best,
            )
        )
        storage.remove(checkpoints.uri)
        storage.remove(storage.join(job.uri, "base"))
    dist.barrier()
    return True


def _save_best(
    engine: Engine, processor: AMVLProcessor, checkpoints: Checkpoints, loss: float | None, uri: str, rank: int
) -> BestModel | None:
    """Writes the model of the checkpoint with the lowest loss, if that is below `loss`, which the stage ends with."""
    marker = checkpoints.best(loss)
    if marker is None or marker.loss is None:
        return None
    checkpoints.load(engine, marker)
    save_model(engine, processor, uri, rank)
    return BestModel(uri=uri, step=marker.step, loss=marker.loss)


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


def _optimiser_step(
    engine: Engine, micro: list[Batch], seed: int, step: int, world_size: int, interrupted: bool
) -> tuple[dict[str, Tensor], bool]:
    """Forward and backward over the rank's micro-batches, one optimiser step.

    The terms' sums on this rank, and whether any rank is `interrupted`: known to all with the count of label tokens.
    """
    labels = float(sum(batch.num_label_tokens for batch in micro))
    reduced = torch.tensor([labels, float(interrupted)], device=engine.device, dtype=torch.float64)
    dist.all_reduce(reduced)
    count, interrupts = reduced.tolist()
    clock = Clock(seed, step, max(1.0, count) / (len(micro) * world_size))
    sums: dict[str, Tensor] = {}
    for batch in micro:
        output = engine.engine(batch, clock)
        engine.engine.backward(output.loss)
        engine.engine.step()
        if not math.isfinite(float(output.loss)):
            terms = {name: float(value) for name, value in output.terms.items() if value.numel() == 1}
            raise AmvlError(
                f"step {step + 1}: the loss is {float(output.loss)} (terms: {terms}) on the samples "
                f"{', '.join(batch.sample_ids)}; lower the learning rate or look at these samples"
            )
        for name, value in output.terms.items():
            sums[name] = sums.get(name, 0.0) + value.to(engine.device, torch.float64)
    return sums, interrupts > 0


def _mean(sums: dict[str, Tensor], count: int, device: torch.device) -> dict[str, Tensor]:
    """Each term's mean over the micro-batches of all ranks; every rank calls it."""
    names = sorted(sums)
    totals = torch.cat([sums[name].flatten() for name in names])
    dist.all_reduce(totals)
    parts = (totals / count).cpu().split([sums[name].numel() for name in names])
    return {name: part.view(sums[name].shape) for name, part in zip(names, parts, strict=True)}


class _Log:
    """Times steps and sends one `Progress` per logged step."""

    def __init__(self, stage: str, total: int, start: int, send: Callable[[Progress], None]) -> None:
        self.stage, self.total, self.first, self.send = stage, total, start, send
        self.begun = self.mark = time.perf_counter()
        self.waited = 0.0

    def waiting(self) -> None:
        """The step asks for data."""
        self.mark = time.perf_counter()

    def working(self) -> None:
        """The data are there."""
        self.waited = time.perf_counter() - self.mark

    def step(self, done: int, terms: dict[str, float], tokens: int) -> dict[str, float]:
        """Sends and returns the metrics of optimiser step `done`."""
        seconds = time.perf_counter() - self.mark
        pace = (time.perf_counter() - self.begun) / (done - self.first)
        metrics = terms | {"tokens_per_s": tokens / seconds, "data_wait": self.waited / seconds}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.send(Progress(self.stage, done, self.total, "steps", (self.total - done) * pace, metrics))
        return metrics


def _silent(progress: Progress) -> None:
    """Ranks other than 0 report nothing."""
