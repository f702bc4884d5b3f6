from __future__ import annotations

from collections.abc import Sequence

import pytest

from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Outcome
from amvl_core.eval.significance import Estimate, estimate


def outcomes(groups: Sequence[tuple[str, str, str]], group: str = "") -> list[Outcome]:
    """One (task, part, right and wrong as digits) after another."""
    rows = [(task, part, digit == "1") for task, part, digits in groups for digit in digits]
    return [Outcome(str(i), task, part, group, right) for i, (task, part, right) in enumerate(rows)]


def metric(benchmark: str, name: str, found: Sequence[Outcome]) -> Estimate:
    return estimate(BENCHMARKS[benchmark].metrics[name](found))


def test_vstar_is_a_mean_over_items() -> None:
    found = outcomes([("direct_attributes", "", "1" * 89 + "0" * 26), ("relative_position", "", "1" * 57 + "0" * 19)])
    shares = [100 * metric("vstar", name, found).value for name in ("overall", "attribute", "spatial")]
    assert [f"{share:.2f}" for share in shares] == ["76.44", "77.39", "75.00"]  # the base model of Table 1


def test_hrbench_is_the_mean_of_its_rotations_also_where_one_is_incomplete() -> None:
    found = outcomes([("single", "0", "11"), ("single", "1", "10"), ("cross", "0", "00"), ("cross", "1", "1")])
    assert metric("hrbench_4k", "FSP", found).value == 0.75
    assert metric("hrbench_4k", "overall", found).value == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert metric("hrbench_4k", "FCP", found).n == 3


def test_rotations_of_a_question_make_the_interval_wider() -> None:
    answers = "1" * 120 + "0" * 80
    rows = [
        Outcome(f"{q}/{t}", "single", str(t), f"question {q}", answers[q] == "1") for q in range(200) for t in range(4)
    ]
    together = metric("hrbench_4k", "overall", rows)
    alone = metric("hrbench_4k", "overall", [row._replace(group="") for row in rows])
    # A model that answers all four rotations alike has been asked 200 questions: 1.96 sqrt(.24 / 200) = 6.8 points.
    assert (together.high - together.low) / 2 == pytest.approx(0.068, abs=0.003)
    assert (alone.high - alone.low) / 2 == pytest.approx(0.034, abs=0.003)


def test_blink_overall_is_a_macro_mean() -> None:
    found = outcomes([("Jigsaw", "", "1000"), ("Counting", "", "11"), ("IQ_Test", "", "0")])
    assert metric("blink", "overall", found).value == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert metric("blink", "average of seven", found).value == pytest.approx(1 / 8)
    assert metric("blink", "micro", found).value == 3 / 7
    assert metric("blink", "Relative_Depth", found).n == 0


def test_mmvp_counts_a_pair_only_if_both_are_right() -> None:
    rows = [("pair 1", True), ("pair 1", True), ("pair 2", True), ("pair 2", False), ("pair 3", True)]
    found = [Outcome(str(i), "all", "", pair, right) for i, (pair, right) in enumerate(rows)]
    assert metric("mmvp", "question", found).value == 4 / 5
    pairs = metric("mmvp", "pair", found)  # pair 3 lacks its second question
    assert (pairs.n, pairs.value, pairs.method) == (2, 0.5, "wilson")


def test_cv_bench_weighs_its_sources() -> None:
    found = outcomes([("Count", "ADE20K", "10"), ("Count", "COCO", "1"), ("Depth", "Omni3D", "1000")])
    assert metric("cv_bench", "overall", found).value == pytest.approx(((0.5 + 1) / 2 + 0.25) / 2)
    assert metric("cv_bench", "micro", found).value == 3 / 7


def test_mmstar_is_the_mean_of_six_categories() -> None:
    found = outcomes([("math", "", "1000"), ("logical reasoning", "", "1")])
    assert metric("mmstar", "overall", found).value == pytest.approx(0.625)
