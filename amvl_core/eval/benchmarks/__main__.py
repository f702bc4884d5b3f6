"""Scores from stored predictions, without a model:

    python -m amvl_core.eval.benchmarks vstar predictions.parquet [predictions-of-another-checkpoint.parquet]

prints the benchmark's table, and with a second file the paired comparison of the two.
"""

from __future__ import annotations

import argparse
import sys

from amvl_core.errors import AmvlError
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.scoring import (
    compare_checkpoints,
    predictions,
    readers,
    score_benchmark,
    score_table,
)
from amvl_core.eval.statistics import table


def main(arguments: list[str]) -> int:
    """Prints Markdown; 1 and a line on stderr where the predictions cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m amvl_core.eval.benchmarks", description="Scores stored predictions."
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("predictions", help="path or s3:// of a predictions.parquet")
    parser.add_argument("other", nargs="?", help="predictions of another checkpoint, compared item by item")
    given = parser.parse_args(arguments)
    benchmark = BENCHMARKS[given.benchmark]
    try:
        first = predictions(given.predictions, benchmark.name)
        shown = [score_table(benchmark, score_benchmark(benchmark, first))]
        if given.other:
            second = predictions(given.other, benchmark.name)
            shown.append(score_table(benchmark, score_benchmark(benchmark, second)))
            seeds = sorted({str(row["seed"]) for row in (*first, *second) if "seed" in row})
            for reading in readers(benchmark):
                if compared := compare_checkpoints(benchmark, first, second, reading):
                    shown.append(f"Read by {reading}:\n\n{table(compared, 'first', 'second', ', '.join(seeds) or '-')}")
    except AmvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
