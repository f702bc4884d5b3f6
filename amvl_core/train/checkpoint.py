"""Checkpoints to resume from, and the model that a stage leaves behind.

`{stage}/checkpoints/step-00000200/` is written by all ranks; its `complete.json` is written last by rank 0, so a
checkpoint without it does not count.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist

from amvl_core import storage
from amvl_core.train.engine import Engine

MARKER = "complete.json"
KEEP = 2
SHARD_SIZE = "5GB"


def save_checkpoint(engine: Engine, uri: str, step: int, rank: int, world_size: int) -> None:
    """Writes the state after `step` optimiser steps and removes all but the last `KEEP`; every rank calls it."""
    tag = f"step-{step:08d}"
    if storage.is_local(uri):
        engine.save(storage.local_path(uri), tag)
    else:
        with tempfile.TemporaryDirectory() as folder:
            engine.save(Path(folder), tag)
            storage.upload(Path(folder), uri)
    dist.barrier()
    if rank == 0:
        content = {"step": step, "world_size": world_size}
        storage.write_bytes(storage.join(uri, tag, MARKER), json.dumps(content).encode())
        for old in _complete(uri)[:-KEEP]:
            storage.remove(storage.join(uri, old))
    dist.barrier()


def load_latest(engine: Engine, uri: str, world_size: int) -> int:
    """Loads the last complete checkpoint below `uri`; the optimiser step it was taken after, or 0 if there is none."""
    for tag in reversed(_complete(uri)):
        content: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, tag, MARKER)))
        if content["world_size"] != world_size:
            continue
        if storage.is_local(uri):
            engine.load(storage.local_path(uri), tag)
        else:
            with tempfile.TemporaryDirectory() as folder:
                storage.download(storage.join(uri, tag), Path(folder) / tag)
                engine.load(Path(folder), tag)
        return int(content["step"])
    return 0


def save_model(engine: Engine, processor: Any, uri: str, rank: int) -> int:
    """Writes the Hugging Face folder (safetensors, configuration, tokenizer, processor); the number of parameters."""
    state = engine.state_dict(rank)
    if rank == 0:
        folder = Path(tempfile.mkdtemp())
        try:
            write_model(engine.method.model, processor, state, folder)
            storage.remove(uri)
            storage.upload(folder, uri)
        finally:
            shutil.rmtree(folder)
    dist.barrier()
    return sum(tensor.numel() for tensor in state.values())


def write_model(model: Any, processor: Any, state: dict[str, Any], folder: Path) -> None:
    """The Hugging Face folder of `model` with the weights of `state`, in shards of `SHARD_SIZE` with an index."""
    model.config.dtype = model.dtype
    model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_SIZE)
    processor.save_pretrained(folder)


def _complete(uri: str) -> list[str]:
    return [tag for tag in storage.list_names(uri) if storage.exists(storage.join(uri, tag, MARKER))]
