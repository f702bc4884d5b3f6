"""The paper's figures against themselves: a share of n questions can only take certain values."""

from __future__ import annotations

import pytest

from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.blink import SEVEN
from amvl_core.eval.benchmarks.blink import SIZES as BLINK_SIZES
from amvl_core.eval.benchmarks.paper import PAPER
from amvl_core.eval.benchmarks.visual_puzzles import SIZES as PUZZLE_SIZES

SIZES = {
    "vstar": {"overall": 191, "attribute": 115, "spatial": 76},
    "hrbench_4k": {"overall": 800, "FSP": 400, "FCP": 400},
    "hrbench_8k": {"overall": 800, "FSP": 400, "FCP": 400},
    "blink": BLINK_SIZES,
    "visual_puzzles": {"overall": sum(PUZZLE_SIZES.values()), **PUZZLE_SIZES},
}
NO_SHARE = {("hrbench_4k", "FSP", "SFT")}  # 78.28, see paper.py


@pytest.mark.parametrize("benchmark", PAPER)
def test_every_figure_is_a_share_of_the_questions(benchmark: str) -> None:
    wrong = set()
    for metric, scores in PAPER[benchmark].items():
        assert metric in BENCHMARKS[benchmark].metrics
        for model, score in scores.items():
            n = SIZES[benchmark].get(metric)
            # Printed with two digits: half a unit of the last one, and rounding either way at the half.
            if n and abs(100 * round(score * n / 100) / n - score) > 0.005 + 1e-9:
                wrong.add((benchmark, metric, model))
    assert wrong == {item for item in NO_SHARE if item[0] == benchmark}


@pytest.mark.parametrize("model", ["AMVL", "Qwen2.5-VL-7B"])
def test_the_average_of_seven_is_the_mean_of_its_tasks(model: str) -> None:
    scores = [PAPER["blink"][task][model] for task in SEVEN]
    # Of seven figures rounded to .01 the mean is off by .005 at most; it is rounded once more.
    assert sum(scores) / 7 == pytest.approx(PAPER["blink"]["average of seven"][model], abs=0.01)
    assert [benchmark.size for benchmark in (BENCHMARKS["blink"], BENCHMARKS["visual_puzzles"])] == [1901, 1168]
