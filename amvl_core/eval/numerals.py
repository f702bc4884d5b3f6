"""Numeric answers: how both harnesses read a number, and VSI-Bench's relative accuracy."""

from __future__ import annotations

import ast
import itertools
import math
import re

import numpy as np

from amvl_core.eval.score import folded
from amvl_core.eval.vlmevalkit import after_thought

_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {
    **{word: number for number, word in enumerate(_ONES)},
    **{word: 10 * number for number, word in enumerate(_TENS, start=2)},
    "hundred": 100,
    "thousand": 1000,
}
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")
_SCIENTIFIC = re.compile(r"[-+]?(?:\d*\.\d+|\d+)(?:[eE][-+]?\d+)?")
_STANDALONE = re.compile(r"(?<![\w.^])-?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+\b)?", re.IGNORECASE)
_WORD = rf"(?:{'|'.join(_WORDS)})\b"
_WORDS_IN_A_ROW = re.compile(rf"\b{_WORD}(?:(?:(?<=hundred) and |(?<=thousand) and |[ -]){_WORD})*", re.IGNORECASE)
_MORE_THAN_WORDS = re.compile(r"\b(?:million|billion|point|minus|half|quarter)\b", re.IGNORECASE)
_MORE_THAN_DIGITS = re.compile(
    r"\d ?(?:hundred|thousand|million|billion)\b|\d(?: and)?(?: an?| one)? (?:half|quarter)\b|\b(?:minus|negative) \d"
    r"|\d ?[x×*^] ?\d",
    re.IGNORECASE,
)
_UP_TO_TWENTY = [*_ONES, "twenty"]
_SMALL_WORD = re.compile(rf"\b(?:{'|'.join(_UP_TO_TWENTY)})\b", re.IGNORECASE)
_TAGGED = re.compile(rf"<\s*answer\b[^>]*>\s*({_SCIENTIFIC.pattern})(?:[^\d<][^<]*)?<\s*/\s*answer\s*>", re.IGNORECASE)


def lmms_eval(text: str) -> float | None:
    """The first number in digits or English words; a thousands comma ends it ("1,200" -> 1).

    Number words in a row are one number, whatever stands between them, up to the first word that is neither one nor
    "and": "three hundred and twenty-one" is 321, but "one, two" is 3, and "two million" 2.
    """
    said = text.lower()
    digits, words = _DIGITS.search(said), re.finditer("[a-z]+", said)
    first = next((word for word in words if word[0] in _WORDS), None)
    if digits and (first is None or digits.start() < first.start()):
        return float(digits[0])
    if first is None:
        return None
    row = itertools.takewhile(lambda word: word == "and" or word in _WORDS, [first[0], *(word[0] for word in words)])
    total = current = 0
    for number in (_WORDS[word] for word in row if word != "and"):
        if number == 1000:
            total, current = total + 1000 * max(current, 1), 0
        elif number == 100:
            current = 100 * max(current, 1)
        else:
            current += number
    try:
        return float(total + current)
    except OverflowError:  # a model that goes on with "hundred hundred hundred"
        return math.inf


def vlmevalkit(text: str) -> float | None:
    """The tagged number, else the last one after the thought, else the last one.

    Words up to twenty become digits one by one, so "twenty-one" is read as 20-1 and gives -1.
    """
    said = _first_of_list(text)
    said = re.sub("[\u200b\u200c\u200d\ufeff]", "", said.strip())
    said = _SMALL_WORD.sub(lambda found: str(_UP_TO_TWENTY.index(found[0].lower())), said)
    if tagged := _TAGGED.search(said):
        return float(tagged[1])
    found = _SCIENTIFIC.findall(after_thought(said)) or _SCIENTIFIC.findall(said)
    return float(found[-1]) if found else None


def only(text: str) -> float | None:
    """Our own reading: the one number that a text names in digits, else in English words; None where it names several.

    None also where words change it ("1.5 million", "3 and a half", "minus 3"). The comma of "1,200" parts thousands.
    The 2 of "12 m2" or "12 m^2" is no number.
    """
    said = re.sub(r"(?<=\d),(?=\d{3}\b)", "", folded(text))
    found = {float(number) for number in _STANDALONE.findall(said)}
    if not found:
        alone = len(_WORDS_IN_A_ROW.findall(said)) == 1 and not _MORE_THAN_WORDS.search(said)
        return lmms_eval(said) if alone else None
    return found.pop() if len(found) == 1 and not _MORE_THAN_DIGITS.search(said) else None


def mean_relative_accuracy(prediction: float | None, target: float) -> float:
    """VSI-Bench's MRA: the share of thetas in .5, .55 ... .95 with |prediction - target| / target <= 1 - theta.

    No prediction scores 0. Upstream divides by zero where the target is 0; here only 0 is then right.
    """
    if prediction is None:
        return 0.0
    if target == 0:
        return float(prediction == 0)
    thetas = np.linspace(0.5, 0.95, 10)
    return float(np.mean(abs(prediction - target) / target <= 1 - thetas))


def _first_of_list(text: str) -> str:
    """The first element of a text that is a Python list; a text in brackets that is none cannot be read."""
    if not (text.strip().startswith("[") and text.strip().endswith("]")):
        return text
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ""
    return str(items[0]) if isinstance(items, list) and items else text
