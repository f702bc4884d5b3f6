"""Throughput, memory and restarts of preparation: `python -m benchmarks.prepare [--rows N] [--rounds N] [--kills N]`.

Four ways do the same job on the same images, one after the other in each round:
- this project on Ray Data;
- the floor: decode, resize, encode in plain Pillow in one process per core;
- Hugging Face `datasets` with `num_proc` = cores as it is commonly used: its `Image` feature decodes, a function checks
  and resizes with Pillow, its `Image` feature encodes (PNG, whatever the image was before), then Parquet;
- `datasets` that maps this project's own function over encoded bytes: what is left is one pipeline against the other.

On two sources: photographs that all have to be scaled down, and a mixture of the sizes that the paper's sources have
(`benchmarks/pictures.py`). Where `datasets` is not installed its figures are null.

The last line is one JSON object. For the photographs: `rows_per_s`, and `vs_floor`, `vs_datasets` and
`vs_datasets_same_function` (medians of the rounds' ratios); the same for the `mixture`; `rerun_s` (everything is done
already). For light rows, by their number: `peak_mib`, the proportional set size of driver, Ray and all workers, and
`seconds`. With `--cores`: `rows_per_s_by_cores`, photographs. With `--kills`: how often a run that was killed at a
random moment and run again ended byte-identical.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from amvl_core.contracts.config import ClusterConfig, DataConfig, RunConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sources import ChatJsonlSource
from benchmarks import pictures
from data_prep.images import JPEG_QUALITY, MAX_ASPECT, MIN_SIDE, PixelBudget, StoredImage, budget_size, standardise

BUDGET = PixelBudget(256 * 28 * 28, 1280 * 28 * 28, 28)
MEMORY_ROWS = (10_000, 100_000)
KILL_ROWS = 4_000
SCALING_ROWS = 1_200
SHARD_ROWS, KILL_SHARD_ROWS, PHOTO_SHARD_ROWS, FEW_SHARD_ROWS = 500, 50, 200, 20
SAMPLE_EVERY_S = 0.25

Source = Callable[[Path, int], Path]


def main() -> None:
    """Runs the parts in turn and prints what they gave."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="images of each round; 0 leaves throughput out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, nargs="*", default=MEMORY_ROWS)
    parser.add_argument("--cores", type=int, nargs="*", default=(), help="numbers of cores to prepare photographs on")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--light", nargs=3, metavar=("SOURCE", "OUT", "SHARD_ROWS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.light:
        source, out, shard_rows = chosen.light
        print(_prepare(_light(source, int(shard_rows)), out))
        return
    with tempfile.TemporaryDirectory(prefix="amvl-benchmark-") as name:
        print(json.dumps(_measure(Path(name), chosen)))


def _measure(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    memory = {str(rows): _peak(folder, rows) for rows in chosen.memory_rows}
    found: dict[str, Any] = {}
    if chosen.rows:
        # Once, as Ray starts its workers with it:
        _prepare(_photos(str(_few(folder, chosen.rows)), FEW_SHARD_ROWS), str(folder / "warm" / "out"))
        found = _throughput(folder / "photographs", pictures.photographs, chosen.rows, chosen.rounds)
        found["mixture"] = _throughput(folder / "mixture", pictures.mixture, chosen.rows, chosen.rounds)
    found["peak_mib"] = {rows: peak for rows, (peak, _) in memory.items()}
    found["seconds"] = {rows: seconds for rows, (_, seconds) in memory.items()}
    if chosen.cores:
        rows = chosen.rows or SCALING_ROWS
        found["rows_per_s_by_cores"] = _scaling(folder / "cores", rows, chosen.rounds, chosen.cores)
    if chosen.kills:
        found["kills_identical"] = f"{_kills(folder / 'kills', chosen.kills)} of {chosen.kills}"
    return found


def _light(source: str, shard_rows: int) -> RunConfig:
    """Tiny images and many rows."""
    return _config(source, rows_per_shard=shard_rows, min_pixels=256, max_pixels=4096)


def _photos(source: str, shard_rows: int = PHOTO_SHARD_ROWS) -> RunConfig:
    """Images of the paper's budget; a tenth of the paper's rows in a shard, so that there are several for each core."""
    return _config(source, rows_per_shard=shard_rows, min_pixels=BUDGET.min_pixels, max_pixels=BUDGET.max_pixels)


def _config(source: str, **data: int) -> RunConfig:
    chat = ChatJsonlSource(uri=source, name="photos")
    images = DataConfig(sources=(chat,), target="answer", max_tokens=10**5, **data)
    return PRESETS["demo"]().model_copy(update={"data": images})


def _prepare(config: RunConfig, out: str) -> float:
    """Seconds that a preparation takes on a Ray that is there already."""
    from data_prep import pipeline
    from infra import cluster

    cluster.connect(ClusterConfig())
    started = time.perf_counter()
    pipeline.prepare(config, out, lambda _: None)
    return time.perf_counter() - started


def _throughput(folder: Path, make: Source, rows: int, rounds: int) -> dict[str, Any]:
    source = make(folder / "source", rows)
    config = _photos(str(source))
    ways: dict[str, Callable[[int], float]] = {
        "amvl": lambda number: _prepare(config, str(folder / f"round-{number}" / "out")),
        "floor": lambda number: _floor(source),
    }
    if find_spec("datasets"):
        ways["datasets"] = lambda number: _datasets(source, folder / f"datasets-{number}")
        ways["datasets_same_function"] = lambda number: _datasets_same_function(source, folder / f"same-{number}")
    else:
        print("Hugging Face `datasets` is not installed; pip install datasets to compare with it", flush=True)
    speed: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            speed[name].append(rows / way(number))
            print(f"{folder.name}, round {number + 1}: {name} {speed[name][-1]:.1f} rows/s", flush=True)
    rerun = _prepare(config, str(folder / f"round-{rounds - 1}" / "again"))

    def against(name: str) -> float | None:
        pairs = zip(speed["amvl"], speed.get(name, []), strict=False)
        ratios = [ours / theirs for ours, theirs in pairs]
        return round(statistics.median(ratios), 2) if ratios else None

    return {
        "rows_per_s": round(statistics.median(speed["amvl"]), 1),
        "vs_floor": against("floor"),
        "vs_datasets": against("datasets"),
        "vs_datasets_same_function": against("datasets_same_function"),
        "rerun_s": round(rerun, 1),
    }


def _floor(source: Path) -> float:
    files = [str(source / line["images"][0]) for line in _lines(source)]
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(_cores()) as pool:
        for _ in pool.imap_unordered(_plain_pillow, files, chunksize=8):
            pass
    return time.perf_counter() - started


def _plain_pillow(file: str) -> int:
    buffer = io.BytesIO()
    with Image.open(file) as image:
        pixels = image if image.mode in ("RGB", "L") else image.convert("RGB")
        small = pixels.resize(budget_size(*image.size, BUDGET), Image.Resampling.BICUBIC)
        if image.format == "JPEG":
            small.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        else:
            small.save(buffer, "PNG", compress_level=3)
    return len(buffer.getvalue())


def _datasets(source: Path, out: Path) -> float:
    """As one writes it with `datasets`; an image that need not be resized keeps its bytes here too."""
    import datasets

    datasets.disable_progress_bars()
    started = time.perf_counter()
    table = datasets.Dataset.from_dict(_rows(source)).cast_column("image", datasets.Image())
    table = table.map(_resized, num_proc=_cores(), load_from_cache_file=False)
    table.to_parquet(out)
    return time.perf_counter() - started


def _resized(row: dict[str, Any]) -> dict[str, Any]:
    image = row["image"]
    assert min(image.size) >= MIN_SIDE and max(image.size) <= MAX_ASPECT * min(image.size)
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    width, height = budget_size(image.width, image.height, BUDGET)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return {"image": image, "width": width, "height": height}


def _datasets_same_function(source: Path, out: Path) -> float:
    import datasets

    datasets.disable_progress_bars()
    started = time.perf_counter()
    table = datasets.Dataset.from_dict(_rows(source)).map(_standardised, num_proc=_cores(), load_from_cache_file=False)
    table.to_parquet(out)
    return time.perf_counter() - started


def _standardised(row: dict[str, Any]) -> dict[str, Any]:
    image = standardise(Path(row["image"]).read_bytes(), BUDGET)
    assert isinstance(image, StoredImage)
    return {"data": image.data, "width": image.width, "height": image.height}


def _rows(source: Path) -> dict[str, list[str]]:
    lines = _lines(source)
    return {
        "question": [line["messages"][0]["content"] for line in lines],
        "image": [str(source / line["images"][0]) for line in lines],
    }


def _lines(source: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]


def _scaling(folder: Path, rows: int, rounds: int, cores: Sequence[int]) -> dict[str, float]:
    """Rows per second of photographs on so many cores, the median of the rounds; each in processes of its own."""
    source, few = pictures.photographs(folder / "source", rows), _few(folder, rows)
    speed: dict[int, list[float]] = {count: [] for count in cores}
    for number in range(rounds):
        for count in cores:
            out = folder / f"{count}-{number}"
            code = (
                f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{count}])\n"
                "from benchmarks.prepare import FEW_SHARD_ROWS, _photos, _prepare\n"
                f"_prepare(_photos({str(few)!r}, FEW_SHARD_ROWS), {str(out / 'warm' / 'out')!r})\n"
                f"print(_prepare(_photos({str(source)!r}), {str(out / 'timed' / 'out')!r}))"
            )
            done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
            speed[count].append(rows / float(done.stdout.split()[-1]))
            print(f"{count} cores: {speed[count][-1]:.1f} rows/s", flush=True)
    return {str(count): round(statistics.median(found), 1) for count, found in speed.items()}


def _peak(folder: Path, rows: int) -> tuple[int, float]:
    """Peak memory in MiB of a preparation of `rows` small images in processes of its own, and its seconds."""
    source = pictures.light(folder / f"light-{rows}", rows)
    child = _child(source, folder / f"peak-{rows}" / "out", SHARD_ROWS, stdout=subprocess.PIPE)
    peak = 0
    while child.poll() is None:
        peak = max(peak, _tree_bytes(child.pid))
        time.sleep(SAMPLE_EVERY_S)
    if child.returncode:
        raise SystemExit(f"the preparation of {rows} rows failed; its message is above")
    assert child.stdout is not None
    seconds = float(child.stdout.read().split()[-1])
    print(f"{rows} rows: peak {peak / 2**20:.0f} MiB, {seconds:.0f} s", flush=True)
    return round(peak / 2**20), round(seconds, 1)


def _child(source: Path, out: Path, shard_rows: int, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    arguments = ["-m", "benchmarks.prepare", "--light", str(source), str(out), str(shard_rows)]
    return subprocess.Popen([sys.executable, *arguments], stdout=stdout)


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
    """How many of `times` preparations, killed at a random moment and run again, end byte-identical.

    The moments lie between the first finished unit and the end. The second run is one in this process, whose Ray is
    there already.
    """
    source = pictures.light(folder / "source", KILL_ROWS)
    whole = folder / "whole" / "out"
    child = _child(source, whole, KILL_SHARD_ROWS)
    _wait_for_a_unit(child, whole)
    started = time.perf_counter()
    while child.poll() is None and not (whole / "record.json").exists():
        time.sleep(0.01)
    length = time.perf_counter() - started
    if child.wait():
        raise SystemExit("the preparation failed; its message is above")
    expected, same, chosen = _digests(whole.parent), 0, random.Random(0)
    for number in range(times):
        out = folder / f"killed-{number}" / "out"
        child = _child(source, out, KILL_SHARD_ROWS)
        _wait_for_a_unit(child, out)
        time.sleep(chosen.uniform(0, length))
        for process in _tree(child.pid):
            process.kill()
        child.wait()
        done = len(list(out.parent.glob("sources/*/*-*.json")))
        _prepare(_light(str(source), KILL_SHARD_ROWS), str(out))
        same += _digests(out.parent) == expected
        print(f"kill {number + 1}: {done} units were done; {same} of {number + 1} byte-identical", flush=True)
    return same


def _wait_for_a_unit(child: subprocess.Popen[bytes], out: Path) -> None:
    while child.poll() is None and not any(out.parent.glob("sources/*/*-*.json")):
        time.sleep(0.01)


def _digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file that counts; the records name the folder they are in, which differs."""
    files = (file for file in root.rglob("*") if file.suffix in (".parquet", ".html") and not file.name.startswith("."))
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _few(folder: Path, rows: int) -> Path:
    return pictures.photographs(folder / "few", min(rows, 2 * FEW_SHARD_ROWS * _cores()))


def _cores() -> int:
    from infra.cluster import cores  # not above: the floor's processes import this file, and need no Ray

    return cores()


if __name__ == "__main__":
    main()
