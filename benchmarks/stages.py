"""From the end of one stage to the first step of the next: `python -m benchmarks.stages`.

Stages of a few steps on real Ray Train, two workers, the smallest model. `kept`: the workers of the stage before go on.
`anew`: they end, and others start, as for the first stage of a run. Both take turns, so that other work on the machine
meets both; with more than one round a start that does not count comes first. CPU seconds are those of all processes
that this one started. The last line is one JSON object of medians:
`{"kept_s", "anew_s", "kept_cpu_s", "anew_cpu_s", "ratio", "rounds", "cpus"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time

import psutil

from amvl_core.contracts import storage
from amvl_core.contracts.progress import Progress
from benchmarks.trial import configuration, dataset

SAMPLE_SECONDS = 0.1


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvl-stages-") as folder:
        print(json.dumps(measure(folder, chosen.rounds)))


def measure(root: str, rounds: int) -> dict[str, float]:
    """Rounds of one stage with new workers and one with kept ones."""
    from infra import cluster
    from infra.ray_train import WorkerGroup

    config = configuration(root, stages={"sft": {"steps": 5}}, cluster={"num_workers": 2})
    data = dataset(f"{root}/data")
    seconds: dict[str, list[float]] = {"anew": [], "kept": []}
    cpu: dict[str, list[float]] = {"anew": [], "kept": []}
    cluster.connect(config.cluster)
    group, used = WorkerGroup(config), CpuSeconds()

    def first_step(name: str) -> tuple[float, float]:
        """When the first step was done, and what CPU time had gone by then."""
        found: list[tuple[float, float]] = []

        def note(event: Progress) -> None:
            found.append((time.monotonic(), used.total()))

        group.train(config, "sft", data, None, storage.join(root, name), name, note)
        return found[0]

    try:
        if rounds > 1:
            first_step("warm-up")
        for number in range(rounds):
            for way in seconds:
                ended, before = time.monotonic(), used.total()
                if way == "anew":
                    group.close()
                started, after = first_step(f"{way}-{number}")
                seconds[way].append(started - ended)
                cpu[way].append(after - before)
                print(f"{way}: {started - ended:.2f} s, {after - before:.2f} CPU s", file=sys.stderr, flush=True)
        group.close()
    finally:
        used.stop.set()
        cluster.disconnect()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name}_s": round(value, 2) for name, value in median.items()},
        **{f"{name}_cpu_s": round(statistics.median(values), 2) for name, values in cpu.items()},
        "ratio": round(median["anew"] / median["kept"], 1),
        "rounds": rounds,
        "cpus": len(os.sched_getaffinity(0)),
    }


class CpuSeconds(threading.Thread):
    """CPU time of this process and of all that it started, also of those that have ended, as last seen."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[tuple[int, float], float] = {}
        self.stop = threading.Event()
        self.start()

    def run(self) -> None:
        """Looks at them often, because the times of a process go with it."""
        while not self.stop.wait(SAMPLE_SECONDS):
            self._look()

    def total(self) -> float:
        """Seconds so far."""
        self._look()
        return sum(list(self.seen.values()))

    def _look(self) -> None:
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            try:
                times = process.cpu_times()
                self.seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                pass  # ended meanwhile


if __name__ == "__main__":
    main()
