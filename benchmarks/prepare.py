"""Throughput, memory and restarts of preparation: `python -m benchmarks.prepare [--rows N] [--rounds N] [--kills N]`.

Three ways do the same job on the same photographs, all of which have to be scaled down, one after the other in each
round: this project on Ray Data; Hugging Face `datasets` with `num_proc` = cores and the same function for each image
(null where it is not installed); and the floor: decode, resize, encode in plain Pillow in one process per core. Peak
memory is the proportional set size of the driver, Ray and all workers together. The last line is one JSON object:
`rows_per_s`, `vs_floor` and `vs_datasets` (medians of the rounds), `peak_mib` by number of rows, `rerun_s` (everything
is done already) and, with `--kills`, how often a run that was killed at a random moment ended byte-identical.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from amvl_core import storage
from amvl_core.config import ChatJsonlSource, ClusterConfig, DataConfig, RunConfig
from amvl_core.presets import demo
from data_prep.images import JPEG_QUALITY, PixelBudget, StoredImage, budget_size, standardise

PHOTO = (1600, 1200)
BUDGET = PixelBudget(256 * 28 * 28, 1280 * 28 * 28, 28)
MEMORY_ROWS = (10_000, 100_000)
SAMPLE_EVERY_S = 0.25


def main() -> None:
    """Runs the parts in turn and prints what they gave."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="photographs of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, nargs="*", default=MEMORY_ROWS)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--run", nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        _prepare(_config(chosen.run[0], light=True), chosen.run[1])
        return
    with tempfile.TemporaryDirectory(prefix="amvl-benchmark-") as name:
        folder = Path(name)
        peak = {str(rows): _peak_mib(folder, rows) for rows in chosen.memory_rows}
        found = {**_throughput(folder, chosen.rows, chosen.rounds), "peak_mib": peak}
        if chosen.kills:
            found["kills_identical"] = f"{_kills(folder, chosen.kills)} of {chosen.kills}"
    print(json.dumps(found))


def _config(source: str, *, light: bool) -> RunConfig:
    """`light`: tiny images and many rows; else photographs."""
    base = demo()
    sizes = {"min_pixels": 256, "max_pixels": 4096} if light else {"min_pixels": BUDGET.min_pixels}
    chat = ChatJsonlSource(uri=source, name="photos")
    per_shard = 500 if light else 100
    data = DataConfig(sources=(chat,), target="answer", max_tokens=10**5, rows_per_shard=per_shard, **sizes)
    return base.model_copy(update={"data": data})


def _prepare(config: RunConfig, out: str) -> float:
    """Seconds that a preparation takes on a Ray that is there already."""
    from data_prep import pipeline
    from infra import cluster

    cluster.connect(ClusterConfig())
    started = time.perf_counter()
    pipeline.prepare(config, out, lambda _: None)
    return time.perf_counter() - started


def _throughput(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    source = folder / "photos"
    _write_source(source, rows, [_photo(seed) for seed in range(rows)])
    config = _config(str(source), light=False)
    _prepare(_config(str(_small_source(folder)), light=False), str(folder / "warm" / "out"))  # Ray starts its workers
    ways: dict[str, Callable[[int], float]] = {
        "amvl": lambda number: _prepare(config, str(folder / f"round-{number}" / "out")),
        "floor": lambda number: _floor(source),
    }
    if find_spec("datasets"):
        ways["datasets"] = lambda number: _datasets(source, folder / f"datasets-{number}")
    else:
        print("Hugging Face `datasets` is not installed; pip install datasets to compare with it", flush=True)
    speed: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            speed[name].append(rows / way(number))
            print(f"round {number + 1}: {name} {speed[name][-1]:.1f} rows/s", flush=True)
    rerun = _prepare(config, str(folder / f"round-{rounds - 1}" / "again"))
    print(f"everything done already: {rerun:.1f} s", flush=True)

    def against(name: str) -> float | None:
        pairs = zip(speed["amvl"], speed.get(name, []), strict=False)
        ratios = [ours / theirs for ours, theirs in pairs]
        return round(statistics.median(ratios), 2) if ratios else None

    return {
        "rows_per_s": round(statistics.median(speed["amvl"]), 1),
        "vs_floor": against("floor"),
        "vs_datasets": against("datasets"),
        "rerun_s": round(rerun, 1),
    }


def _floor(source: Path) -> float:
    files = sorted((source / "images").iterdir())
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(_cores()) as pool:
        for _ in pool.imap_unordered(_plain_pillow, files, chunksize=8):
            pass
    return time.perf_counter() - started


def _plain_pillow(file: Path) -> int:
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        small = image.convert("RGB").resize(budget_size(*image.size, BUDGET), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return len(buffer.getvalue())


def _datasets(source: Path, out: Path) -> float:
    """The same function for each image, as one would write it with `datasets`: map in processes, then Parquet."""
    import datasets

    datasets.disable_progress_bars()
    started = time.perf_counter()
    lines = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    rows = {
        "question": [line["messages"][0]["content"] for line in lines],
        "image": [line["images"][0] for line in lines],
    }
    table = datasets.Dataset.from_dict(rows).map(
        _standardised, fn_kwargs={"folder": str(source)}, num_proc=_cores(), load_from_cache_file=False
    )
    table.to_parquet(out)
    return time.perf_counter() - started


def _standardised(row: dict[str, Any], folder: str) -> dict[str, Any]:
    image = standardise(Path(folder, row["image"]).read_bytes(), BUDGET)
    assert isinstance(image, StoredImage)
    return {"data": image.data, "width": image.width, "height": image.height}


def _peak_mib(folder: Path, rows: int) -> int:
    """Peak memory of a preparation of `rows` small images in processes of its own."""
    source = folder / f"light-{rows}"
    _write_source(source, rows, [_png(seed) for seed in range(100)])
    child = _child(source, folder / f"peak-{rows}" / "out")
    peak = 0
    while child.poll() is None:
        peak = max(peak, _tree_bytes(child.pid))
        time.sleep(SAMPLE_EVERY_S)
    if child.returncode:
        raise SystemExit(f"the preparation of {rows} rows failed; its message is above")
    print(f"{rows} rows: peak {peak / 2**20:.0f} MiB", flush=True)
    return round(peak / 2**20)


def _child(source: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.prepare", "--run", str(source), str(out)])


def _tree_bytes(pid: int) -> int:
    total = 0
    for process in _tree(pid):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kills(folder: Path, times: int) -> int:
    """How many of `times` preparations, killed at a random moment and run again, end byte-identical."""
    source = folder / "killed-source"
    _write_source(source, 10_000, [_png(seed) for seed in range(100)])
    started = time.perf_counter()
    child = _child(source, folder / "whole" / "out")
    while child.poll() is None and not any((folder / "whole").glob("sources/*/*.json")):
        time.sleep(0.01)
    first = time.perf_counter() - started
    _finish(source, folder / "whole" / "out", child)
    length = time.perf_counter() - started
    expected, same, chosen = _digests(folder / "whole"), 0, random.Random(0)
    for number in range(times):
        out = folder / f"killed-{number}" / "out"
        child = _child(source, out)
        time.sleep(chosen.uniform(first - 1, length))  # before that only Ray is being started
        for process in _tree(child.pid):
            process.kill()
        child.wait()
        done = len(list(out.parent.glob("sources/*/*.json")))
        _finish(source, out)
        same += _digests(out.parent) == expected
        print(f"kill {number + 1}: {done} units were done; {same} of {number + 1} byte-identical", flush=True)
    return same


def _finish(source: Path, out: Path, child: subprocess.Popen[bytes] | None = None) -> None:
    if (child or _child(source, out)).wait():
        raise SystemExit("the preparation failed; its message is above")


def _digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file that counts; the records name the folder they are in, which differs."""
    files = (file for file in root.rglob("*") if file.suffix in (".parquet", ".html") and not file.name.startswith("."))
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _small_source(folder: Path) -> Path:
    _write_source(folder / "small", 8 * _cores(), [_photo(seed) for seed in range(8 * _cores())])
    return folder / "small"


def _write_source(folder: Path, rows: int, images: list[bytes]) -> None:
    for number, data in enumerate(images):
        storage.write_bytes(f"{folder}/images/{number:05d}", data)
    with open(folder / "train.jsonl", "w") as file:
        for row in range(rows):
            messages = [
                {"role": "user", "content": f"<image>What is on picture {row}?"},
                {"role": "assistant", "content": "Clouds."},
            ]
            file.write(json.dumps({"messages": messages, "images": [f"images/{row % len(images):05d}"]}) + "\n")


def _photo(seed: int) -> bytes:
    """A JPEG with the statistics of a soft photograph: noise of several scales."""
    generator = np.random.default_rng(seed)
    layers = [
        Image.fromarray(generator.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(PHOTO) for n in (5, 40, 300)
    ]
    mixed = Image.blend(Image.blend(layers[0], layers[1], 0.3), layers[2], 0.2)
    return _encoded(mixed, "JPEG", quality=90)


def _png(seed: int) -> bytes:
    return _encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)), "PNG")


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
