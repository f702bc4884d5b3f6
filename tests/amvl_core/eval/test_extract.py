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
        *[(text, "A") for text in ("A is correct.", "Option A fits best", "So A must be it", "A because it is there")],
        *[(text, "A") for text in ("The point A lies nearer.", "I think A has what is missing", "A in the picture")],
        *[(text, None) for text in ("A is closer than B.", "A is right; B moves", "Box A more or less, B not")],
        *[(text, "B") for text in ("A bus stands there, so B", "A is wrong, so B", "B is right, A is wrong")],
        *[(text, None) for text in ("A is wrong", "(A) is wrong.", "(B) cannot be right")],
        *[(f"({first}) Box {first}\n\nIt is nearer than box {second}.", first) for first, second in ("AB", "BA")],
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
        *[(text, "B") for text in ("B!", "Option-B", "It is option-B.", "I think 'B'")],
        *[(text, "B") for text in ("\u201cB\u201d", "\u2192 B", "_B_")],
        *[(text, "B") for text in ("Answer: **B**", "**Answer: B**", "Answer\uff1aB")],
        *[(text, "B") for text in ("The answer is $B$.", "\\(B\\)", "B = blue")],
        *[(text, "B") for text in ("La respuesta es B", "\uff22", "B) blue")],
        *[(text, "B") for text in ("B: blue", "B \u2713", "\\boxed{\\mathbf{B}}")],
        *[(text, None) for text in ("B2", "B-52", "A-frame", "R&B", "U.S.A", "A/B", "B'")],
        *[(text, None) for text in ("A+", "B-", "-B", "C++", "P(A)", "A > B")],
        *[(text, None) for text in ("C++ is it", "the answer is b < 3", "D'Artagnan", "B's")],
        *[(text, None) for text in ("The answer is B+.", "B#", "B.C.")],
        *[(text, None) for text in ("blue-green", "red/blue", "B is wrong")],
        *[(text, None) for text in ("blue is not the colour", "B cannot be right")],
        ("<answer></answer>", None),
        *[(text, None) for text in ("Three stripes.\n\n**Answer:**", "Answer: **", "### Answer:\n**", "答案:**")],
        *[(text, "B") for text in ("<b>B</b>", "the answer is <b>B</b>", "<CONCLUSION>B</CONCLUSION>")],
        *[(text, None) for text in ('A "stop" sign is there.', "A 2-story house", "A Ford car is shown.")],
        *[(text, "A") for text in ("A Because it is there", "A The picture shows it")],
        ("Options A and B are incorrect. Option C is correct.", "C"),
        ("Option B is correct; options A, C and D are incorrect.", "B"),
        ("A and B are wrong", None),
    ],
)
def test_our_own_reading_of_an_option(text: str, letter: str | None) -> None:
    assert unwrapped(text, COLOURS) == Extraction(letter)


CHINESE = {"A": "红色", "B": "蓝色", "C": "绿色"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[(text, "B") for text in ("答案是B", "选B", "B。", "选择B", "答案：B")],
        *[(text, "B") for text in ("答案为B", "正确答案是B。", "故选B", "应该选B选项", "我选Ｂ")],
        *[(text, "B") for text in ("B、蓝色", "B.蓝色", "B：蓝色", "（B）", "【B】", "答案是（B）")],
        *[(text, "B") for text in ("答案是“B”", "选「B」", "选項B", "图中是B", "選擇 B")],
        *[(text, "B") for text in ("答案是b", "选B，不选A", "答案是B，不是A", "如果选A，会错；选B")],
        *[(text, "B") for text in ("所以答案：B", "蓝色", "答案是蓝色。", "**答案：B**")],
        *[(text, "B") for text in ("答えはBです", "正解はB", "정답은 B입니다", "정답: B", "คำตอบคือB")],
        *[(text, None) for text in ("不选B", "答案不是B", "B不对", "B是错的")],
        *[(text, None) for text in ("答えはBではない", "B가 아닙니다", "答案是D", "排除B")],
        *[(text, None) for text in ("A或B", "答案是A或B", "答案是A和B", "选A还是选B")],
        *[(text, None) for text in ("A、B", "A. 红色 B. 蓝色", "选项A是红色，选项B是蓝色", "不是蓝色")],
    ],
)
def test_a_letter_beside_a_script_without_blanks(text: str, letter: str | None) -> None:
    assert unwrapped(text, CHINESE) == Extraction(letter)


def test_a_letter_that_is_the_text_of_another_option_is_no_answer() -> None:
    crossed = {"A": "B", "B": "C", "C": "A"}
    assert unwrapped("B", crossed) == unwrapped("The answer is (B).", crossed) == Extraction(None)
    assert unwrapped("A. B", crossed) == unwrapped("(A) B", crossed) == Extraction("A")
    assert unwrapped("B", {"A": "A", "B": "B"}) == Extraction("B")


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


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("There is no doubt that the cat is on the bench.", None),
        ("No doubt the cat is on the bench.", None),
        ("There is no question that it is, so yes", "A"),
        ("There's no way to tell", None),
        ("I have no idea.", None),
        ("It is impossible to say yes", None),
        ("There are no dogs", "B"),
        ("No.", "B"),
    ],
)
def test_a_no_that_is_a_part_of_another_phrase(text: str, letter: str | None) -> None:
    assert unwrapped(text, {"A": "yes", "B": "no"}) == Extraction(letter)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("1, 2, 3", None),
        ("I count 1, 2, 3 dogs", None),
        ("3, 4 or 12", None),
        ("3", "A"),
        ("3, and no more", "A"),
        ("The answer is 3, since I count 1, 2, 3.", "A"),
    ],
)
def test_a_number_of_a_list_is_no_answer(text: str, letter: str | None) -> None:
    assert unwrapped(text, {"A": "3", "B": "4", "C": "12", "D": "1"}) == Extraction(letter)


def test_free_text_is_the_last_line_of_the_final_answer() -> None:
    assert unwrapped("The circle is left.\nyes", {}) == Extraction("yes")
    assert unwrapped("It is left.\nAnswer: yes\n", {}) == Extraction("yes")
    assert unwrapped("\n", {}) == Extraction(None)
    assert final_answer("a \\boxed{1 + {2}} b") == "1 + {2}"


LIST = "- cup\n- plate"


@pytest.mark.parametrize(
    ("text", "gold", "read"),
    [
        *[(text, LIST, LIST) for text in (f"I see two.\n{LIST}", f"Answer:\n{LIST}\nThat is all.")],
        *[(text, LIST, LIST) for text in (f"<answer>{LIST}</answer>",)],
        *[(text, LIST, LIST) for text in (f"**Answer:** {LIST}", f"```\n{LIST}\n```")],
        *[(text, LIST, LIST) for text in (f"<think>- a\n- b</think>{LIST}",)],
        ("Answer: 5\nbecause of that", "5", "5"),
        ("**Answer:**", "5", None),
        *[(text, "yes", "yes") for text in ("**Answer:** yes", "**Answer: yes**", "答案：yes", "yes\n---")],
        *[(f"Answer: {gold}", gold, gold) for gold in ("-5", ".5", "?", "...", "5%", "2**3")],
        ("so \\boxed{50\\%}", "50%", "50%"),
        ("so \\boxed{\\frac{1}{2}}", "1/2", "1/2"),
        # A gold answer with such marks of its own is compared whole.
        *[(gold, gold, gold) for gold in ("Finding: none.\nAnswer: normal", "\\boxed{5}")],
        *[(gold, gold, gold) for gold in ("<answer>5</answer>", "Answer: 5")],
    ],
)
def test_free_text_is_as_long_as_the_gold_answer(text: str, gold: str, read: str | None) -> None:
    assert unwrapped(text, {}, gold) == Extraction(read)


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
    assert vlmevalkit.visual_puzzles("Answer: (B)", COLOURS) == Extraction("Z")
    assert vlmevalkit.visual_puzzles("non_answer: B", COLOURS) == Extraction("Z")


def test_numbers() -> None:
    assert (numerals.lmms_eval("1,200"), numerals.lmms_eval("Twenty-one")) == (1.0, 21.0)
    assert (numerals.vlmevalkit("twenty-one"), numerals.vlmevalkit("[4, 5]"), numerals.vlmevalkit("[4")) == (-1, 4, 4)
    assert numerals.vlmevalkit("[not a list]") is None
    # As upstream's own function gives them: a list that is indented or has no Python value cannot be read.
    assert numerals.vlmevalkit("\n [4]") is numerals.vlmevalkit("[{[]: 4}]") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("three hundred and twenty-one", 321),
        ("It is Two Thousand, five hundred.", 2500),
        ("one hundred five", 105),
        ("nine hundred ninety-nine thousand nine hundred and ninety-nine", 999999),
        ("a hundred", 100),
        ("thousand and five", 1005),
        ("twenty-one hundred", 2100),
        ("forty two cups", 42),
        ("one apple, room two", 1),
        ("room 2, one apple", 2),
        # Slips: words in a row are added up, "million" and "point" end a number, and a word may start within another.
        ("one, two", 3),
        ("two million", 2),
        ("two point five", 2),
        ("twenty-first", 20),
        ("caf\u00e9one", 1),
        ("minus three", 3),
        ("someone", None),
        ("and", None),
    ],
)
def test_numbers_in_words_as_lmms_eval_reads_them(text: str, number: float | None) -> None:
    """The values are those of its `extract_number` (VSI-Bench) at the commit of the recorded outputs."""
    assert numerals.lmms_eval(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("three hundred and twenty-one", 321),
        ("forty two cups", 42),
        ("1,200", 1200),
        ("2 (two)", 2),
        ("one or two", None),
        ("there is one of two", None),
        ("one, two", None),
        ("2 or 3", None),
        ("two million", None),
        ("two point five", None),
        *[
            (text, None)
            for text in ("4x5 meters", "5 x 5", "2^3", "3 and a half", "1.5 million", "5 thousand", "minus 3")
        ],
        *[(text, 12) for text in ("12 m2", "12 m^2", "12 m from this point", "12, half of the room")],
        ("-3", -3),
    ],
)
def test_our_own_reading_gives_up_where_several_numbers_are_named(text: str, number: float | None) -> None:
    assert numerals.only(text) == number


def test_relative_accuracy_of_no_answer_and_of_target_zero() -> None:
    assert numerals.mean_relative_accuracy(None, 2.0) == 0.0
    assert (numerals.mean_relative_accuracy(0.0, 0.0), numerals.mean_relative_accuracy(1.0, 0.0)) == (1.0, 0.0)
