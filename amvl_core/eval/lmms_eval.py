"""Answer extraction item by item as lmms-eval does it, slips included.

Written from the documented rules (`docs/evaluation.md`) and checked against recorded outputs of lmms-eval @ 75571cf.
Letters are returned in upper case; lmms-eval compares them without case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from string import ascii_uppercase

from amvl_core.eval.extract import DRAWN, NOTHING, Extraction, Extractor
from amvl_core.eval.vlmevalkit import by_text, lone_option

# --- BLINK, CV-Bench ---


def first_letter(text: str, options: Mapping[str, str]) -> Extraction:
    """The first character if it is a letter, whatever letter, after blanks and opening parentheses."""
    found = re.match(r"[(\s]*([A-Z])", text, re.IGNORECASE)
    return Extraction(found[1].upper()) if found else NOTHING


# --- V* ---

_VSTAR = (
    r"^([A-D])",  # also the first letter of a word: "Blue" -> B, "Answer: (B)" -> A
    r"(?:THE\s+)?(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:^|\s)([A-D])(?:\s|$)",
)


def vstar(text: str, options: Mapping[str, str]) -> Extraction:
    """The first pattern that hits the upper-cased text, else its only A-D letter."""
    said = text.strip().upper()
    for pattern in _VSTAR:
        if found := re.search(pattern, said):
            return Extraction(found[1])
    letters = re.findall(r"[A-D]", said)
    return Extraction(letters[0]) if len(letters) == 1 else NOTHING


# --- MMVP ---

_MMVP = (
    r"^\(?([AB])\)?\.?$",
    r"^\(?([AB])\)?[.\s]",
    r"answer\s+is\s+\(?([AB])\)?",
    r"option\s+\(?([AB])\)?",
    r"\(?([AB])\)?(?:\s|$)",  # also the last letter of a word
    r"^([AB])",
)


def mmvp(text: str, options: Mapping[str, str]) -> Extraction:
    """The first pattern that hits, in any case; A or B."""
    for pattern in _MMVP:
        if found := re.search(pattern, text.strip(), re.IGNORECASE):
            return Extraction(found[1].upper())
    return NOTHING


# --- MMStar ---


def mmstar(text: str, options: Mapping[str, str]) -> Extraction:
    """A letter A to D at the very start or after "(", "option " or "the answer is ", whatever follows it."""
    found = re.match(r"(?:\(|option |the answer is )?([a-d])", text.lower().strip().replace("\n", " "))
    return Extraction(found[1].upper()) if found else NOTHING


# --- VSI-Bench ---


def first_word(text: str, options: Mapping[str, str]) -> Extraction:
    """The text up to the first blank, without full stops at its end, where that is an option's letter in any case."""
    word = text.split(" ")[0].rstrip(".").strip().upper()
    return Extraction(word) if word in options else NOTHING


# --- the shared extractor for multiple choice ---

_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_MARKS = {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}
_START, _END, _PHRASE = 10, 9, 7


def multiple_choice(letters: Iterable[str]) -> Extractor:
    """The extractor for options `letters`: the best-ranked form wins, and within a form its latest place."""
    letters = tuple(letters)

    def extractor(text: str, options: Mapping[str, str]) -> Extraction:
        said = text.strip()
        for mark in ",.!?;:'\"":  # one after the other: what a later one uncovers is not stripped again
            said = said.strip(mark)
        anywhere = ((0, said.rfind(letter), letter) for letter in letters if letter in said)
        found = max(_candidates(f" {said} ", letters), default=None) or max(anywhere, default=None)
        return Extraction(found[-1]) if found else NOTHING

    return extractor


def _candidates(said: str, letters: tuple[str, ...]) -> Iterator[tuple[int, int, str]]:
    """(rank of the form, place, letter) of every form that occurs."""
    low, bare = said.lower(), said.strip()
    for letter in letters:
        for mark, rank in _MARKS.items():
            if (place := said.rfind(mark.format(letter))) >= 0:
                yield rank, place, letter
        for phrase in _PHRASES:
            if (after := low.find(phrase)) >= 0 and (place := said.find(letter, after + len(phrase))) >= 0:
                yield _PHRASE, place, letter
        if bare.startswith(letter) and not bare[1:2].isalpha():
            yield _START, 0, letter
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            yield _END, len(said), letter


mcq_abcd = multiple_choice("ABCD")
mcq_default = multiple_choice("ABCDEFGH")

# --- HR-Bench ---


def hrbench_option(text: str, options: Mapping[str, str]) -> Extraction:
    """The only option letter among the words, wherever it stands; Z for a refusal."""
    return Extraction(lone_option(text, options))


def hrbench(text: str, options: Mapping[str, str]) -> Extraction:
    """The letter, else the only option whose text occurs, in a text of any length. The judge is not asked."""
    return Extraction(hrbench_option(text, options).answer or by_text(text, options))


# --- VisualPuzzles ---

_PUZZLES = (
    r"Answer:\s*\(([A-Za-z])\)",
    r"(?<!Final )Answer:\s*([A-Za-z])",  # also the first letter of a word
    r"Answer:\s*([A-Za-z])",
    r"\(([A-Za-z])\)",
    r"([A-Za-z])\)",
    r"\{([A-Za-z])\}",
    r"\$([A-Za-z])\$",
    r" ([A-Da-d])\.",
)
_PUZZLE_LETTERS = ascii_uppercase[:4]
_SHORT = 5


def visual_puzzles(text: str, options: Mapping[str, str]) -> Extraction:
    """The last hit of the first pattern that names A to D, else the option text; else lmms-eval draws an option."""
    said = text.strip()
    padded = f" {said}"  # the later patterns want a blank before the letter
    for pattern in _PUZZLES:
        hits = [hit.upper() for hit in re.findall(pattern, padded if pattern.startswith(" ") else said)]
        if named := [hit for hit in hits if hit in _PUZZLE_LETTERS]:
            return Extraction(named[-1])
    if len(padded) <= _SHORT and (short := re.findall(r" ([A-Da-d])", padded)):
        return Extraction(short[-1].upper())
    texts = {letter: option for letter, option in options.items() if option}
    for letter, option in texts.items():
        if f"answer: {option}" in padded.lower() or f"answer:{option}" in padded.lower():
            return Extraction(letter)
    places = {letter: padded.rfind(option) for letter, option in texts.items()}
    last = max(places.values(), default=-1)
    return DRAWN if last < 0 else Extraction(next(letter for letter, place in places.items() if place == last))
