"""Two workers against one at equal global batch: `python -m benchmarks.workers`.

The real training loop without Ray, ZeRO-2, one thread per process, interleaved rounds. A round's figure is the median
over its steps of tokens per second; the speed-up is the ratio of medians over rounds. The last line is one JSON object:
`{"speedup_2_vs_1", "tokens_per_s", "parameters", "cpus", "rounds", "steps"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from amvl_core.contracts.config import TinyConfig
from benchmarks.trial import Trial

MODEL = TinyConfig(hidden_size=384, num_layers=4, num_heads=6, num_kv_heads=2, intermediate_size=1024)
GLOBAL_BATCH = 16
WARM_UP = 2


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help=f"of a run, of which the first {WARM_UP} do not count")
    parser.add_argument("--tiny", action="store_true", help="a model of no weight, to see that it runs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvl-workers-") as folder:
        print(json.dumps(measure(Path(folder), chosen.rounds, chosen.steps, chosen.tiny)))


def measure(root: Path, rounds: int, steps: int, tiny: bool = False) -> dict[str, Any]:
    """Interleaved rounds of one worker and two."""
    model = {} if tiny else {"model": {"tiny": MODEL.model_dump()}}
    trial = Trial(root, steps, stages={"sft": {"global_batch": GLOBAL_BATCH}}, **model)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in (1, 2):
            name = f"{workers}-{number}"
            assert trial.run(name, workers) == [0] * workers
            found = [line["metrics"]["tokens_per_s"] for line in trial.lines(name) if line.get("done", 0) > WARM_UP]
            speeds[workers].append(statistics.median(found))
            print(f"round {number}, workers {workers}: {speeds[workers][-1]:.0f} tokens/s", file=sys.stderr)
    medians = {workers: statistics.median(values) for workers, values in speeds.items()}
    return {
        "speedup_2_vs_1": round(medians[2] / medians[1], 3),
        "tokens_per_s": {str(workers): round(value) for workers, value in medians.items()},
        "parameters": trial.record("1-0").num_parameters,
        "cpus": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "steps": steps,
    }


if __name__ == "__main__":
    main()
