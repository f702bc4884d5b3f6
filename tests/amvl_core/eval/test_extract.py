"""Small cases that need no recorded outputs; the harnesses' slips are kept on purpose."""

from __future__ import annotations

import pytest

from amvl_core.eval import lmms_eval, numerals, vlmevalkit
from amvl_core.eval.extract import DRAWN, Extraction, final_answer, unwrapped

COLOURS = {"A": "red", "B": "blue", "C": "dark green", "D": "green"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[(text, "B") for text in ("B", "b", "(B)", "B.", "**B.**", "[B]", "$B$", "'B'", "B。", "（Ｂ）", " - B\n")],
        ("\\boxed{B}", "B"),
        ("so \\boxed{\\text{(B)}}.", "B"),
        ("\\boxed{B", "B"),
        ("<answer>B. blue</answer>", "B"),
        ("<answer> b </answer> trailing", "B"),
        ("<answer>A</answer> no: <answer>B</answer>", "B"),
        ("Final Answer: (B)", "B"),
        ("**Answer:** B", "B"),
        ("(A) red\n(B) blue\nAnswer: B", "B"),
        ("<think>Looks like A.</think>\nB", "B"),
        ("I see A.</abs_token>B", "B"),
        ("B: blue", "B"),
        ("B\n\nExplanation: the object is blue", "B"),
        ("The answer is B because A is wrong.", "B"),
        ("the answer is option B", "B"),
        ("I choose B", "B"),
        ("The answer is A. No, the answer is B.", "B"),
        ("It is B, since the cup is blue", "B"),
        ("The correct answer that follows the pattern is (B).", "B"),
        ("Comparing A with B and C.\n\nSo, the best choice is:\n**(B) picture B**", "B"),
        ("C and A do not fit.\n(B) the third image", "B"),
        ("the answer is b", "B"),
        ("The answer is a blue thing", "B"),
        ("blue", "B"),
        ("It is blue.", "B"),
        ("dark green", "C"),
        ("Dark Green!", "C"),
        ("green", "D"),
        ("A red object", "A"),
        ("A dog is blue", "B"),
        ("", None),
        ("   ", None),
        ("E", None),
        ("The answer is E", None),
        ("red or blue", None),
        ("Not A, but B", None),
        ("(A) red (B) blue (C) dark green", None),
        ("(A) red\n(B) blue\n(C) dark green", None),
        ("I am not sure", None),
        ("Sorry, I can't help with images of people yet.", None),
        *[(f"{first} {word} {second}", None) for first, second in ("AB", "BA") for word in ("or", "and", "nor", "vs")],
        ("A and C", None),
        ("I think A or B.", None),
        ("A rather than B", None),
        ("The answer is A or B.", None),
        ("The answer is (B) and (C).", None),
        ("The answer is B and A is wrong", "B"),
        ("not blue", None),
        ("Not B", None),
        ("It is not red.", None),
        ("It isn\u2019t red.", None),
        ("The correct answer isn't B.", None),
        ("The answer is not B.", None),
        ("I don't think the answer is B.", None),
        ("It can't be the blue one", None),
        ("It is neither red nor teal", None),
        ("A but not B", None),
        ("The answer is B, not A", "B"),
        ("It is blue, not large", "B"),
        ("It is not large but blue", "B"),
        ("I am not sure, blue", "B"),
        ("It does not move. B", "B"),
        ("The answer is B. I don't think the answer is C.", "B"),
        ("Bluetooth", None),
        ("<answer></answer>", None),
    ],
)
def test_our_own_reading_of_an_option(text: str, letter: str | None) -> None:
    assert unwrapped(text, COLOURS) == Extraction(letter)


def test_two_options_and_options_without_text() -> None:
    assert unwrapped("C", {"A": "left", "B": "right"}) == Extraction(None)
    assert unwrapped("the right side", {"A": "left", "B": "right"}) == Extraction("B")
    assert unwrapped("It must be (D).", dict.fromkeys("ABCD", "")) == Extraction("D")
    assert unwrapped("2", {"A": "2.5", "B": "2", "C": "12"}) == Extraction("B")


def test_an_option_that_holds_a_denial_itself() -> None:
    options = {"A": "red", "B": "not red", "C": "2.5"}
    assert unwrapped("It is not red.", options) == unwrapped("not red", options) == Extraction("B")
    assert unwrapped("It is not 2.5", options) == Extraction(None)
    assert unwrapped("No, there is not", {"A": "yes", "B": "no"}) == Extraction("B")


def test_free_text_is_the_last_line_of_the_final_answer() -> None:
    assert unwrapped("The circle is left.\nyes", {}) == Extraction("yes")
    assert unwrapped("It is left.\nAnswer: yes\n", {}) == Extraction("yes")
    assert unwrapped("\n", {}) == Extraction(None)
    assert final_answer("a \\boxed{1 + {2}} b") == "1 + {2}"


def test_slips_of_lmms_eval_are_kept() -> None:
    assert lmms_eval.vstar("Blue", COLOURS) == Extraction("B")
    assert lmms_eval.vstar("Answer: (B)", COLOURS) == Extraction("A")
    assert lmms_eval.first_letter("The answer is B", COLOURS) == Extraction("T")
    assert lmms_eval.first_letter("**B**", COLOURS) == Extraction(None)
    assert lmms_eval.mmvp("elephant tusks: no idea", COLOURS) == Extraction("A")
    assert lmms_eval.mmstar("option b", COLOURS) == lmms_eval.mmstar("(b", COLOURS) == Extraction("B")
    assert lmms_eval.mmstar("the answer is (b)", COLOURS) == Extraction(None)
    assert lmms_eval.mcq_abcd("A, then B", COLOURS) == Extraction("A")
    assert lmms_eval.mcq_abcd("", COLOURS) == lmms_eval.mcq_abcd("no", COLOURS) == Extraction(None)


def test_lmms_eval_draws_where_nothing_is_found() -> None:
    assert lmms_eval.visual_puzzles("[A]", {}) == DRAWN
    assert lmms_eval.visual_puzzles("[A]", dict.fromkeys("ABCD", "")) == DRAWN
    assert lmms_eval.visual_puzzles("Answer: A\nFinal Answer: B", {}) == Extraction("A")
    assert lmms_eval.visual_puzzles("dark green", COLOURS) == Extraction("D")  # the text that starts last
    assert lmms_eval.visual_puzzles("Answer: b", {}) == Extraction("B")
    assert lmms_eval.visual_puzzles("Answer: red", COLOURS) == Extraction("A")


def test_rules_of_vlmevalkit() -> None:
    late, early = "one two three four five B", "B two three four five"
    assert vlmevalkit.infer_option(late, COLOURS) == Extraction("B")
    assert vlmevalkit.infer_option(early, COLOURS) == Extraction(None)
    assert lmms_eval.hrbench_option(early, COLOURS) == Extraction("B")
    assert vlmevalkit.infer_option("Z", COLOURS) == Extraction("Z")
    assert vlmevalkit.infer_option("The answer is any of them, A or B", COLOURS) == Extraction("A")
    assert vlmevalkit.infer("it is blue", COLOURS) == Extraction("B")
    assert vlmevalkit.infer("it is blue " + 40 * "x", COLOURS) == Extraction(None)
    assert vlmevalkit.match_option("E", {}) == Extraction("E")
    assert vlmevalkit.match_option("the answer is clearly the first", {}) == Extraction(None)
    assert vlmevalkit.visual_puzzles("Answer: (B)", COLOURS) == Extraction("Z")
    assert vlmevalkit.visual_puzzles("non_answer: B", COLOURS) == Extraction("Z")


def test_numbers() -> None:
    assert (numerals.official("4 meters"), numerals.official("about 4")) == (4.0, None)
    assert (numerals.lmms_eval("1,200"), numerals.lmms_eval("Twenty-one")) == (1.0, 21.0)
    assert (numerals.vlmevalkit("twenty-one"), numerals.vlmevalkit("[4, 5]"), numerals.vlmevalkit("[4")) == (-1, 4, 4)
    assert numerals.vlmevalkit("[not a list]") is None


def test_relative_accuracy_of_no_answer_and_of_target_zero() -> None:
    assert numerals.mean_relative_accuracy(None, 2.0) == 0.0
    assert (numerals.mean_relative_accuracy(0.0, 0.0), numerals.mean_relative_accuracy(1.0, 0.0)) == (1.0, 0.0)
