from amvl_core.progress import Progress


def test_a_line_says_how_far_how_good_and_how_long() -> None:
    progress = Progress("sft", 1210, 1500, "steps", 49.2, {"loss": 0.075083, "tokens_per_s": 10941.3})
    assert progress.line() == "sft: 1,210/1,500 steps  loss 0.07508  tokens_per_s 10,941  0:49 left"
    assert Progress("x", 0, 8, "samples").line() == "x: 0/8 samples"
    assert Progress("x", 1, 8, "samples", 3661).line() == "x: 1/8 samples  1:01:01 left"


def test_a_total_that_is_not_known_yet_is_not_printed_as_zero() -> None:
    assert Progress("prepare", 0, 0, "samples").line() == "prepare: counting samples"
