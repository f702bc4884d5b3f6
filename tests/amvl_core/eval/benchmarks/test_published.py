"""The papers' figures against themselves: a share of n questions can only take certain values."""

from __future__ import annotations

from statistics import fmean

import pytest

from amvl_core.contracts.method import configurations
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.blink import SEVEN
from amvl_core.eval.benchmarks.blink import SIZES as BLINK_SIZES
from amvl_core.eval.benchmarks.published import published_scores
from amvl_core.eval.benchmarks.visual_puzzles import SIZES as PUZZLE_SIZES
from amvl_core.eval.benchmarks.vsi_bench import SIZES as VSI_SIZES
from amvl_core.eval.benchmarks.vsi_bench import TASKS

AMVL, VALR = (configurations()[name].published() for name in ("amvl", "valr"))
SIZES = {
    "vstar": {"overall": 191, "attribute": 115, "spatial": 76},
    "hrbench_4k": {"overall": 800, "FSP": 400, "FCP": 400},
    "hrbench_8k": {"overall": 800, "FSP": 400, "FCP": 400},
    "blink": BLINK_SIZES,
    "visual_puzzles": {"overall": sum(PUZZLE_SIZES.values()), **PUZZLE_SIZES},
    "mmvp": {"question": 300},
}
NO_SHARE = {("hrbench_4k", "FSP", "SFT")}
"""78.28, see `amvl_core/methods/amvl/published.py`."""


@pytest.mark.parametrize(("paper", "digits"), [(AMVL, 2), (VALR, 1)])
def test_every_figure_is_of_a_metric_and_a_share_of_the_questions(paper: dict, digits: int) -> None:
    wrong = set()
    for benchmark, metrics in paper.items():
        for metric, scores in metrics.items():
            assert metric in BENCHMARKS[benchmark].metrics
            for model, score in scores.items():
                n = SIZES.get(benchmark, {}).get(metric)
                # Half a unit of the last digit printed, and rounding either way at the half.
                if n and abs(100 * round(score * n / 100) / n - score) > 0.5 * 10**-digits + 1e-9:
                    wrong.add((benchmark, metric, model))
    assert wrong == (NO_SHARE if paper is AMVL else set())


@pytest.mark.parametrize("model", ["AMVL", "Qwen2.5-VL-7B"])
def test_the_average_of_seven_is_the_mean_of_its_tasks(model: str) -> None:
    scores = [AMVL["blink"][task][model] for task in SEVEN]
    # Of seven figures rounded to .01 the mean is off by .005 at most; it is rounded once more.
    assert sum(scores) / 7 == pytest.approx(AMVL["blink"]["average of seven"][model], abs=0.01)
    assert [benchmark.size for benchmark in (BENCHMARKS["blink"], BENCHMARKS["visual_puzzles"])] == [1901, 1168]


def test_the_average_that_valr_prints_is_question_weighted() -> None:
    """Of every model but the base: 33.0 is neither mean."""
    printed = VALR["vsi_bench"]
    sizes = {task: sum(VSI_SIZES[kind] for kind in kinds) for task, kinds in TASKS.items()}
    off = {}
    for model, score in printed["question-weighted"].items():
        weighted = sum(printed[task][model] * n for task, n in sizes.items()) / sum(sizes.values())
        off[model] = abs(weighted - score)
        assert printed["overall"][model] == pytest.approx(fmean(printed[task][model] for task in TASKS), abs=0.005)
    # Both are rounded to .1: off by .1 at most; the worst measured is .07.
    assert max(value for model, value in off.items() if model != "Qwen2.5-VL-7B") < 0.1 < off["Qwen2.5-VL-7B"]


def test_columns_name_whose_figures_they_are() -> None:
    columns = published_scores(BENCHMARKS["vsi_bench"], [configurations()["valr"]])
    assert columns["most frequent answer (vsi_bench paper)"]["overall"] == "34.00"
    assert (columns["VaLR-M (VaLR paper)"]["overall"], columns["VaLR-M (VaLR paper)"]["question-weighted"]) == (
        "51.70",
        "52.90",
    )
    assert published_scores(BENCHMARKS["mmvp"], [configurations()["amvl"]]) == {}
