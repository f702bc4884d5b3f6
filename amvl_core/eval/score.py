"""When an answer in words is right, how much of an output is its answer, and which answers a training split gives."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate

MAX_CANDIDATES = 16
"""A task with more different answers than this has no closed set of answers."""

_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2044": "/", "\u066a": "%", "\u066b": ".", "\u066c": ","}
    | {"\u2264": "<=", "\u2265": ">=", "\u2260": "!="}
)
_MARKS = str.maketrans(
    dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"')
    | dict.fromkeys("\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u2010\u2011\u2012\u2013", "-")
)

_RAISED = re.compile("[\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_LOWERED = re.compile(r"(?<=\d)[\u2080-\u2089]+")
_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")

_BRACKETS = {"(": ")", "[": "]", "{": "}", "\\(": "\\)", "\\[": "\\]"}
_QUOTES = {mark: mark for mark in ("**", "*", '"', "'", "`", "$")} | {
    "\u300c": "\u300d",
    "\u300e": "\u300f",
    "\u300a": "\u300b",
    "\u3008": "\u3009",
    "\u3010": "\u3011",
    "\u3014": "\u3015",
}
# A point after a number goes, and leaves its value; three of them, and a factorial's mark, belong to it.
_END = re.compile(
    r"(?:(?<![.\d])\.{2,}|(?<!\.)\.|[,;:?\u3001\u3002\u060c\u061b\u061f\u06d4\u0964\u0965\u0589]"
    r"|(?<![\d)\]}!])(?<!\b[a-z\u03b1-\u03c9])!+)+$"
)


def folded(text: str) -> str:
    """The text in one form of each character: NFKC, ASCII digits, quotes and dashes, no invisible ones.

    A power, a base and a mixed number keep their value: "5²" is 5^2, "1½" is 1 1/2. In a text of one character the
    quotes and dashes stay as they are, because there the form is what is asked for.
    """
    text = _VULGAR.sub(" ", _LOWERED.sub(r"_\g<0>", _RAISED.sub(r"^\g<0>", text)))
    text = unicodedata.normalize("NFKC", text)
    kept = (character for character in text if unicodedata.category(character) != "Cf")
    text = "".join(str(unicodedata.decimal(one)) if one.isdecimal() else one for one in kept)
    text = text.translate(_SIGNS)
    return text.translate(_MARKS) if len(text.strip()) > 1 else text


def normalise(answer: str) -> str:
    """What exact match compares: folded, without case, blank lines and each line's enclosing and ending marks.

    A line of punctuation alone keeps its end. Signs, points and percents of a number stay, and so do the brackets of a
    list or an interval.
    """
    lines = (_bare(" ".join(line.split())) for line in folded(answer).casefold().splitlines())
    return "\n".join(line for line in lines if line)


def is_correct(prediction: str, answer: str) -> bool:
    """Exact match after normalisation; an empty prediction is wrong."""
    return bool(normalise(prediction)) and normalise(prediction) == normalise(answer)


def shaped(text: str, gold: str, first: bool = False) -> str:
    """The last lines of `text`, or the `first`, as many as the gold answer has.

    Blank lines do not count, nor those of punctuation alone unless the gold answer has such lines.
    """
    wanted = [line for line in gold.splitlines() if line.strip()]
    counts = _in_words if all(map(_in_words, wanted)) else str.strip
    lines = [line.strip() for line in text.splitlines() if counts(line)]
    number = max(1, len(wanted))
    return "\n".join(lines[:number] if first else lines[-number:])


def majority_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The commonest answer of each task among (task, answer) of the training split; ties go to the first in order."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task, answer in pairs:
        counts[task][normalise(answer)] += 1
    return {task: min(count, key=lambda a: (-count[a], a)) for task, count in counts.items()}


def closed_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The answers of each task among (task, answer) of the training split, if they are few enough to try them all.

    If answers are the same after normalisation, the first is kept.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for task, answer in pairs:
        found[task].setdefault(normalise(answer), answer)
    return {
        task: [answers[key] for key in sorted(answers)]
        for task, answers in found.items()
        if 1 < len(answers) <= MAX_CANDIDATES
    }


def _in_words(text: str) -> bool:
    """Whether there is a letter, a digit or a picture in it."""
    return any(one.isalnum() or unicodedata.category(one) == "So" for one in text)


def _bare(line: str) -> str:
    """The line without what encloses it or ends it, as long as something is left."""
    while True:
        inner = _opened(line)
        if _in_words(inner):
            inner = _END.sub("", inner).lstrip("\u00bf\u00a1")
        if (inner := inner.strip()) == line:
            return line
        line = inner


def _opened(line: str) -> str:
    """The line without one pair of marks around all of it, or a bracket whose partner is missing.

    The brackets around a list say what it is: "(0, 1)" is not "[0, 1]".
    """
    for opening, closing in (_BRACKETS | _QUOTES).items():
        if opening in _BRACKETS and re.search("[,;]", line):
            continue
        inner = line.removeprefix(opening).removesuffix(closing)
        if inner == line or not inner.strip():
            continue
        if len(inner) == len(line) - len(opening) - len(closing):
            if _alone(inner, opening) if opening == closing else _balanced(inner, opening, closing):
                return inner
        elif opening in _BRACKETS and _in_words(inner) and opening not in inner and closing not in inner:
            return inner
    return line


def _alone(inner: str, mark: str) -> bool:
    """Whether the mark is only within words ("don't"), so that the outer two are a pair."""
    mark = re.escape(mark)
    return not re.search(rf"(?<!\w){mark}|{mark}(?!\w)", inner)


def _balanced(inner: str, opening: str, closing: str) -> bool:
    """Whether no bracket of the kind closes before it opens, so that the outer two are a pair."""
    brackets = re.findall(f"{re.escape(opening)}|{re.escape(closing)}", inner)
    depths = list(accumulate((1 if bracket == opening else -1 for bracket in brackets), initial=0))
    return min(depths) >= 0 and depths[-1] == 0
