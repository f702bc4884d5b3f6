"""What feeding the training loop costs: `python -m benchmarks.ingest [--rows N] [--steps N]`.

Microworld is prepared as the demo prepares it, and the demo's `sft` and `amvl` stages run through the real training
loop in two processes, for `--steps` steps each. The last line is one JSON object; of both stages it gives the worse:

- `data_wait_share`: of step time, as the loop measures it, that the rank which waited longest spent waiting for data,
  from the second step on; `first_wait_s` is what it waited in the first one, while the loader processes started.
- `padding_waste`: of the rows that ran through the text stack, and of the patches that ran through the vision encoder,
  the share that belongs to no sample; counted by hooks on what the modules are really given.
- `rank_imbalance`: tokens of the slowest rank over the mean of the ranks, turn by turn.
- `bytes_read_per_sample`: what all loader processes together ask of the storage for one epoch, per sample; and what is
  stored of a sample.
- `order_450k_s`: seconds for one epoch of 450,000 rows: its order, and its batches of 128 divided over 16 ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from amvl_core.backbones.loading import base_folder
from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import DatasetRecord
from amvl_core.data.batch import Batch
from amvl_core.data.order import Sizes, global_batch, micro_batches
from amvl_core.data.reader import ShardReader
from amvl_core.methods.method import Method
from benchmarks import local

STAGES = ("sft", "amvl")
ROWS = 450_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each stage, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000, help="samples to generate")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each stage, at least 2")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="amvl-ingest-") as folder:
        config = _config(folder, chosen.rows, chosen.steps)
        found = measure(config, _prepare(config, storage.join(folder, "data")), folder)
    print(json.dumps(found))


def measure(config: RunConfig, dataset: DatasetRecord, folder: str) -> dict[str, float]:
    """What the JSON line says."""
    order = order_seconds()
    found = [_train(config, dataset, stage, folder) for stage in STAGES]
    for stage, row in zip(STAGES, found, strict=True):
        print(json.dumps({"stage": stage} | row), flush=True)
    worst = {name: max(row[name] for row in found) for name in found[0]}
    return worst | _bytes(config, dataset) | {"order_450k_s": round(order, 3)}


def order_seconds(rows: int = ROWS) -> float:
    """Seconds for an epoch's order and all its batches, as the paper's run divides them."""
    tokens = np.random.default_rng(0).lognormal(6.8, 0.6, rows).clip(64, 4096).astype(np.int32)
    sizes = Sizes(tokens, np.diff(np.append(np.arange(0, rows, 32), rows)))
    paper = PRESETS["paper"]()
    stage, workers = paper.stages["amvl"], paper.cluster.num_workers
    start = time.perf_counter()
    for step in range(rows // stage.global_batch):
        micro_batches(global_batch(0, step, stage.global_batch, sizes), tokens, workers, stage.micro_tokens)
    return time.perf_counter() - start


def _config(folder: str, rows: int, steps: int) -> RunConfig:
    """The demo, short, with every step logged."""
    demo = PRESETS["demo"]()
    return override(
        demo,
        {
            "storage": folder,
            "data": {"sources": [{"kind": "microworld", "train": rows, "test": 8}]},
            "stages": {stage: {"steps": steps} for stage in demo.stages},
            "trainer": {"log_every": 1, "checkpoint_every": 10**6},
        },
    )


def _prepare(config: RunConfig, uri: str) -> DatasetRecord:
    from data_prep import pipeline
    from infra import cluster

    cluster.connect(config.cluster)
    try:
        return pipeline.prepare(config, uri, lambda _: None)
    finally:
        cluster.disconnect()


def _train(config: RunConfig, dataset: DatasetRecord, stage: str, folder: str) -> dict[str, float]:
    """One stage in as many processes as the demo has workers."""
    out = Path(folder) / stage
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with base_folder(config.model) as base:
        job = {
            "config": config.model_dump(mode="json"),
            "stage": stage,
            "dataset": dataset.model_dump(mode="json"),
            "start_from": base,
            "parent": None,
            "uri": str(out / "run"),
            "fingerprint": stage,
        }
        workers = config.cluster.num_workers
        torch.multiprocessing.start_processes(_rank, (workers, port, job, str(out)), workers, start_method=local.METHOD)
    ranks = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(workers)]
    turns = np.array([rank["tokens"] for rank in ranks])
    waits, seconds = waits_and_seconds(ranks[0]["steps"], turns)
    run, needed, patches, shown = (sum(rank[name] for rank in ranks) for name in ("rows", "needed", "patches", "shown"))
    return {
        "data_wait_share": round(float(np.average(waits[1:], weights=seconds[1:])), 5),
        "first_wait_s": round(float(waits[0] * seconds[0]), 3),
        "padding_waste": round(1 - min(needed / run, shown / patches), 5),
        "rank_imbalance": round(float(turns.max(0).sum() / turns.mean(0).sum()), 4),
    }


def waits_and_seconds(steps: list[dict[str, float]], turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each step the share that the slowest rank waited, and its seconds, from what rank 0 was told of it.

    `turns` [ranks, micro-batches] are the tokens of all steps; `micro` of a step is how many were run by its end.
    """
    waits, speeds, ends = (np.array([step[name] for step in steps]) for name in ("data_wait", "tokens_per_s", "micro"))
    tokens = np.diff(turns.sum(0).cumsum()[ends - 1], prepend=0)
    return waits, tokens / speeds


def _rank(rank: int, world_size: int, port: int, job: dict[str, Any], out: str) -> None:
    """One process: the training loop, with hooks that count."""
    from amvl_core.train.loop import TrainJob, train_stage

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world_size)}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    counter, steps = Counter(), list[dict[str, float]]()
    hook = counter.watch()

    def note(event: Progress) -> None:
        if event.metrics:
            told = {name: event.metrics[name] for name in ("data_wait", "tokens_per_s")}
            steps.append(told | {"micro": len(counter.tokens)})

    train_stage(TrainJob.model_validate(job), note, lambda: False)
    hook.remove()
    found = {"steps": steps, **counter.found()}
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


class Counter:
    """Counts rows and patches as modules are given them, and those that the samples consist of."""

    def __init__(self) -> None:
        self.rows = self.needed = self.patches = self.shown = 0
        self.tokens: list[int] = []
        self.modules: dict[int, str] = {}

    def watch(self) -> RemovableHandle:
        """Sees every module's call until the handle is removed."""
        return register_module_forward_pre_hook(self._seen)

    def found(self) -> dict[str, Any]:
        """The counts, and the tokens of each micro-batch."""
        names = ("rows", "needed", "patches", "shown", "tokens")
        return {name: getattr(self, name) for name in names}

    def _seen(self, module: Any, given: Any) -> None:
        if isinstance(module, Method):
            self._batch(module, given[0])
        elif (kind := self.modules.get(id(module))) == "layer":
            self.rows += len(given[0])
        elif kind == "patches":
            self.patches += len(given[0])

    def _batch(self, method: Method, batch: Batch) -> None:
        model = method.model.model
        self.modules = {id(model.language_model.layers[0].mlp): "layer", id(model.visual.patch_embed): "patches"}
        self.tokens.append(batch.num_tokens)
        self.shown += 0 if batch.pixel_values is None else len(batch.pixel_values)
        self.needed += method.rows(batch)


def _bytes(config: RunConfig, dataset: DatasetRecord) -> dict[str, int]:
    """What every loader process reads in one epoch, replayed one after the other."""
    stage, trainer, workers = config.stages["amvl"], config.trainer, config.cluster.num_workers
    first = ShardReader(dataset, "train")
    sizes = first.sizes(stage.method.added_tokens(config.latent))
    processes = max(1, trainer.loader_workers)
    readers = [[ShardReader(dataset, "train") for _ in range(processes)] for _ in range(workers)]
    steps = max(1, len(first) // stage.global_batch)
    for step in range(steps):
        whole = global_batch(config.seed, step, stage.global_batch, sizes)
        for turn in micro_batches(whole, sizes.num_tokens, workers, stage.micro_tokens):
            for rank, indices in enumerate(turn):
                for index in indices.tolist():
                    readers[rank][step % processes][index]
    for index in range(len(first)):
        first[index]
    read = sum(reader.bytes_read for of_rank in readers for reader in of_rank)
    return {
        "bytes_read_per_sample": round(read / (steps * stage.global_batch)),
        "bytes_stored_per_sample": round(first.bytes_read / len(first)),
    }


if __name__ == "__main__":
    main()
