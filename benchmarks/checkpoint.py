"""What two ranks write at once: `python -m benchmarks.checkpoint`.

A model of 27 million weights (`benchmarks/shapes.py`) under ZeRO 1 to 3 in bf16, in two processes without a GPU. Each
writes its part of a checkpoint to resume from, and of the Hugging Face folder that a stage leaves, to a temporary
folder. The last line is one JSON object. For each ZeRO stage: `checkpoint` and `model`, with the `seconds` that the
slower rank took, and for each rank the `bytes` of its files and `growth_mib`, the most that its resident memory grew
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
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
    export.FILE_BYTES = 2**23  # else a model this small is one file
    found = {str(zero_stage): _written(f"{root}/{zero_stage}", zero_stage) for zero_stage in zero_stages}
    if rank == 0:
        (Path(root) / "found.json").write_text(json.dumps({"ranks": RANKS, "zero": found}))


def _written(folder: str, zero_stage: int) -> dict[str, Any]:
    """Of one stage of ZeRO."""
    trainer = TrainerConfig(zero_stage=zero_stage, precision="bf16", gradient_checkpointing=False)
    stage = StageConfig(method=SFT, steps=1, global_batch=RANKS, lr=1e-5)
    engine = Engine(SFT.implementation()(build(SFT).bfloat16(), SFT), stage, trainer, RANKS)
    engine.pieces()  # makes the moments, as a first step does
    checkpoints, processor = Checkpoints(f"{folder}/checkpoints", 1, print), build_processor(TINY)
    checkpoint = _measured(lambda: checkpoints.save(engine, 1, []))
    model = _measured(lambda: export.save_model(engine, processor, f"{folder}/model"))
    checkpoint["bytes"] = [_bytes(Path(folder).rglob(f"rank-{rank:05d}-*.safetensors")) for rank in range(RANKS)]
    files = sorted(Path(folder, "model").glob("*.safetensors"))
    model["bytes"] = [0] * RANKS
    for number, file in enumerate(files):
        model["bytes"][export.writer(number, len(files), RANKS)] += file.stat().st_size
    found = {"parameters": engine.num_parameters(), "checkpoint": checkpoint, "model": model}
    dist.barrier()
    engine.close()
    return found


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


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
