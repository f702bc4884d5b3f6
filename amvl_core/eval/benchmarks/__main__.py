"""Scores from stored predictions, without a model:

    python -m amvl_core.eval.benchmarks vstar predictions.parquet [predictions-of-another-checkpoint.parquet]

prints the benchmark's table, and with a second file the paired comparison of the two. `test` is the test split of a
prepared dataset, with the tasks that are in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from amvl_core.contracts.errors import AmvlError, DataError
from amvl_core.contracts.records import TEST_SPLIT
from amvl_core.eval.benchmarks import BENCHMARKS, benchmark_of
from amvl_core.eval.benchmarks.scoring import (
    compare_checkpoints,
    predictions,
    readers,
    score_benchmark,
    score_table,
)
from amvl_core.eval.significance import table


def main(arguments: list[str]) -> int:
    """Prints Markdown; 1 and a line on stderr where the predictions cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m amvl_core.eval.benchmarks", description="Scores stored predictions."
    )
    parser.add_argument("benchmark", choices=[*BENCHMARKS, "test"])
    parser.add_argument("predictions", help="path or s3:// of a predictions.parquet")
    parser.add_argument("other", nargs="?", help="predictions of another checkpoint, compared item by item")
    given = parser.parse_args(arguments)
    name = TEST_SPLIT if given.benchmark == "test" else given.benchmark
    try:
        files = [_stored(uri, name) for uri in (given.predictions, given.other) if uri]
        benchmark = benchmark_of(name, (row["task"] for rows in files for row in rows))
        shown = [score_table(benchmark, score_benchmark(benchmark, rows)) for rows in files]
        if given.other:
            seeds = ", ".join(sorted({str(row["seed"]) for rows in files for row in rows if "seed" in row})) or "-"
            for reading in readers(benchmark):
                if compared := compare_checkpoints(benchmark, files[0], files[1], reading):
                    shown.append(f"Read by {reading}:\n\n{table(compared, 'first', 'second', seeds)}")
    except AmvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(shown))
    return 0


def _stored(uri: str, name: str) -> list[dict[str, Any]]:
    """The stored predictions of the benchmark; those of a test split are named by their sources and have no options."""
    if name != TEST_SPLIT:
        return predictions(uri, name)
    rows = predictions(uri)
    if published := sorted({row["benchmark"] for row in rows if json.loads(row["options"])}):
        raise DataError(f"{uri} holds predictions of {published[0]}, which is no test split; give that name")
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
