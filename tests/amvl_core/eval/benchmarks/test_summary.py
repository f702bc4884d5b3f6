"""What an evaluation's record holds, from stored rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amvl_core.contracts.errors import DataError
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Question
from amvl_core.eval.benchmarks.prepared import test_split as whole_split
from amvl_core.eval.benchmarks.scoring import LIKELIHOOD, compare_checkpoints, score_benchmark, score_table
from amvl_core.eval.benchmarks.summary import summarise

OPTIONS = {"A": "red", "B": "blue"}


def stored(task: str, answer: str, output: str, number: int, group: str = "", **columns: Any) -> dict[str, Any]:
    question = Question(f"{task}/{number}", task, (), "?", answer, group=group)
    return {**question.row("source"), "raw_output": output, **columns}


ROWS = [
    stored("s/a", "yes", "yes", 0),
    stored("s/a", "no", "yes", 1),
    stored("s/b", "2", "two steps\n2", 2),
    stored("s/a", "yes", "<answer>yes</answer>", 3),
]


def test_the_test_split_is_scored_by_task_and_over_all_items() -> None:
    benchmark = whole_split(row["task"] for row in ROWS)
    scores, overall, readings = summarise(benchmark, ROWS, {"s/a": "yes", "s/b": "1"})
    assert [(s.task, s.n, s.accuracy, s.majority) for s in scores] == [("s/a", 3, 1 / 3, 2 / 3), ("s/b", 1, 1, 0.0)]
    assert (overall.task, overall.n, overall.accuracy, overall.majority) == ("all", 4, 0.5, 0.5)
    assert (round(overall.low, 4), round(overall.high, 4)) == (0.15, 0.85)  # Wilson's, of 2 in 4
    assert {r.reading: r.scores[0].value for r in readings} == {"exact match": 0.5, "unwrapped": 0.75}


def test_questions_about_one_image_make_the_interval_wider() -> None:
    """Ten questions about each of ten images, all ten right or all wrong: ten observations, not a hundred."""
    rows = [stored("s/a", "yes", "yes" if i % 20 < 10 else "no", i, group=f"image {i // 10}") for i in range(100)]
    overall = summarise(whole_split(["s/a"]), rows, {})[1]
    assert overall.accuracy == 0.5
    assert overall.high - overall.low > 0.5  # Wilson's for 100 is 0.19 wide


def test_of_a_macro_mean_every_task_counts_alike() -> None:
    rows = [
        {**Question(f"val_{task}_{i}", task, (), "?", "A", OPTIONS).row("blink"), "raw_output": output}
        for task, outputs in (("Jigsaw", "AAB"), ("IQ_Test", "B"))
        for i, output in enumerate(outputs)
    ]
    scores, overall, readings = summarise(BENCHMARKS["blink"], rows)
    assert (overall.task, overall.n, overall.majority) == ("overall", 4, 1.0)
    assert overall.accuracy == pytest.approx((2 / 3 + 0) / 2)
    assert {s.task: s.accuracy for s in scores} == {
        "average of seven": pytest.approx(1 / 3),
        "micro": 0.5,
        "IQ_Test": 0.0,
        "Jigsaw": pytest.approx(2 / 3),
    }
    assert [r.reading for r in readings] == ["lmms-eval", "VLMEvalKit", "unwrapped"]


def test_the_likeliest_candidate_is_a_reading_of_its_own() -> None:
    def row(number: int, answer: str, scores: list[float]) -> dict[str, Any]:
        question = Question(f"q{number}", "direct_attributes", (), "?", answer, OPTIONS)
        likely = {"candidates": json.dumps(["A", "B"]), "log_likelihoods": json.dumps(scores)}
        return {**question.row("vstar"), "raw_output": "A", **likely}

    vstar = BENCHMARKS["vstar"]
    rows = [row(0, "A", [-1.0, -2.0]), row(1, "A", [-3.0, -0.5]), row(2, "B", [-3.0, -0.5]), row(3, "A", [-1.0, -1.0])]
    found = score_benchmark(vstar, rows)
    assert (found[LIKELIHOOD].scores["overall"].n, found[LIKELIHOOD].scores["overall"].value) == (4, 0.75)
    with pytest.raises(DataError, match=r"q1: the log-likelihoods of its options are \[nan, -0.5\]"):
        score_benchmark(vstar, [row(1, "A", [float("nan"), -0.5])])
    # A row without candidates (a free-text question) is not among them.
    without = {**rows[1], "sample_id": "q4", "candidates": "[]", "log_likelihoods": "[]"}
    found = score_benchmark(vstar, [*rows, without])
    assert found[LIKELIHOOD].scores["overall"].n == 4
    assert "75.00 (30.06-95.44), n = 4" in score_table(vstar, found)
    ((_, compared), *_) = compare_checkpoints(vstar, rows, [row(i, "A", [0.0, -1.0]) for i in range(4)], LIKELIHOOD)
    assert (compared.n, compared.gained, compared.lost) == (4, 1, 0)
    # Two models that were given candidates for other questions are not compared by them.
    fewer = [*rows[:3], {**rows[3], "candidates": "[]", "log_likelihoods": "[]"}]
    assert (
        compare_checkpoints(vstar, rows, fewer, LIKELIHOOD) == compare_checkpoints(vstar, fewer, rows, LIKELIHOOD) == []
    )
    assert dict(compare_checkpoints(vstar, rows, fewer))["overall"].n == 4
