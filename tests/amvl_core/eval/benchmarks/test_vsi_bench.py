"""VSI-Bench: questions about videos, numbers that are nearly right, two harnesses, and what is dropped."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from amvl_core.data.video import uniform_indices
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Outcome, Question, SkippedQuestion
from amvl_core.eval.benchmarks.scoring import compare_checkpoints, headline, score_benchmark
from amvl_core.eval.benchmarks.summary import summarise
from amvl_core.eval.benchmarks.vsi_bench import DIRECTIONS, FREQUENCY, NUMERIC, SIZES, TASKS, VSI_BENCH, grade
from amvl_core.eval.significance import estimate
from tests.amvl_core.eval.benchmarks import published
from tests.videos import mp4, number_of


def questions(name: str, folder: Path) -> list[Question]:
    found = list(BENCHMARKS[name].read(str(folder)))
    assert all(isinstance(item, Question) for item in found), found
    return sorted((item for item in found if isinstance(item, Question)), key=lambda item: int(item.item_id[10:]))


def test_questions_come_video_by_video_with_its_frames(tmp_path: Path) -> None:
    published.vsi_bench(tmp_path)
    read = [item for item in VSI_BENCH.read(str(tmp_path)) if isinstance(item, Question)]
    assert [item.group for item in read] == ["scannet/scene0.mp4"] * 5 + ["scannet/scene1.mp4"] * 5
    assert [[number_of(frame) for frame in item.images] for item in (read[0], read[-1])] == [
        uniform_indices(40, 32),
        uniform_indices(33, 32),
    ]
    assert {item.task for item in read} == set(SIZES)
    assert sum(SIZES.values()) == VSI_BENCH.size == 5130


def test_prompts_are_those_of_the_two_harnesses(tmp_path: Path) -> None:
    published.vsi_bench(tmp_path)
    number, _, _, _, choice, *_ = questions("vsi_bench", tmp_path)
    assert number.prompt == (
        "These are frames of a video.\nHow many chairs are in this room?\n"
        "Please answer the question using a single word or phrase."
    )
    assert choice.prompt == (
        "These are frames of a video.\nWhich is closest to the door?\nOptions:\nA. bed\nB. sofa\nC. lamp\nD. table\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (choice.options, choice.answer) == ({"A": "bed", "B": "sofa", "C": "lamp", "D": "table"}, "C")
    assert (number.options, number.answer, number.asked) == ({}, "4", "How many chairs are in this room?")
    number, _, _, _, choice, *_ = questions("vsi_bench_vlmevalkit", tmp_path)
    assert number.prompt == (
        "These are frames of a video.\nHow many chairs are in this room?\n"
        "Answer briefly and directly in one float number."
    )
    assert choice.prompt == (
        "These are frames of a video.\nWhich is closest to the door?\nA. bed\nB. sofa\nC. lamp\nD. table\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_what_is_no_question_is_a_drop_with_its_reason(tmp_path: Path) -> None:
    changes: dict[int, dict[str, Any]] = {
        0: {"scene_name": "none"},
        2: {"scene_name": "short"},
        4: {"scene_name": "broken"},
        6: {"question_type": "object_colour"},
        8: {"ground_truth": "Z"},
        9: {"options": None},
        1: {"ground_truth": "many"},
        3: {"ground_truth": 10**400},
    }
    published.vsi_bench(tmp_path, changes)
    (tmp_path / "scannet" / "short.mp4").write_bytes(mp4(31))
    (tmp_path / "scannet" / "broken.mp4").write_bytes(mp4(40)[:-300])
    found = list(VSI_BENCH.read(str(tmp_path)))
    drops = {item.place: (item.reason, item.detail) for item in found if isinstance(item, SkippedQuestion)}
    assert {place: reason for place, (reason, _) in drops.items()} == {
        "test.jsonl/0": "missing_video",
        "test.jsonl/1": "malformed_row",
        "test.jsonl/2": "too_few_frames",
        "test.jsonl/3": "malformed_row",
        "test.jsonl/4": "unreadable_video",
        "test.jsonl/6": "unknown_question_type",
        "test.jsonl/8": "answer_not_among_options",
        "test.jsonl/9": "malformed_row",
    }
    assert drops["test.jsonl/2"][1] == "scannet/short.mp4: 31 frames, 32 are asked for"
    assert len(found) == 10


def mra(prediction: float, target: float) -> float:
    """Of ten thresholds .5, .55 ... .95, how many a relative error passes, as the paper of VSI-Bench defines it."""
    passed = [abs(prediction - target) / target <= 1 - (0.5 + 0.05 * i) + 1e-12 for i in range(10)]
    return sum(passed) / 10


@pytest.mark.parametrize(
    ("answer", "score"), [("20", 1.0), ("19", 1.0), ("18", 0.9), ("10", 0.1), ("9.9", 0.0), ("30", 0.1), ("-20", 0.0)]
)
def test_a_number_scores_its_mean_relative_accuracy(answer: str, score: float) -> None:
    assert grade(answer, "20", {}) == pytest.approx(score, abs=1e-12) == mra(float(answer), 20)


def stored(outputs: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    return [
        {**item.row("vsi_bench"), "raw_output": outputs.get(item.task, "A")} for item in questions("vsi_bench", folder)
    ]


READ = [
    # output, gold, lmms-eval, VLMEvalKit, ours
    ("4", "4", 1.0, 1.0, 1.0),
    ("There are 4 chairs.", "4", 1.0, 1.0, 1.0),
    ("four", "4", 1.0, 1.0, 1.0),
    ("2 sofas and 4 chairs", "4", 0.1, 1.0, 0.0),  # lmms-eval reads the first number, VLMEvalKit the last
    ("<think>2</think><answer>4</answer>", "4", 0.1, 1.0, 1.0),
    ("1,200", "1200", 0.0, 0.0, 1.0),
    ("about 12 m2", "12", 1.0, 0.0, 1.0),
    ("1.2e3 cm", "1200", 0.0, 1.0, 1.0),
    ("many", "4", 0.0, 0.0, 0.0),
    (200 * "hundred ", "4", 0.0, 0.0, 0.0),  # no float is as large
]


@pytest.mark.parametrize(("output", "gold", "lmms", "vlmevalkit", "ours"), READ)
def test_a_number_is_read_in_three_ways(output: str, gold: str, lmms: float, vlmevalkit: float, ours: float) -> None:
    row = {**Question("q", "object_counting", (), "?", gold).row("vsi_bench"), "raw_output": output}
    found = {name: reading.scores["overall"].value for name, reading in score_benchmark(VSI_BENCH, [row]).items()}
    assert found == pytest.approx({"lmms-eval": lmms, "VLMEvalKit": vlmevalkit, "unwrapped": ours})


@pytest.mark.parametrize(
    ("output", "lmms", "vlmevalkit"),
    [("B", 1, 1), ("b.", 1, 0), ("B. right", 1, 1), ("(B)", 0, 1), ("The answer is B", 0, 1), ("right", 0, 0)],
)
def test_a_letter_is_read_in_two_ways(output: str, lmms: float, vlmevalkit: float) -> None:
    options = {"A": "left", "B": "right"}
    row = {**Question("q", DIRECTIONS[0], (), "?", "B", options).row("vsi_bench"), "raw_output": output}
    found = score_benchmark(VSI_BENCH, [row])
    assert [found[name].scores["overall"].value for name in ("lmms-eval", "VLMEvalKit")] == [lmms, vlmevalkit]


def outcomes(scores: dict[str, tuple[float, int]]) -> list[Outcome]:
    return [
        Outcome(f"{kind}/{i}", kind, "", f"video {i % 3}", score)
        for kind, (score, n) in scores.items()
        for i in range(n)
    ]


def test_the_macro_and_the_question_weighted_mean() -> None:
    scores = {kind: (i / 10, 3 + i) for i, kind in enumerate(SIZES)}
    found = outcomes(scores)
    value = {name: estimate(metric(found)).value for name, metric in VSI_BENCH.metrics.items()}
    direction = sum(scores[kind][0] for kind in DIRECTIONS) / 3
    tasks = [*(scores[kind][0] for kind in SIZES if kind not in DIRECTIONS), direction]
    assert value["object_rel_direction"] == pytest.approx(direction)
    assert value["overall"] == pytest.approx(sum(tasks) / 8)
    weighted = sum(score * n for score, n in scores.values()) / sum(n for _, n in scores.values())
    assert value["question-weighted"] == pytest.approx(weighted)
    assert list(value) == ["overall", "question-weighted", *TASKS]


def test_scores_between_0_and_1_go_through_the_whole_chain(tmp_path: Path) -> None:
    published.vsi_bench(tmp_path)
    rows = stored({"object_counting": "3", "room_size_estimation": "20.4", "object_rel_distance": "C"}, tmp_path)
    scores, overall, readings = summarise(VSI_BENCH, rows)
    by_task = {score.task: score.accuracy for score in scores}
    # 3 for 4 is off by a quarter, which 6 of 10 thresholds allow; "A" is no number.
    assert [by_task[kind] for kind in NUMERIC] == pytest.approx([0.6, 0, 0, 1])
    assert by_task["object_rel_direction"] == pytest.approx(1 / 3)
    assert overall.accuracy == pytest.approx((0.6 + 1 + 1 + 1 / 3 + 1) / 8)
    assert by_task["question-weighted"] == pytest.approx(4.6 / 10)
    assert [reading.reading for reading in readings] == ["lmms-eval", "VLMEvalKit", "unwrapped"]
    assert dict(zip((row["task"] for row in rows), headline(VSI_BENCH, rows), strict=True))["object_counting"] == (
        "3.0",
        pytest.approx(0.6),
    )
    better = stored({"object_counting": "4", "room_size_estimation": "20.4", "object_rel_distance": "C"}, tmp_path)
    compared = dict(compare_checkpoints(VSI_BENCH, rows, better))
    assert compared["object_counting"].difference == pytest.approx(0.4)
    assert compared["question-weighted"].difference == pytest.approx(0.04)
    assert (compared["overall"].test, compared["overall"].gained, compared["overall"].lost) == ("sign flips", 1, 0)


def test_the_frequency_baseline_is_that_of_each_type_of_question() -> None:
    def row(number: int, kind: str, gold: str, options: dict[str, str]) -> dict[str, Any]:
        return {**Question(f"q{number}", kind, (), "?", gold, options).row("vsi_bench"), "raw_output": ""}

    sides, corners = dict.fromkeys("AB", ""), dict.fromkeys("ABCD", "")
    rows = [row(i, "object_counting", gold, {}) for i, gold in enumerate(("2", "2", "4", "3"))]
    rows += [row(10 + i, DIRECTIONS[0], gold, sides) for i, gold in enumerate("AAB")]
    rows += [row(20 + i, DIRECTIONS[2], gold, corners) for i, gold in enumerate("DCDD")]
    baseline = {score.task: score.majority for score in summarise(VSI_BENCH, rows)[0]}
    assert baseline["object_counting"] == pytest.approx((1 + 1 + mra(2, 4) + mra(2, 3)) / 4)
    assert baseline["object_rel_direction"] == pytest.approx((2 / 3 + 3 / 4) / 2)


def test_the_printed_frequency_baseline_is_not_the_mean_of_its_tasks() -> None:
    printed = [VSI_BENCH.published[task][FREQUENCY] for task in TASKS]
    assert round(fmean(printed), 1) == 35.5
