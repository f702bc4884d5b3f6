import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amvl_core.eval.score import MAX_CANDIDATES, closed_answers, is_correct, majority_answers, normalise, shaped

MARKS = "()[]{}*'\"`$“”’「」.,;:!?。！…¿-+ \n%5aBé²½٥\u200b\\"
TEXT = st.one_of(st.text(alphabet=MARKS, max_size=12), st.text(max_size=12))
NUMBER = re.compile(r"([-+]?)(\d*\.?\d+)(?:/([1-9]\d?))?(%?)")
NUMBERS = st.from_regex(NUMBER, fullmatch=True, alphabet="-+0123456789./%")


def value(number: str) -> Fraction:
    sign, digits, below, percent = NUMBER.fullmatch(number).groups()  # type: ignore[union-attr]
    return Fraction(digits) / int(below or 1) * (-1 if sign == "-" else 1) / (100 if percent else 1)


@pytest.mark.parametrize(
    ("raw", "answer", "right"),
    [
        ("red", "red", True),
        (" Red.\n", "red", True),
        ("The circle is left.\nyes", "yes", True),
        ("(B)", "B", True),
        ("", "", False),
        ("yes no", "yes", False),
        ("2", "2.0", False),
        ("I see two.\n- cup\n- plate", "- cup\n- plate", True),
        ("- cup\n- plate\n- fork", "- cup\n- plate", False),
        ("- plate", "- cup\n- plate", False),
        ("Red,\n\nGreen.\r\n", "red\ngreen", True),
        ("```\n1. open\n2. close\n```", "1. open\n2. close", True),
        ("The body:\n{\n  a: 1\n}", "{\n  a: 1\n}", True),
        ("a: 1\n}", "{\n  a: 1\n}", False),
        ("yes\n---", "yes", True),
        ("What is missing?\n?", "?", True),
        ("What is missing?\n!", "?", False),
        ("\u2026", "...", True),
        ("'?'", "?", True),
        ("..", ".", False),
    ],
)
def test_exact_match_of_as_many_lines_as_the_gold_answer_has(raw: str, answer: str, right: bool) -> None:
    assert is_correct(shaped(raw, answer), answer) is right


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("red", marked) for marked in ("red\u3002", "\u201cRed\u201d", "\u00abred\u00bb")],
        *[("red", marked) for marked in ("\u300cred\u300d", "**red**")],
        *[("red", marked) for marked in ("red\uff01", "red\u2026", "red\u061f", "`red`")],
        *[("red", marked) for marked in ("(red).", "\uff52\uff45\uff44", "'red.'")],
        *[("5", marked) for marked in ("5.", "(5)", "$5$", "\\(5\\)", "5?")],
        *[("5", marked) for marked in ("\uff15", "\u0665", "\u096b", "\u20185\u2019", "5\u200b")],
        *[("-5", marked) for marked in ("\u22125", "\u20135", "\uff0d5", "(-5).")],
        *[("5%", marked) for marked in ("\uff15\uff05", "\u0665\u066a", "5%.", "5\ufe6a")],
        *[("caf\u00e9", "cafe\u0301"), ("don't", "don\u2019t"), ("don't", "'don't'")],
        *[("s\u00ed", "\u00a1S\u00ed!"), ("B)", "b")],
        *[("1/2", "\u00bd"), ("1 1/2", "1\u00bd"), ("x^2", "x\u00b2")],
        *[("10^-3", "10\u207b\u00b3"), ("x <= 3", "x \u2264 3")],
    ],
)
def test_the_same_answer_in_other_characters_and_marks(one: str, other: str) -> None:
    assert is_correct(other, one) and is_correct(one, other)


@pytest.mark.parametrize(
    "different",
    [
        *[("5", ".5", "5!", "5%", "-5", "+5", "$5", "5\u00b0", "5'", '5"', "5..."), ("5\u00b2", "52", "1/5")],
        *[("5", "5!", "5!!", "#5", "(5)!", "5\u00b2", "1/5", "5/1")],
        *[("75", ".75", "7.5", "75%", "7,5"), ("1\u00bd", "11/2", "\u00bd")],
        *[("n", "n!"), ("C", "C++", "C#", "C\u266f")],
        *[("(0, 1)", "[0, 1]", "(0, 1]", "0, 1"), ("f(x)", "f(x", "fx"), ("__init__", "init"), ("A", "A+", "A-", "A'")],
        *[("?", "!", ".", "...", ",", "-", "\u2014", '"', "\u201c", "()", "[]", "''", "+", "%")],
    ],
)
def test_marks_that_are_part_of_the_value(different: tuple[str, ...]) -> None:
    assert [[one == other for other in different] for one in different] == [
        [is_correct(one, other) for other in different] for one in different
    ]


@given(TEXT)
@example("'a' and 'b'")
def test_every_gold_answer_is_right_and_its_normal_form_is_one(gold: str) -> None:
    assert normalise(normalise(gold)) == normalise(gold)
    assert is_correct(gold, gold) == bool(normalise(gold))
    assert is_correct(shaped(f"I think.\n{gold}", gold), gold) == bool(normalise(gold))


@given(NUMBERS, NUMBERS)
@example("-5", "5")
@example(".5", "5")
@example("5%", "5")
def test_numbers_of_different_value_are_different_answers(one: str, other: str) -> None:
    assert is_correct(one, one)
    assert value(one) == value(other) or not is_correct(one, other)


def test_the_commonest_answer_of_each_task() -> None:
    pairs = [("a", "yes"), ("a", "Yes"), ("a", "no"), ("b", "2"), ("b", "1")]
    pairs += [("sign", "!"), ("sign", "?"), ("sign", "?")]
    assert majority_answers(pairs) == {"a": "yes", "b": "1", "sign": "?"}


def test_a_task_with_few_answers_has_a_closed_set_of_them() -> None:
    many = [("name", f"n{i}") for i in range(MAX_CANDIDATES + 1)]
    few = [("a", "yes"), ("a", "No."), ("a", "Yes"), ("a", "no"), ("one", "x"), ("one", "X"), ("n", "5"), ("n", ".5")]
    assert closed_answers([*few, *many]) == {"a": ["No.", "yes"], "n": [".5", "5"]}
    assert len(closed_answers(many[1:])["name"]) == MAX_CANDIDATES
