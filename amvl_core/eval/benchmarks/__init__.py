"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Iterable

from amvl_core.contracts.records import TEST_SPLIT
from amvl_core.eval.benchmarks.benchmark import Benchmark
from amvl_core.eval.benchmarks.blink import BLINK
from amvl_core.eval.benchmarks.cv_bench import CV_BENCH
from amvl_core.eval.benchmarks.hrbench import HRBENCH_4K, HRBENCH_8K
from amvl_core.eval.benchmarks.mmstar import MMSTAR
from amvl_core.eval.benchmarks.mmvp import MMVP
from amvl_core.eval.benchmarks.prepared import benchmark, test_split
from amvl_core.eval.benchmarks.visual_puzzles import VISUAL_PUZZLES
from amvl_core.eval.benchmarks.vsi_bench import VSI_BENCH, VSI_BENCH_VLMEVALKIT
from amvl_core.eval.benchmarks.vstar import VSTAR

BENCHMARKS: dict[str, Benchmark] = {
    "vstar": VSTAR,
    "hrbench_4k": HRBENCH_4K,
    "hrbench_8k": HRBENCH_8K,
    "blink": BLINK,
    "visual_puzzles": VISUAL_PUZZLES,
    "mmvp": MMVP,
    "cv_bench": CV_BENCH,
    "mmstar": MMSTAR,
    "vsi_bench": VSI_BENCH,
    "vsi_bench_vlmevalkit": VSI_BENCH_VLMEVALKIT,
    "microworld": benchmark("microworld"),
    "easy_vqa": benchmark("easy_vqa"),
    "nlvr": benchmark("nlvr"),
    "vsp_maze": benchmark("vsp_maze"),
}


def benchmark_of(name: str, tasks: Iterable[str]) -> Benchmark:
    """The benchmark that a record names: a published one, or the test split with these tasks."""
    return test_split(tasks) if name == TEST_SPLIT else BENCHMARKS[name]
