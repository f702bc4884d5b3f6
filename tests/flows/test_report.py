from amvl_core.contracts.records import (
    TEST_SPLIT,
    DatasetRecord,
    DroppedExample,
    EvalRecord,
    FaithfulnessRecord,
    MetricScore,
    ReadingScore,
    SourceReport,
    TaskScore,
    VariantScore,
)
from amvl_core.eval.significance import Comparison, Unit, compare
from amvl_core.methods.amvl.config import AmvlMethod
from flows import report
from infra.tracking import MAX_NOTE


def comparison(changed: int) -> Comparison:
    """100 items of which `changed` were wrong before."""
    before = [Unit(str(i), float(i >= changed)) for i in range(100)]
    return compare(before, [Unit(str(i), 1.0) for i in range(100)])


def evaluation(
    stage: str, source: str = "microworld", extra: tuple[TaskScore, ...] = (), read: int = 1100
) -> EvalRecord:
    """Of 1,200 questions, of which `read` have candidates."""
    score = TaskScore(task=f"{source}/odd_one_out", n=1200, accuracy=0.75, low=0.725, high=0.774, majority=0.3)
    overall = score.model_copy(update={"task": "all"})
    metric = MetricScore(metric="all", n=read, value=0.5, low=0.4, high=0.6)
    readings = [
        ReadingScore(reading=name, scores=[metric], unanswered=3, drawn=0) for name in ("exact match", "likelihood")
    ]
    return EvalRecord(
        uri="u",
        fingerprint="f",
        checkpoint="c",
        stage=stage,
        dataset="d",
        scores=[score, *extra],
        overall=overall,
        readings=readings,
    )


def test_score_rows_hold_both_models_and_never_a_difference_without_interval_p_test_and_seed() -> None:
    compared = {
        "exact match": {"microworld/odd_one_out": comparison(10), "all": comparison(0)},
        "likelihood": {"all": comparison(20)},
    }
    first, likely, last = report.score_rows(evaluation("sft"), evaluation("amvl"), compared, seed=3)
    assert first == {
        "task": "odd one out",
        "n": "1,200",
        "majority": "30.0%",
        "base model (sft)": "75.0% (72.5-77.4)",
        "AMVL": "75.0% (72.5-77.4)",
        "difference": "+10.0 (+5.0 to +16.0)",
        "p": "0.0020",
        "test": "McNemar exact",
        "seed": "3",
    }
    assert (likely["task"], likely["n"], likely["AMVL"]) == ("all, likelihood", "1,100", "50.0% (40.0-60.0)")
    assert (likely["difference"], likely["p"]) == ("+20.0 (+12.0 to +28.0)", "< 0.0001")
    assert (last["task"], last["difference"], last["p"]) == ("all", "+0.0 (-3.7 to +3.7)", "1.0000")


def test_a_reading_of_fewer_questions_has_no_majority_of_others_and_says_how_many_the_base_was_asked() -> None:
    _, likely, last = report.score_rows(evaluation("sft", read=25), evaluation("amvl", read=50), {}, seed=3)
    assert (likely["n"], likely["majority"]) == ("50", "-") and last["majority"] == "30.0%"
    assert (likely["base model (sft)"], likely["AMVL"]) == ("50.0% (40.0-60.0), n = 25", "50.0% (40.0-60.0)")
    _, all_read, _ = report.score_rows(evaluation("sft", read=1200), evaluation("amvl", read=1200), {}, seed=3)
    assert all_read["majority"] == "30.0%" and all_read["base model (sft)"] == "50.0% (40.0-60.0)"


def test_of_a_mixture_the_source_is_named_and_a_missing_score_is_a_dash() -> None:
    other = TaskScore(task="nlvr/all", n=2, accuracy=0.5, low=0.1, high=0.9, majority=0.5)
    rows = report.score_rows(evaluation("base"), evaluation("amvl", extra=(other,)), {}, seed=0)
    assert [row["task"] for row in rows] == ["microworld/odd one out", "nlvr/all", "all, likelihood", "all"]
    assert [rows[1][name] for name in ("base model", "difference", "p", "test")] == ["-"] * 4


def published(stage: str, value: float) -> EvalRecord:
    metrics = [MetricScore(metric=name, n=100, value=value, low=0.1, high=0.9) for name in ("overall", "attribute")]
    readings = [
        ReadingScore(reading=name, scores=metrics, unanswered=4, drawn=drawn)
        for name, drawn in (("lmms-eval", 7), ("unwrapped", 0))
    ]
    score = TaskScore(task="overall", n=100, accuracy=value, low=0.1, high=0.9, majority=0.4)
    return EvalRecord(
        uri="u",
        fingerprint="f",
        benchmark="vstar",
        checkpoint="c",
        stage=stage,
        dataset="d",
        scores=[],
        overall=score,
        readings=readings,
    )


def test_benchmark_rows_stand_beside_the_paper_under_every_reading_the_headline_first() -> None:
    compared = {"unwrapped": {"overall": comparison(10)}}
    rows = report.benchmark_rows(published("sft", 0.5), published("amvl", 0.6), compared, 3, AmvlMethod)
    assert [(row["metric"], row["read by"]) for row in rows] == [
        ("overall", "unwrapped"),
        ("attribute", "unwrapped"),
        ("overall", "lmms-eval"),
        ("attribute", "lmms-eval"),
    ]
    assert list(rows[0].items())[2:] == [
        ("n", "100"),
        ("base model (sft)", "50.0% (10.0-90.0)"),
        ("AMVL", "60.0% (10.0-90.0)"),
        ("difference", "+10.0 (+5.0 to +16.0)"),
        ("p", "0.0020"),
        ("test", "McNemar exact"),
        ("seed", "3"),
        ("AMVL (AMVL paper)", "84.29"),
        ("SFT (AMVL paper)", "81.68"),
        ("Qwen2.5-VL-7B (AMVL paper)", "76.44"),
    ]
    assert rows[1]["difference"] == "-"


def test_notes_count_what_was_not_asked_and_what_was_not_read() -> None:
    questions = DatasetRecord(
        uri="u", fingerprint="f", schema_version=1, shards=[], kept=189, dropped={"missing_image": 2}, reports=[]
    )
    notes = report.benchmark_notes(questions, published("sft", 0.5), published("amvl", 0.6))
    assert notes.startswith("189 of 191 published questions; 2 dropped: missing_image; ")
    assert "AMVL, lmms-eval: 4 without an answer, 7 drawn for the harness" in notes


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
    assert report.markdown_table([{"a": "x|y\nz", "b": 1}]) == "| a | b |\n| --- | --- |\n| x\\|y z | 1 |"


def test_a_note_of_many_tasks_keeps_the_whole_and_says_what_is_elsewhere() -> None:
    rows = [{"task": f"task {i}", "score": f"{i}.0% (1.0-2.0)"} for i in range(999)] + [{"task": "all", "score": "1"}]
    note = report.note(rows)
    lines = note.split("\n")
    shown = len(lines) - 5  # two of the head, the whole, and what is said below
    assert lines[2 + shown] == "| all | 1 |"
    assert lines[-1] == f"{999 - shown:,} more rows are in `tables/scores.md`."
    assert MAX_NOTE - 140 < len(note) <= MAX_NOTE
    assert report.note(rows[-3:]) == report.markdown_table(rows[-3:])


def test_a_variant_is_never_shown_without_its_interval_and_p() -> None:
    def variant(name: str, difference: float) -> VariantScore:
        return VariantScore(
            variant=name,
            n=1200,
            accuracy=0.5,
            low=0.47,
            high=0.53,
            difference=difference,
            difference_low=difference - 0.01,
            difference_high=difference + 0.01,
            p_value=0.00001,
            test="McNemar exact",
            log_likelihood=-3.0,
            log_likelihood_low=-3.1,
            log_likelihood_high=-2.9,
            log_likelihood_difference=0.0,
            log_likelihood_difference_low=-0.05,
            log_likelihood_difference_high=0.05,
            log_likelihood_p=0.25,
        )

    record = FaithfulnessRecord(
        uri="/f",
        fingerprint="f",
        benchmark=TEST_SPLIT,
        checkpoint="c",
        stage="amvl",
        dataset="d",
        rows=[variant("unchanged", 0.0), variant("swapped", -0.02)],
        verdict="",
    )
    prior, swapped = report.faithfulness_rows(record, seed=3)
    assert prior["difference, points"] == prior["p"] == ""
    assert swapped == {
        "latents": "swapped",
        "n": "1,200",
        "accuracy": "50.0% (47.0-53.0)",
        "difference, points": "-2.0 (-3.0 to -1.0)",
        "p": "< 0.0001",
        "test": "McNemar exact",
        "log-likelihood, nats": "-3.00 (-3.10 to -2.90)",
        "difference, nats": "+0.000 (-0.050 to +0.050)",
        "p, nats": "0.2500",
        "seed": "3",
    }
