"""Interleaved timing and peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def interleaved(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds of each step over `repeats` rounds. Every round runs all of them, each time another one first."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for step in steps.values():
        step()
    for number in range(repeats):
        for offset in range(len(names)):
            name = names[(number + offset) % len(names)]
            _wait()
            start = time.perf_counter()
            steps[name]()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(step: Step) -> int:
    """Most bytes allocated at once during `step`, beyond what was allocated before it."""
    if torch.cuda.is_available():
        _wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        _wait()
        return int(torch.cuda.max_memory_allocated()) - int(before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    results = recorded.profiler.kineto_results
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held, peak = 0, 0
    for _, size in events:
        held += size
        peak = max(peak, held)
    return peak


def device_name() -> str:
    """The GPU's name, or `cpu`."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
