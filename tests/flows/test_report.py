from amvl_core.records import DatasetRecord, DroppedExample, EvalRecord, SourceReport, TaskScore
from flows import report


def evaluation(stage: str, source: str = "microworld", extra: tuple[TaskScore, ...] = ()) -> EvalRecord:
    score = TaskScore(
        task=f"{source}/odd_one_out", n=1200, correct=900, accuracy=0.75, low=0.725, high=0.774, majority=0.3
    )
    overall = score.model_copy(update={"task": "all"})
    return EvalRecord(
        uri="u", fingerprint="f", checkpoint="c", stage=stage, dataset="d", scores=[score, *extra], overall=overall
    )


def test_score_rows_hold_both_models_and_the_majority_answer() -> None:
    first, last = report.score_rows(evaluation("sft"), evaluation("amvl"))
    assert first == {
        "task": "odd one out",
        "n": "1,200",
        "majority": "30.0%",
        "base model (sft)": "75.0% (72.5-77.4)",
        "AMVL": "75.0% (72.5-77.4)",
    }
    assert last["task"] == "all"


def test_of_a_mixture_the_source_is_named_and_a_missing_score_is_a_dash() -> None:
    other = TaskScore(task="nlvr/all", n=2, correct=1, accuracy=0.5, low=0.1, high=0.9, majority=0.5)
    rows = report.score_rows(evaluation("base"), evaluation("amvl", extra=(other,)))
    assert [row["task"] for row in rows] == ["microworld/odd one out", "nlvr/all", "all"]
    assert rows[1]["base model"] == "-"


def test_drop_rows_account_for_every_sample() -> None:
    example = DroppedExample(sample_id="s7", detail="no answer")
    reports = [
        SourceReport(
            source="chat",
            split="train",
            read=10,
            kept=6,
            dropped={"no_answer": 1, "too_long": 3},
            examples={"no_answer": [example]},
        )
    ]
    dataset = DatasetRecord(
        uri="u",
        fingerprint="f",
        schema_version=1,
        shards=[],
        kept=6,
        dropped={"no_answer": 1, "too_long": 3},
        reports=reports,
    )
    rows = report.drop_rows(dataset)
    assert [(row["outcome"], row["samples"]) for row in rows] == [
        ("kept", 6),
        ("dropped: too_long", 3),
        ("dropped: no_answer", 1),
    ]
    assert rows[2]["examples"] == "s7: no answer"
    assert sum(row["samples"] for row in rows) == rows[0]["read"]


def test_the_page_shows_the_line_and_the_newest_warnings() -> None:
    assert report.page_text("sft: 1/2", []) == "`sft: 1/2`"
    text = report.page_text("sft: 1/2", [f"warning {i}" for i in range(12)])
    assert text.startswith("`sft: 1/2`\n\n**Warnings**\n\n- warning 11\n- warning 10\n")
    assert text.endswith("- warning 2")


def test_markdown_escapes_what_would_break_a_cell() -> None:
    assert report.markdown_table([]) == ""
    assert report.markdown_table([{"a": "x|y", "b": 1}]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
