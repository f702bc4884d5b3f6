from amvl_core.progress import Progress
from amvl_core.records import (
    DatasetRecord,
    DroppedExample,
    EvalRecord,
    FaithfulnessRecord,
    SourceReport,
    TaskScore,
    VariantScore,
)
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


def test_a_progress_line_shows_what_a_person_watches() -> None:
    metrics = {"loss": 1.25, "kl_forward": 0.5, "posterior_norm": 3.0, "tokens_per_s": 1000.0}
    line = report.progress_line(Progress("amvl", 5, 200, "steps", 65.0, metrics))
    assert line == "amvl: 5/200 steps  loss 1.25  kl_forward 0.5  tokens_per_s 1,000  1:05 left"


def test_markdown_escapes_what_would_break_a_cell() -> None:
    assert report.markdown_table([]) == ""
    assert report.markdown_table([{"a": "x|y", "b": 1}]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


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
        )

    record = FaithfulnessRecord(
        uri="/f",
        fingerprint="f",
        checkpoint="c",
        stage="amvl",
        dataset="d",
        rows=[variant("prior", 0.0), variant("swapped", -0.02)],
        verdict="",
    )
    prior, swapped = report.faithfulness_rows(record)
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
    }
