"""What two ranks write at once: `python -m benchmarks.checkpoint`.

A model of 27 million weights (`benchmarks/shapes.py`) under ZeRO 1 to 3 in bf16, in two processes without a GPU. Each
writes its part of a checkpoint to resume from, and of the Hugging Face folder that a stage leaves, to a temporary
folder. The last line is one JSON object. For each ZeRO stage: `checkpoint` and `model`, with the `seconds` that the
slower rank took, and a value for each rank of the `bytes` that it wrote, by the owner's name in each file's or by its
weights, and of `growth_mib`, the most that its resident memory grew meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from amvl_core.backbones.tiny import build_processor
from amvl_core.contracts.config import StageConfig, TrainerConfig
from amvl_core.train import export
from amvl_core.train.checkpoint import Checkpoints
from amvl_core.train.engine import Engine
from benchmarks import local
from benchmarks.shapes import SFT, build
from benchmarks.tiny import TINY

RANKS = 2
SAMPLE_EVERY_S = 0.002


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero", type=int, nargs="+", default=(1, 2, 3), help="stages of ZeRO")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvl-checkpoint-") as name:
        local.run(_rank, RANKS, name, chosen.zero)
        print((Path(name) / "found.json").read_text())


def _rank(rank: int, root: str, zero_stages: list[int]) -> None:
    found: dict[str, Any] = {"ranks": RANKS, "zero": {}}
    export.FILE_BYTES = 2**23  # else a model this small is one file
    for zero_stage in zero_stages:
        trainer = TrainerConfig(zero_stage=zero_stage, precision="bf16", gradient_checkpointing=False)
        stage = StageConfig(method=SFT, steps=1, global_batch=RANKS, lr=1e-5)
        engine = Engine(SFT.implementation()(build(SFT).bfloat16(), SFT), stage, trainer, RANKS)
        engine.pieces()  # makes the moments, as a first step does
        folder = f"{root}/{zero_stage}"
        checkpoints, processor = Checkpoints(f"{folder}/checkpoints", 1, print), build_processor(TINY)
        found["parameters"] = engine.num_parameters()
        wrote = {
            "checkpoint": _measured(lambda made=checkpoints: made.save(engine, 1, [])),  # type: ignore[misc]
            "model": _measured(lambda: export.save_model(engine, processor, f"{folder}/model")),
        }
        if rank == 0:
            own = [
                sum(f.stat().st_size for f in Path(folder).rglob(f"rank-{r:05d}-*.safetensors")) for r in range(RANKS)
            ]
            wrote["checkpoint"]["bytes"] = own
            files = sorted(Path(folder, "model").glob("*.safetensors"))
            owners = [number * RANKS // len(files) for number in range(len(files))]
            sizes = [file.stat().st_size for file in files]
            wrote["model"]["bytes"] = [
                sum(s for s, o in zip(sizes, owners, strict=True) if o == r) for r in range(RANKS)
            ]
            found["zero"][str(zero_stage)] = wrote
        dist.barrier()
        engine.close()
    if rank == 0:
        (Path(root) / "found.json").write_text(json.dumps(found))


def _measured(work: Callable[[], object]) -> dict[str, Any]:
    """Seconds of the slower rank and growth of each."""
    process, over = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not over.wait(SAMPLE_EVERY_S):
            most = max(most, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    dist.barrier()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    over.set()
    watching.join()
    each: list[Any] = [None] * RANKS
    dist.all_gather_object(each, (seconds, (most - before) // 2**20))
    return {"seconds": round(max(s for s, _ in each), 3), "growth_mib": [growth for _, growth in each]}


if __name__ == "__main__":
    main()
