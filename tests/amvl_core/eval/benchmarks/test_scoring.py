"""Predict, store, then score: everything a score needs is in the stored rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.records import TEST_SPLIT, DatasetRecord, Shard, save_record
from amvl_core.eval.benchmarks import BENCHMARKS, benchmark_of
from amvl_core.eval.benchmarks.__main__ import main
from amvl_core.eval.benchmarks.benchmark import Question
from amvl_core.eval.benchmarks.scoring import (
    compare_checkpoints,
    draw,
    headline,
    predictions,
    score_benchmark,
    score_table,
)
from amvl_core.eval.benchmarks.summary import summarise
from amvl_core.eval.significance import table as comparison_table
from tests.amvl_core.eval.benchmarks import published
from tests.shards import sample_of, table

VSTAR, PUZZLES = BENCHMARKS["vstar"], BENCHMARKS["visual_puzzles"]
COLOURS = {"A": "red", "B": "blue", "C": "green", "D": "grey"}


def rows(outputs: list[str], answer: str = "B", task: str = "direct_attributes") -> list[dict[str, str]]:
    """Predictions of a model that wrote `outputs`."""
    asked = [Question(f"q{i}", task, (), "?", answer, COLOURS) for i in range(len(outputs))]
    return [{**question.row("vstar"), "raw_output": text} for question, text in zip(asked, outputs, strict=True)]


def test_a_bar_in_the_name_of_a_task_is_no_cell() -> None:
    asked = rows(["B"], task="own/left|right")
    benchmark = benchmark_of(TEST_SPLIT, ["own/left|right"])
    for shown in (
        score_table(benchmark, score_benchmark(benchmark, asked)),
        comparison_table(compare_checkpoints(benchmark, asked, asked, "exact match"), "first", "second", "0"),
    ):
        assert "| own/left\\|right | 1 |" in shown


def test_both_scores_stand_side_by_side() -> None:
    found = score_benchmark(VSTAR, rows(["B", "Answer: (B)", "\\boxed{B}", "no idea"]))
    right = {name: round(4 * reading.scores["overall"].value) for name, reading in found.items()}
    assert right == {"lmms-eval": 1, "VLMEvalKit": 3, "unwrapped": 3}
    # lmms-eval reads "Answer: (B)" as A, and neither of the two last texts.
    unanswered = {name: reading.unanswered for name, reading in found.items()}
    assert unanswered == {"lmms-eval": 2, "VLMEvalKit": 1, "unwrapped": 1}
    assert found["unwrapped"].scores["spatial"].n == 0


def test_a_random_fallback_is_drawn_by_item_and_counted() -> None:
    undecided = rows(["[no]"] * 400, task="spatial")
    found = score_benchmark(PUZZLES, undecided)["lmms-eval"]
    assert found.drawn == 400
    # A uniform draw is right one time in four: 100 of 400, standard deviation 8.7; measured here once and for all.
    assert abs(400 * found.scores["overall"].value - 100) < 3 * 8.7
    assert score_benchmark(PUZZLES, undecided)["lmms-eval"] == found
    assert {draw(f"q{i}", "AB") for i in range(20)} == {"A", "B"}
    assert draw("q", []) in "ABCD"


def test_none_of_the_options_is_wrong_and_counted() -> None:
    found = score_benchmark(PUZZLES, rows(["B", "Answer: B"], task="spatial"))["VLMEvalKit"]
    assert (found.scores["overall"].value, found.unanswered, found.drawn) == (0.5, 1, 0)


def test_paired_comparison_of_two_checkpoints() -> None:
    first, second = rows(["A"] * 20 + ["B"] * 20), rows(["B"] * 40)
    compared = dict(compare_checkpoints(VSTAR, first, second))
    assert list(compared) == ["overall", "attribute"]
    overall = compared["overall"]
    assert (overall.n, overall.gained, overall.lost, overall.difference) == (40, 20, 0, 0.5)
    with pytest.raises(DataError, match="1 only in the second, 39 in both"):
        compare_checkpoints(VSTAR, first[:-1], second)


def test_the_paper_stands_beside_ours() -> None:
    lines = score_table(VSTAR, score_benchmark(VSTAR, rows(["B"] * 10))).splitlines()
    head, _, overall, *_, unread, drawn = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert head[:7] == [
        *("", "n", "lmms-eval", "VLMEvalKit", "unwrapped"),
        *("AMVL (AMVL paper)", "SFT (AMVL paper)"),
    ]
    assert overall[:7] == ["overall", "10", *["100.00 (72.25-100.00)"] * 3, "84.29", "81.68"]
    assert overall[head.index("VaLR-S (VaLR paper)")] == "86.40"
    assert unread[:5] == ["no answer read", "", "0", "0", "0"]
    assert drawn[:6] == ["drawn for the harness", "", "0", "0", "0", ""]


def test_scores_come_from_the_stored_file_alone(tmp_path: Path) -> None:
    stored = rows(["B", "A"])
    path = tmp_path / "predictions.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "temperature": 0.0} for row in stored]), path)
    assert score_benchmark(VSTAR, predictions(str(path), "vstar")) == score_benchmark(VSTAR, stored)
    with pytest.raises(DataError, match="holds no predictions of blink, but of vstar"):
        predictions(str(path), "blink")
    pq.write_table(pa.Table.from_pylist([{"sample_id": "q0", "raw_output": "B"}]), path)
    with pytest.raises(DataError, match="no column benchmark"):
        predictions(str(path), "vstar")


def test_prepared_test_splits_go_through_the_same_interface(tmp_path: Path) -> None:
    samples = [
        sample_of(f"{s}/{i}", "<image>What colour?", "red", [published.picture(i // 2)], source=s, task="colour")
        for i, s in enumerate(["easy_vqa", "easy_vqa", "nlvr"])
    ]
    pq.write_table(table(samples), tmp_path / "test.parquet")
    shard = Shard(file="test.parquet", split="test", rows=3, sha256="")
    fields = {"uri": str(tmp_path), "fingerprint": "0", "schema_version": 1, "kept": 3, "dropped": {}, "reports": []}
    save_record(DatasetRecord.model_validate({**fields, "shards": [shard]}))
    benchmark = BENCHMARKS["easy_vqa"]
    asked = [item for item in benchmark.read(str(tmp_path)) if isinstance(item, Question)]
    assert [(item.item_id, item.prompt, item.answer, item.images) for item in asked] == [
        (f"easy_vqa/{i}", "<image>What colour?", "red", (published.picture(0),)) for i in range(2)
    ]
    assert asked[0].task == "easy_vqa/colour"
    assert asked[0].group == asked[1].group  # two questions about one image
    stored = [
        {**item.row("easy_vqa"), "raw_output": text} for item, text in zip(asked, ["Red.", "It is\nblue"], strict=True)
    ]
    found = score_benchmark(benchmark, stored)
    assert {name: reading.scores["overall"].value for name, reading in found.items()} == {
        "exact match": 0.5,
        "unwrapped": 0.5,
    }
    with pytest.raises(DataError, match="holds no prepared dataset"):
        list(benchmark.read(str(tmp_path / "elsewhere")))


def test_an_output_that_is_the_gold_answer_is_right_under_every_reading() -> None:
    golds = ["1. open\n2. close", "name: cup\nnumber: 2", "{\n}", "?", "...", ".5", "-3/4", "5!", "Answer: 5\nBye."]
    asked = [Question(str(i), "own/words", (), "?", gold) for i, gold in enumerate(golds)]
    stored = [{**item.row("own"), "raw_output": f"I look.\n{item.answer}\n"} for item in asked]
    found = score_benchmark(benchmark_of(TEST_SPLIT, ["own/words"]), stored)
    assert {name: reading.scores["all"].value for name, reading in found.items()} == {"exact match": 1, "unwrapped": 1}
    assert headline(benchmark_of(TEST_SPLIT, []), stored)[0] == ("1. open\n2. close", True)
    # The majority's answer is compared in the same way.
    assert summarise(benchmark_of(TEST_SPLIT, ["own/words"]), stored[:1])[1].majority == 1


def test_command_line_scores_one_file_and_compares_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("first.parquet", "second.parquet")]
    for file, outputs in zip(files, (["A"] * 8 + ["B"] * 2, ["B"] * 10), strict=True):
        pq.write_table(pa.Table.from_pylist([row | {"seed": 3} for row in rows(outputs)]), file)
    assert main(["vstar", files[0]]) == 0
    assert capsys.readouterr().out.startswith("|  | n | lmms-eval | VLMEvalKit | unwrapped | AMVL (AMVL paper)")
    assert main(["vstar", *files]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| overall | 10 | 20.00 (5.67-50.98) | 100.00 (72.25-100.00) | +80.00") == 3
    assert shown.count("| 8 / 0 | 0.0078 | McNemar exact | 3 |") == 6
    assert main(["vstar", str(tmp_path / "none.parquet")]) == 1
    assert "none.parquet: it does not exist" in capsys.readouterr().err


def test_command_line_scores_a_test_split_by_the_tasks_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [Question(f"{i}", ("nlvr/nlvr", "easy_vqa/colour")[i % 2], (), "?", "red") for i in range(10)]
    files = [str(tmp_path / name) for name in ("first.parquet", "second.parquet")]
    for file, texts in zip(files, (["blue"] * 10, ["red", "blue"] * 5), strict=True):
        rows_of = [
            {**item.row(item.task.partition("/")[0]), "raw_output": text}
            for item, text in zip(asked, texts, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows_of), file)
    assert main(["test", files[1]]) == 0
    shown = [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["| ", "n", "exact match"]
    assert shown[2:5] == [
        ["| all", "10", "50.00 (23.66-76.34)"],
        ["| easy_vqa/colour", "5", "0.00 (0.00-43.45)"],
        ["| nlvr/nlvr", "5", "100.00 (56.55-100.00)"],
    ]
    assert main(["test", *files]) == 0
    assert "| nlvr/nlvr | 5 | 0.00 (0.00-43.45) | 100.00 (56.55-100.00) | +100.00" in capsys.readouterr().out
    pq.write_table(pa.Table.from_pylist(rows(["B"])), files[0])
    assert main(["test", files[0]]) == 1
    assert "holds predictions of vstar, which is no test split" in capsys.readouterr().err
