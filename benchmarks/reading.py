"""Reading a dataset of 100 million rows: `python -m benchmarks.reading [--rows N] [--ranks N] [--batch N]`.

Shards with as many rows as the paper's are written as preparation writes them, with pictures of 8 x 8: `DISTINCT` of
them, each linked under as many names as the rows take, in a temporary folder. So footers, row groups and columns are
real, of every file, and nothing is kept of it afterwards. The files lie in memory: what a storage takes is not in the
seconds.

The last line is one JSON object, of one process:

- `index_one_s`, `index_share_s`: for the index (rows and tokens of each row group, 64 held-out samples), as one process
  reads all of it and as each of `ranks` reads its share;
- `order_s`: from the index to the samples of the first step; `step_s`: of a later step in the same window, with its
  division over the ranks; `resume_s`: of a step in the third epoch that nothing came before, and `resume_exact`
  whether it is what a process that comes from the steps before it has;
- `first_rows_s`: from the index to the rows of this rank's share of the first step;
- `row_group_s`: to open a file that is not open, and to read a row group of it (of small pictures);
- `rss_before_mib`, `rss_index_mib`, `rss_mib`, `peak_mib`: resident memory before, with the index, and in the end; and
  the most at any time;
- `open_files`: in the end, after rows of `files_read` shards.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import DatasetRecord, Shard
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.order import Sizes, epoch_order, global_batch, micro_batches
from amvl_core.data.reader import ShardReader
from benchmarks.tiny import picture
from data_prep.shards import SCHEMA_VERSION, ShardRow, ShardWriter, shard_name

DISTINCT = 20
HELDOUT = 64
STEPS = 20
FILES_READ = 300

Found = TypeVar("Found")


def main() -> None:
    """Prints the JSON line."""
    paper = PRESETS["paper"]()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--ranks", type=int, default=256, help="that share the index and each batch")
    parser.add_argument("--batch", type=int, default=1024, help="samples of an optimiser step")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvl-reading-") as folder:
        dataset = write(Path(folder), chosen.rows, paper.data.rows_per_shard)
        print(json.dumps(measure(dataset, chosen.ranks, chosen.batch, paper.stages["amvl"].micro_tokens)))


def write(folder: Path, rows: int, rows_per_shard: int) -> DatasetRecord:
    """A dataset of `rows`, all of them training data; its last shard may be short."""
    whole, rest = divmod(rows, rows_per_shard)
    shards = []
    for number in range(whole + (rest > 0)):
        count = rows_per_shard if number < whole else rest
        file = folder / shard_name("train", number)
        if number < DISTINCT or number == whole:
            _shard(file, number, count)
        else:
            os.link(folder / shard_name("train", number % DISTINCT), file)
        shards.append(Shard(file=file.name, split="train", rows=count, sha256=f"{number:064x}"))
    return DatasetRecord(
        uri=str(folder),
        fingerprint="made",
        schema_version=SCHEMA_VERSION,
        shards=shards,
        kept=rows,
        dropped={},
        reports=[],
    )


def _shard(file: Path, number: int, rows: int) -> None:
    tokens = np.random.default_rng(number).lognormal(6.8, 0.6, rows).clip(64, 4096).astype(int)
    image, writer = picture(number, 8, 8), ShardWriter(file)
    for row, count in enumerate(tokens.tolist()):
        name = f"made/{number}-{row}"
        sample = StoredSample(name, "made", "colour", "<image>What is shown?", (), (), "a colour", (image,))
        writer.write(ShardRow(sample, [(8, 8)], count))
    writer.close()


def measure(dataset: DatasetRecord, ranks: int, batch: int, budget: int) -> dict[str, Any]:
    """What the JSON line says."""
    before, reader = _rss(), ShardReader(dataset, "train")
    share_s, _ = _timed(lambda: reader.index(0, ranks, HELDOUT, 0))
    index_s, sizes = _timed(lambda: reader.sizes(6, heldout=HELDOUT))
    indexed = _rss()
    order_s, first = _timed(lambda: _divided(0, sizes, ranks, batch, budget))
    rows_s, _ = _timed(lambda: [reader[int(row)] for micro in first for row in micro])
    steps = [_timed(partial(_divided, number, sizes, ranks, batch, budget))[0] for number in range(1, STEPS)]
    late = 2 * sizes.trained // batch + 7
    came = [global_batch(0, step, batch, sizes) for step in range(late - 3, late + 1)][-1]
    epoch_order.cache_clear()
    resume_s, found = _timed(lambda: global_batch(0, late, batch, sizes))
    files = np.unique(np.linspace(0, len(reader.uris) - 1, FILES_READ).astype(int)).tolist()
    groups = [_timed(partial(reader.__getitem__, int(reader.starts[file])))[0] for file in files]
    return {
        "rows": len(reader),
        "shards": len(reader.uris),
        "row_groups": len(sizes.block_rows),
        "ranks": ranks,
        "batch": batch,
        "index_one_s": round(index_s, 3),
        "index_share_s": round(share_s, 3),
        "order_s": round(order_s, 3),
        "first_rows_s": round(order_s + rows_s, 3),
        "step_s": round(statistics.median(steps), 4),
        "resume_s": round(resume_s, 3),
        "resume_exact": bool((came == found).all()),
        "row_group_s": round(statistics.median(groups), 4),
        "rss_before_mib": before,
        "rss_index_mib": indexed,
        "rss_mib": _rss(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "files_read": len(files),
        "open_files": len(psutil.Process().open_files()),
    }


def _divided(step: int, sizes: Sizes, ranks: int, batch: int, budget: int) -> list[np.ndarray]:
    """The micro-batches of rank 0."""
    whole = global_batch(0, step, batch, sizes)
    return [turn[0] for turn in micro_batches(whole, sizes.num_tokens, ranks, budget)]


def _timed(work: Callable[[], Found]) -> tuple[float, Found]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _rss() -> int:
    """Resident memory in MiB."""
    return int(psutil.Process().memory_info().rss) // 2**20


if __name__ == "__main__":
    main()
