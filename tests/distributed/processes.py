"""Two gloo processes from plain pytest."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks import local
from tests.tiny import stock_folder


def in_two_processes(find: Callable[[int], Any]) -> Any:
    """What `find(rank)` returns on rank 0 of two; it is called on both, and must be importable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        # The server that forks them has the libraries loaded, which `benchmarks.local` sees to.
        multiprocessing.start_processes(_rank, (port, folder, find), nprocs=2, start_method=local.METHOD)
        return torch.load(Path(folder) / "found.pt", weights_only=True)


def gradients_of_step(engine: Any) -> dict[str, torch.Tensor]:
    """The whole gradients that AdamW's step was given, on the CPU: its first moments, which are zero again after this.

    Every rank calls it behind each step. Where nothing is clipped they are the sums over micro-batches and ranks.
    """
    share = []
    for piece in engine.share(dist.get_rank(), dist.get_world_size()):
        moment = piece.tensors["exp_avg"]
        share.append((piece.name, piece.start, moment.cpu() / (1 - 0.9)))
        moment.zero_()
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, share)
    parameters = engine.method.named_parameters()
    shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in parameters if p.requires_grad}
    found = {name: torch.full(shape, torch.nan) for name, shape in shapes.items()}
    for name, start, part in itertools.chain(*shares):
        found[name].view(-1)[start : start + len(part)] = part
    return found


def _rank(rank: int, port: int, folder: str, find: Callable[[int], Any]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    stock_folder()  # once there is a process group the library writes on its first rank alone
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = find(rank)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()
