"""Options whose texts are numbers, signs and words of one another: read by text, or not at all."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amvl_core.eval.extract import unwrapped
from amvl_core.eval.score import normalise

NUMBERS = {"A": "-5", "B": "3", "C": "7.5"}
LANGUAGES = {"A": "C#", "B": "C++", "C": "Java", "D": "C"}
WITHOUT = {"A": "C#", "B": "Python", "C": "Java"}
EXPRESSIONS = {"A": "x < 3", "B": "x > 3"}
TURNS = {"A": "clockwise", "B": "counter-clockwise"}
OPERATORS = {"A": "+", "B": "-", "C": "×", "D": "÷"}
MARKS = {"A": "?", "B": "!", "C": ".", "D": ","}
SHARES = {"A": "1/2", "B": "-1/2", "C": "50%", "D": "50"}
GRADES = {"A": "B+", "B": "A-", "C": "C", "D": "A"}
LENGTHS = {"A": "3 cm", "B": "3 m", "C": "30 cm"}
PETS = {"A": "cat", "B": "cat and dog", "C": "dog"}
PRICES = {"A": "$5", "B": "€5", "C": "5"}
RANGES = {"A": "1-5", "B": "5-10", "C": "10+"}
INTERVALS = {"A": "(0, 1)", "B": "[0, 1]", "C": "(0, 1]"}

CASES: list[tuple[dict[str, str], str | None, list[str]]] = [
    (NUMBERS, "A", ["-5", "−5", "–5", "－５", "The answer is -5."]),
    (NUMBERS, "A", ["\\boxed{-5}", "A: -5", "A -5", "答案是-5", "**-5**"]),
    (NUMBERS, "B", ["3", "3.", "(3)", "**3**", "$3$", "٣"]),
    (NUMBERS, "B", ["\\boxed{3}", "There are 3 cups.", "x = 3", "2 + 1 = 3", "3个"]),
    (NUMBERS, "B", ["Step 1\n3", "答案是3。", "B", "It is '3'.", "The answer is: 3"]),
    (NUMBERS, "C", ["7.5", "７.５", "C. 7.5", "答案：7.5", "It is 7.5."]),
    (NUMBERS, None, ["5", "-3", "1/3", "3/4", "The answer is 5.", "It is -3."]),
    (NUMBERS, None, ["\\boxed{5}", "答案是5", "-7.5", "75", "7.50"]),
    (NUMBERS, None, ["3%", "3.5", ".3", "3,000", "30", "3!"]),
    (NUMBERS, None, ["3:30", "3-4", "3 to 4", "3 or 4", "between 3 and 4", "1 3/4"]),
    (NUMBERS, None, ["less than 3", "> 3", "minus 3", "负3", "3 million"]),
    (NUMBERS, None, ["3万", "3/4 of it", "3 out of 4", "x = -3", "3^2"]),
    (NUMBERS, None, ["3²", "3°", "+3", "±3", "5 - 3 = 2", "3 / 4", "3 %", "-B", "3'", "3 and a half", "3..."]),
    (LANGUAGES, "A", ["C#", "The language is C#", "c#", "C#."]),
    (LANGUAGES, "B", ["C++", "c++", "It is C++.", "The answer is C++.", "C++ is the language", "B", "(B) C++"]),
    (LANGUAGES, "C", ["Java", "Java!", "C. Java"]),
    (WITHOUT, None, ["C++", "c++", "The answer is C++", "I think it is C++.", "Answer: C++", "JavaScript"]),
    (WITHOUT, "A", ["C# is best", "A"]),
    (WITHOUT, "C", ["C", "C.", "The answer is C."]),
    (EXPRESSIONS, "A", ["x < 3", "x<3", "The answer is x < 3", "$x < 3$", "\\boxed{x < 3}", "x ＜ 3"]),
    (EXPRESSIONS, "B", ["x > 3", "So $x>3$ holds.", "B. x > 3"]),
    (EXPRESSIONS, None, ["x ≤ 3", "x <= 3", "x < 3.5", "2x < 3", "-x < 3", "x < 30", "x < -3", "x = 3", "x < 3/2"]),
    (TURNS, "A", ["clockwise", "It turns clockwise."]),
    (TURNS, "B", ["counter-clockwise", "It turns counter-clockwise."]),
    (TURNS, None, ["anti-clockwise", "anticlockwise", "clockwise or counter-clockwise"]),
    (OPERATORS, "A", ["+", "The sign is +", "＋", "'+'"]),
    (OPERATORS, "B", ["-", "−", "B"]),
    (OPERATORS, "D", ["the sign is '÷'"]),
    (OPERATORS, None, ["*", "+-"]),
    (MARKS, "A", ["?", "？", 'The mark is "?"']),
    (MARKS, "B", ["!", "“!”", "(!)"]),
    (MARKS, "C", ["."]),
    (MARKS, "D", [",", "D"]),
    (MARKS, None, ["Yes!", "I see none.", "是！", "..."]),
    (SHARES, "A", ["1/2", "½", "It is 1/2.", "\\boxed{\\frac{1}{2}}", "1 / 2"]),
    (SHARES, "B", ["-1/2", "−½"]),
    (SHARES, "C", ["50%", "about 50%", "\\boxed{50\\%}", "５０％"]),
    (SHARES, "D", ["50", "50."]),
    (SHARES, None, ["50 percent", "1 1/2", "11/2", "5", "1/20", "50.5"]),
    (GRADES, "A", ["B+", "A. B+"]),
    (GRADES, "B", ["A-", "The grade is A-.", "(B) A-"]),
    (GRADES, "C", ["C", "C. C"]),
    (GRADES, None, ["A", "(A)", "A+", "The answer is A"]),  # the letter of one option and the text of another
    (LENGTHS, "A", ["3 cm", "3 cm."]),
    (LENGTHS, "B", ["It is 3 m long"]),
    (LENGTHS, "C", ["30 cm"]),
    (LENGTHS, None, ["3 mm", "3", "13 cm", "3 cm²", "-3 cm", "3.3 cm", "3 m/s"]),
    (PETS, "A", ["cat", "The cat."]),
    (PETS, "B", ["a cat and dog are there"]),
    (PETS, None, ["cats", "a cat or a dog"]),
    (PRICES, "A", ["$5", "It costs $5."]),
    (PRICES, "B", ["€5"]),
    (PRICES, "C", ["5"]),
    (PRICES, None, ["£5", "$50", "-$5", "5$", "5 $"]),
    (RANGES, "A", ["1-5", "1–5"]),
    (RANGES, "C", ["10+", "It is 10+."]),
    (RANGES, None, ["5", "10", "1-50"]),
    (INTERVALS, "A", ["(0, 1)", "The interval is (0, 1)."]),
    (INTERVALS, "B", ["[0, 1]"]),
    (INTERVALS, "C", ["(0, 1]"]),
    (INTERVALS, None, ["[0, 1)", "0, 1"]),
    ({"A": "I", "B": "II"}, "B", ["II", "I think B"]),
    ({"A": "5!", "B": "5"}, "A", ["5!", "It is 5!"]),
    ({"A": "5!", "B": "5"}, "B", ["5", "5.", "It is 5."]),
    ({"A": ".5", "B": "5", "C": "75"}, "A", [".5", "It is .5."]),
    ({"A": ".5", "B": "5", "C": "75"}, None, [".75", "0.5"]),
    ({"A": "m", "B": "M", "C": "mW", "D": "MW"}, "D", ["MW"]),
    ({"A": "12:30", "B": "12"}, "A", ["12:30"]),
    ({"A": "12", "B": "30"}, None, ["12:30"]),
    ({"A": "café", "B": "bar"}, "A", ["cafe\u0301", "A cafe\u0301."]),
    ({"A": ".NET", "B": "Java"}, "A", [".NET", "It is .NET."]),
    ({"A": "NET", "B": "Java"}, None, ["ASP.NET"]),
    ({"A": "60 km", "B": "60 m"}, None, ["60 km/h"]),
    ({"A": "102", "B": "10^2"}, "B", ["10²", "10^2"]),
    ({"A": "200", "B": "1"}, None, ["1,200"]),
    ({"A": "dark green", "B": "green"}, "A", ["dark-green", "It is dark green."]),
]


@pytest.mark.parametrize(
    ("options", "letter", "text"), [(options, letter, text) for options, letter, texts in CASES for text in texts]
)
def test_a_text_is_read_whole_or_not_at_all(options: dict[str, str], letter: str | None, text: str) -> None:
    assert unwrapped(text, options).answer == letter


NUMBER = re.compile(r"([-+]?)(\d{0,2}\.?\d{1,2})(?:/([1-9]))?(%?)")
FRAMES = ("{}", "It is {}.", "The answer is {}.", "答案是{}", "({})", "**{}**", "\\boxed{{{}}}", "x = {} holds", "“{}”")


def value(number: str) -> Fraction:
    sign, digits, below, percent = NUMBER.fullmatch(number).groups()  # type: ignore[union-attr]
    return Fraction(digits) / int(below or 1) * (-1 if sign == "-" else 1) / (100 if percent else 1)


SAID = st.from_regex(NUMBER, fullmatch=True, alphabet="-+0123456789./%")


@given(st.lists(SAID, min_size=2, max_size=4, unique_by=value), SAID, st.sampled_from(FRAMES))
def test_a_number_is_never_read_as_an_option_of_another_value(texts: list[str], said: str, frame: str) -> None:
    options = dict(zip("ABCD", texts, strict=False))
    read = unwrapped(frame.format(said), options).answer
    assert read is None or value(options[read]) == value(said)
    for letter, text in options.items():
        assert unwrapped(frame.format(text), options).answer == letter


TEXTS = st.text("abcABC+#-./%5 3!?<>=()'\"é红,$*_", min_size=2, max_size=7)


@given(st.lists(TEXTS, min_size=2, max_size=4, unique_by=normalise))
def test_an_option_that_is_repeated_word_for_word_is_read(texts: list[str]) -> None:
    options = {letter: text for letter, text in zip("WXYZ", texts, strict=False) if normalise(text)}
    for letter, text in options.items():
        assert unwrapped(text, options).answer == letter
