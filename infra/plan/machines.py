"""Kinds of GPUs, how they are connected, and what of them a run has."""

from __future__ import annotations

from dataclasses import dataclass

from amvl_core.rows.flops import PEAK_BF16_FLOPS

GIB = 2**30
RESERVE_GIB = 3.0
"""CUDA context, NCCL's buffers and the allocator's fragmentation."""
UTILISATION = 0.4
"""Share of a GPU's peak that its matrix products reach, recomputation counted: what eager PyTorch with SDPA reaches on
rows of a thousand tokens at 7B. Tuned code reaches 0.5 to 0.6; measure your own with `python -m benchmarks.step`."""


@dataclass(frozen=True)
class Machines:
    """A kind of GPU and how it is connected: `node_gb_s` is what a node sends to others, in GB/s."""

    gpu: str
    memory_gib: float
    peak_flops: float
    gpus_per_node: int = 8
    node_gb_s: float = 12.5


MACHINES = {
    name: Machines(name, gib, PEAK_BF16_FLOPS[name.split("-")[0]])
    for name, gib in (("A100-40GB", 39.4), ("A100-80GB", 79.2), ("H100-80GB", 79.2), ("H200-141GB", 139.8))
}
"""Memory as torch reports it. The network is one interface of 100 Gbit/s, what NCCL has over TCP in the stock image;
with EFA set up p4d and p4de send 50 GB/s."""
NVLINK_GB_S = 200.0
"""Within one node."""
