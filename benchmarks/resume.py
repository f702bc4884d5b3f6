"""Kills at random moments: `python -m benchmarks.resume --kills 10`.

Two workers of a tiny stage (plain processes: Ray would only add its start) get SIGKILL, one of them or both, at a
random moment, and are started again; then weights, moments and logged losses are compared, bit for bit, with those of
a run that nobody killed. The last line is one JSON object: `{"kills", "bit_equal", "lost_steps_max",
"checkpoint_every"}`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from amvl_core.contracts import storage
from benchmarks import local
from benchmarks.trial import Trial

STEPS, EVERY = 40, 5


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the workers")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvl-resume-") as folder:
        print(json.dumps(measure(Path(folder), chosen.kills, random.Random(chosen.seed))))


def measure(root: Path, kills: int, chance: random.Random) -> dict[str, int | bool]:
    """Kills until `kills` are done, run after run, and compares every run with the whole one."""
    trial = Trial(root, STEPS + 1, trainer={"checkpoint_every": EVERY})
    assert trial.run("whole", stop_at=STEPS) == [0, 0]
    names, done, lost = list[str](), 0, 0
    while done < kills:
        name = f"run-{len(names) + 1}"
        names.append(name)
        while True:
            workers = trial.start(name, stop_at=STEPS)
            if done < kills and _reached(trial, name, workers, chance.randint(0, STEPS - 1)):
                time.sleep(chance.uniform(0, 0.1))
                victims = chance.choice([workers[:1], workers[1:], workers])
                for worker in victims:
                    worker.kill()
                local.join(workers)
                done += 1
                lost = max(lost, _lost(trial, name))
                print(f"kill {done}: {len(victims)} of 2 workers, {_lost(trial, name)} steps lost", file=sys.stderr)
            elif local.join(workers) == [0, 0]:
                break
            else:
                raise RuntimeError(f"{name}: a worker that nobody killed failed")
    equal = all(
        trial.state(name, STEPS) == trial.state("whole", STEPS) and trial.curve(name) == trial.curve("whole")
        for name in names
    )
    return {"kills": done, "bit_equal": equal, "lost_steps_max": lost, "checkpoint_every": EVERY}


def _reached(trial: Trial, name: str, workers: list[BaseProcess], step: int) -> bool:
    """Waits for the workers to log `step`; whether they did before they ended."""
    while all(worker.is_alive() for worker in workers):
        if _last(trial, name) >= step:
            return True
        time.sleep(0.005)
    return False


def _last(trial: Trial, name: str) -> int:
    return max([line["done"] for line in trial.lines(name) if "done" in line], default=0)


def _lost(trial: Trial, name: str) -> int:
    """Steps that were logged and are in no complete checkpoint."""
    tags = storage.list_names(f"{trial.root}/{name}/checkpoints")
    complete = [tag for tag in tags if (trial.root / name / "checkpoints" / tag / "complete.json").exists()]
    saved = int(complete[-1].removeprefix("step-")) if complete else 0
    return _last(trial, name) - saved


if __name__ == "__main__":
    main()
