"""Workers of a training stage as plain processes on this machine, without Ray: they start in about a second."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from amvl_core.contracts.progress import Progress
from amvl_core.train.loop import TrainJob, train_stage
from amvl_core.train.preemption import Sigterm

# A server that has the libraries loaded forks the workers; it has no threads that a fork could break.
METHOD: Final = "forkserver"
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(["benchmarks.local", "benchmarks.forked"])
LIMIT_S, GRACE_S = 120.0, 10.0


def start(target: Callable[..., None], world_size: int, *arguments: Any) -> list[BaseProcess]:
    """`world_size` processes that call `target(rank, *arguments)` in a group: nccl where each has a GPU, else gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    environment = dict(os.environ) | rendezvous  # that of the server is as old as the server
    workers: list[BaseProcess] = [
        CONTEXT.Process(target=_member, args=(target, rank, world_size, environment, arguments))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    return workers


def join(workers: list[BaseProcess]) -> list[int | None]:
    """Exit codes, when all have ended; None for one that had to be killed, GRACE_S after another had failed."""
    deadline = time.monotonic() + LIMIT_S
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        if any(worker.exitcode for worker in workers):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(0.02)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
        worker.join()
    return codes


def run(target: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """As `start`, and waits; an AssertionError if a process fails."""
    codes = join(start(target, world_size, *arguments))
    assert codes == [0] * world_size, codes


def stage(rank: int, job: str, log: str, stop_at: int | None = None, kill_at: int | None = None) -> None:
    """A worker of `job` (JSON). Rank 0 appends what it reports to `log`, as lines of JSON.

    It is interrupted in the step that leads to `stop_at`, and kills itself after `kill_at`.
    """
    done = 0
    sigterm = Sigterm()
    sigterm.listen()

    def write(line: dict[str, Any]) -> None:
        with Path(log).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def report(event: Progress) -> None:
        nonlocal done
        done = event.done
        write(asdict(event))
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def interrupted() -> bool:
        return sigterm.arrived or (stop_at is not None and rank == 0 and done >= stop_at - 1)

    finished = train_stage(TrainJob.model_validate_json(job), report, interrupted)
    if rank == 0:
        write({"finished": finished})


def _member(
    target: Callable[..., None], rank: int, world_size: int, environment: dict[str, str], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist
    from transformers.utils import logging as hf_logging

    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    hf_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if torch.cuda.device_count() < world_size:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    else:
        torch.cuda.set_device(rank)
        dist.init_process_group("nccl", rank=rank, world_size=world_size)
    target(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()
