from amvl_core.contracts.progress import Advice, Progress, history_from_json, history_to_json
from amvl_core.methods.amvl.config import AmvlMethod

COLUMNS = AmvlMethod.columns
FULL = {
    "loss": 1.2345678,
    "ntp": 0.75,
    "kl_forward": 12.3456,
    "kl_reverse": 3.2e-5,
    "posterior_norm": 3.0,
    "tokens_per_s": 10941.3,
    "data_wait": 0.0123,
    "gpu_memory_gib": 61.23,
}


def test_a_line_says_how_far_how_good_how_fast_and_how_long() -> None:
    line = Progress("amvl", 1210, 10548, "steps", 7985.0, FULL, COLUMNS).line()
    assert line == (
        "amvl:  1,210/10,548  loss 1.235  ntp 0.750  kl 12.35 3e-05   10.9k tok/s  wait  1.2%   61.2 GiB  2:13:05 left"
    )


def test_the_held_out_loss_stands_in_the_place_of_the_wait() -> None:
    plain, held = (
        Progress("amvl", 1210, 10548, "steps", 7985.0, {**FULL, **found}, COLUMNS).line()
        for found in ({}, {"heldout_ntp": 0.8125})
    )
    assert held == plain.replace("wait  1.2%", "held 0.812")


def test_lines_of_a_stage_stand_below_each_other() -> None:
    values = (0.0, 0.9999, 9.9996, 12.3456, 99.996, 999.96, 99_999.0, 4e-4, 123_456_789.0)
    steps = (1, 10, 100, 1000, 10_000, 2, 3, 4, 5)
    lines = [
        Progress(
            "amvl", done, 10_548, "steps", 7985.0, {**FULL, "loss": value, "data_wait": 0.5, "ntp": value}, COLUMNS
        ).line()
        for done, value in zip(steps, values, strict=True)
    ]
    assert len({len(line) for line in lines}) == 1
    assert len({line.index("tok/s") for line in lines}) == 1


def test_the_longest_lines_of_the_paper_s_run_fit_a_terminal() -> None:
    for stage, total in (("embedding_adaptation", 528), ("amvl", 10_020)):
        assert len(Progress(stage, total, total, "steps", 99_999.0, {**FULL, "data_wait": 0.5}, COLUMNS).line()) <= 120
    assert "skipped 3" in Progress("amvl", 1, 2, "steps", 1.0, {"skipped_steps": 3}).line()


def test_a_stage_without_metrics() -> None:
    assert Progress("x", 0, 8, "samples").line() == "x: 0/8 samples"
    assert Progress("x", 1, 8, "samples", 3661).line() == "x: 1/8 samples  1:01:01 left"
    assert Progress("x", 1, 8, "samples", 49.2).line() == "x: 1/8 samples  0:49 left"


def test_a_total_that_is_not_known_yet_is_not_printed_as_zero() -> None:
    assert Progress("prepare", 0, 0, "samples").line() == "prepare: counting samples"


def test_a_history_comes_back_without_its_warnings() -> None:
    events = [Progress("sft", step, 9, "steps", 1.0, FULL, warnings=(Advice("k", "t", ("a",)),)) for step in (1, 2)]
    assert history_from_json(history_to_json(events)) == [
        Progress("sft", step, 9, "steps", 1.0, FULL) for step in (1, 2)
    ]
