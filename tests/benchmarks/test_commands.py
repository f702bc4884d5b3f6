"""Every benchmark, and every `python -m` that the documentation names, runs at its smallest size as a person runs it.

Two run at once, as this is what takes time; no set-up of pytest reaches them. Each is a fork of a process that has
torch and transformers loaded, which alone would take a third of the time.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.eval.benchmarks.benchmark import Question
from benchmarks.local import CONTEXT
from tests.shared import DATA, FOLDER

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BENCHMARKS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text())


@dataclass(frozen=True)
class Run:
    """What a command left; `code` is its exit code."""

    code: int | None
    stdout: str
    stderr: str


SMALLEST = {
    "benchmarks.checkpoint": "--zero 2",
    "benchmarks.duplicates": f"{DATA} --rows 88 --drawings 2",
    "benchmarks.evaluate": "--questions 4 --rounds 1",
    "benchmarks.faithfulness": "--items 1 --repeats 1 --settings demo --tokens 1",
    "benchmarks.feedback": "--x 16 --y 8 --blocks 1 --slots 2 --samples 2 --repeats 1 --tokens 2",
    "benchmarks.generate": "--x 16 --tokens 1 --repeats 1",
    "benchmarks.gpu": "--device cpu --size tiny --repeats 1",
    "benchmarks.images": "none.tar.gz --repeats 1",
    "benchmarks.ingest": "--rows 70 --steps 3",
    # Its exit code says whether the loss has moved. If it has to: `--update`, and say why in the commit.
    "benchmarks.loss_compare": "",
    "benchmarks.prepare": "--rows 4 --rounds 1 --memory-rows",
    "benchmarks.reading": "--rows 5000 --ranks 2 --batch 8",
    "benchmarks.resume": "--kills 1",
    "benchmarks.stages": "--rounds 1",
    "benchmarks.step": "--x 16 --y 8 --samples 2 --repeats 1",
    "benchmarks.workers": "--rounds 1 --steps 3 --tiny",
    "amvl_core.eval.benchmarks": "test predictions.parquet",
    "data_prep.microworld": "--export visual_cot cot --train 8 --test 8",
    # The whole pipeline takes minutes: `tests/flows/test_full_pipeline.py` runs it.
    "flows": "check own",
    # Of the closed form; `tests/infra/test_ray_analysis.py` has those of a checkpoint.
    "infra.analysis": "contamination",
    "infra.plan": "--preset paper --json",
}
"""The arguments of each; they run in an empty folder."""


def documented() -> Iterator[tuple[str, str, list[str]]]:
    """Page, module and options of every command that the pages name."""
    for page in PAGES:
        for found in re.finditer(r"python -m ([\w.]+)((?:\\\n|[^`\n#|])*)", page.read_text()):
            if found[1] != "pytest":
                yield page.name, found[1], re.findall(r"(?<![\w-])--[a-z][\w-]*", found[2])


def of_ingest(found: dict[str, Any]) -> None:
    """Of two processes with a loader process each."""
    assert 0 <= found["data_wait_share"] < 1
    assert found["padding_waste"] == 0
    assert 1 <= found["rank_imbalance"] < 1.1
    # Each loader process reads all of a dataset this small: 64 of its 70 rows are asked for.
    assert found["bytes_read_per_sample"] == pytest.approx(2 * found["bytes_stored_per_sample"] * 70 / 64, rel=0.01)


def of_gpu(found: dict[str, Any]) -> None:
    """All that was looked at held, and nothing was left out that a CPU can do."""
    assert found["ok"] and len(found["checks"]) == 11
    variants = ["stock", "sft", "three passes", "shared prefix", "fed-back slots"]
    assert [step["variant"] for step in found["steps"]] == variants


def of_reading(found: dict[str, Any]) -> None:
    assert found["resume_exact"] and found["row_groups"] == 157


def of_checkpoint(found: dict[str, Any]) -> None:
    """Two ranks write a half of 12 bytes a weight each."""
    of_stage = found["zero"]["2"]
    trained = sum(of_stage["checkpoint"]["bytes"]) / 12
    assert of_stage["checkpoint"]["bytes"] == pytest.approx([trained * 6] * 2, rel=1e-4)
    assert 0.99 < trained / of_stage["parameters"] < 1.001
    assert sum(of_stage["model"]["bytes"]) == pytest.approx(2 * of_stage["parameters"], rel=1e-3)


FIGURES: dict[str, Callable[[dict[str, Any]], None]] = {
    "benchmarks.checkpoint": of_checkpoint,
    "benchmarks.gpu": of_gpu,
    "benchmarks.ingest": of_ingest,
    "benchmarks.reading": of_reading,
}
"""What holds of the figures of some."""


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Run]]]:
    """Runs of the modules whose tests were chosen."""
    chosen = [item.callspec.params["module"] for item in request.session.items if item.originalname == "test_it_runs"]
    with ThreadPoolExecutor(2) as pool:
        yield {module: pool.submit(run, module, tmp_path_factory.mktemp(module)) for module in chosen}


def run(module: str, folder: Path) -> Run:
    asked = Question("0", "own/words", (), "?", "red").row("own") | {"raw_output": "red"}
    pq.write_table(pa.Table.from_pylist([asked]), folder / "predictions.parquet")
    turns = [{"role": "user", "content": "What is red?"}, {"role": "assistant", "content": "a rose"}]
    (folder / "own").mkdir()
    for split in ("train", "test"):
        (folder / "own" / f"{split}.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 30)
    environment = {name: value for name, value in os.environ.items() if name != FOLDER} | {"PYTHONPATH": str(ROOT)}
    command = CONTEXT.Process(target=as_main, args=(module, SMALLEST[module].split(), folder, environment))
    command.start()
    command.join()
    return Run(command.exitcode, *((folder / name).read_text() for name in ("stdout", "stderr")))


def as_main(module: str, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """`python -m module arguments` in `folder`, in this process."""
    os.environ.clear()
    os.environ.update(environment)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), stream)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


@pytest.mark.parametrize("module", SMALLEST)
def test_it_runs(started: dict[str, Future[Run]], module: str) -> None:
    done = started[module].result()
    assert done.code == 0, done.stdout + done.stderr
    if module.startswith("benchmarks."):
        figures = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(figures, dict)
        FIGURES.get(module, lambda _: None)(figures)


def test_all_that_can_be_run_is_run() -> None:
    commands = list(documented())
    assert {module for _, module, _ in commands} | {f"benchmarks.{name}" for name in BENCHMARKS} == SMALLEST.keys()
    assert len(commands) > 30


def test_the_options_that_the_pages_name_are_there() -> None:
    """An option that was renamed is seen without a run, in the text of what reads it."""
    for page, module, options in documented():
        spec = find_spec(f"{module}.__main__") if (ROOT / module.replace(".", "/")).is_dir() else find_spec(module)
        assert spec is not None and spec.origin is not None, f"{page}: there is no {module}"
        text = Path(spec.origin).read_text()
        for option in options:
            assert f'"{option}"' in text, f"{page}: {module} has no {option}"
