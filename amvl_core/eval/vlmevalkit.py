"""Answer extraction item by item as VLMEvalKit does it without a judge, slips included.

Written from the documented rules (`docs/evaluation.md`) and checked against recorded outputs of VLMEvalKit @ e8e78f0.
Z is its word for "none of the options".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from amvl_core.eval.extract import NOTHING, Extraction

NO_OPTION = "Z"

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED = "Failed to obtain answer via API"
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)

# --- option inference (V*, HR-Bench, BLINK and most others) ---


def infer_option(text: str, options: Mapping[str, str]) -> Extraction:
    """The only option letter among the words if one of the last four, else what starts with one after "answer is".

    That need not be a letter: "the answer is any of them" gives A.
    """
    if found := lone_option(text, options, 4):
        return Extraction(found)
    stated = _STATED.search(text)
    return Extraction(stated[1].upper()) if stated and _FAILED not in text else NOTHING


def infer(text: str, options: Mapping[str, str]) -> Extraction:
    """The inferred letter, else the only option whose text occurs in a text not much longer than the options."""
    if found := infer_option(text, options).answer:
        return Extraction(found)
    length = sum(len(option) for option in options.values())
    return Extraction(by_text(text, options)) if len(text) <= 2 * length else NOTHING


def lone_option(text: str, options: Mapping[str, str], within: int | None = None) -> str | None:
    """The only option letter among the words, where its first place is one of the last `within`; Z for a refusal."""
    if _FAILED in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return NO_OPTION
    words = text.translate(_SEPARATORS).split()
    found = [letter for letter in options if letter in words]
    if not found:
        return NO_OPTION if NO_OPTION in words else None
    place = words.index(found[0])
    return found[0] if len(found) == 1 and (within is None or place >= len(words) - within) else None


def by_text(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the only option whose text is a part of the text, without case."""
    found = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return found[0] if len(found) == 1 else None


# --- VisualPuzzles ---


def visual_puzzles(text: str, options: Mapping[str, str]) -> Extraction:
    """The letter of the last "Answer: X", else Z."""
    found = re.findall(r"\banswer\s*:\s*([A-Z])\b", text, re.IGNORECASE)
    return Extraction(found[-1].upper() if found else NO_OPTION)


# --- VSI-Bench ---

_OPENED, _CLOSED = r"[(\[{（【]?\s*", r"\s*[)\]}）】]?"
_TAGGED = re.compile(r"<\s*answer\b[^>]*>\s*([A-J]).*?<\s*/\s*answer\s*>", re.IGNORECASE | re.DOTALL)
_BEFORE_TAGS = tuple(
    re.compile(rf"(?<![A-Za-z]){_OPENED}([A-F]){_CLOSED}\s*</\s*{tag}\s*>", re.IGNORECASE)
    for tag in ("answer", "think")
)
_LISTED = re.compile(r"[*_>\-\s]*(?:option|选项)\s+[A-J]\s*[:：]", re.IGNORECASE)
_ALONE = re.compile(r"[*_`>（）\[\]【】()]*\s*([A-F])\s*[*_`（）\[\]【】()]*", re.IGNORECASE)
_LABEL = re.compile(r"([A-F])\s*[.．:：)\]】、-]\s+", re.IGNORECASE)
_WITHIN = re.compile(r"(?<![A-Za-z])[*_`（\[{(]*\s*([A-F])\s*[*_`）\]})]*(?=$|[\s.,:;!?)\]】》」』，。；、：）])")
_CONCLUDED = re.compile(
    r"(?:final\s*answer|the\s*answer\s*is|answer(?:\s*is)?|correct\s*answer|答案|最终答案|结论|所以|因此|我选(?:择)?|选择|选)"
    rf"\s*[:：>＝=]?\s*{_OPENED}([A-F]){_CLOSED}(?:\b|[.)、。])",
    re.IGNORECASE,
)
_ANYWHERE = re.compile(rf"(?<![A-Za-z]){_OPENED}([A-F]){_CLOSED}(?![A-Za-z])")
_TAIL, _TAIL_LINES = 800, 6


def match_option(text: str, options: Mapping[str, str]) -> Extraction:
    """A letter A to F, whatever options there are: the first of these rules that finds one.

    What `<answer>` begins with, also as the first letter of a word; what stands right before a closing tag; the last
    of six lines behind the thought, then of the whole text, that is a letter, begins with a label or names one capital
    letter; the first that follows a word such as "answer"; the only capital letter that stands alone.
    """
    said = re.sub("[\u200b\u200c\u200d\ufeff]", "", text.strip())
    tail = said[-_TAIL:]
    found = (
        _first(_TAGGED, said)
        or next((letter for tag in _BEFORE_TAGS if (letter := _first(tag, tail))), None)
        or _last_line(after_thought(said))
        or _last_line(tail)
        or _first(_CONCLUDED, said)
    )
    if not found:
        unlisted = "\n".join(line for line in said.splitlines() if not _LISTED.match(line))
        letters = set(_ANYWHERE.findall(unlisted))
        found = letters.pop() if len(letters) == 1 else None
    return Extraction(found.upper() if found else None)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1] if found else None


def _last_line(text: str) -> str | None:
    """The letter of the last line that has one, among the last lines."""
    for line in (line.strip() for line in reversed(text.splitlines()[-_TAIL_LINES:])):
        if _LISTED.match(line):
            continue
        if found := _ALONE.fullmatch(line) or _LABEL.match(line):
            return found[1]
        letters: set[str] = set(_WITHIN.findall(line))
        if len(letters) == 1:
            return letters.pop()
    return None


# --- what its readings share ---


def after_thought(text: str) -> str:
    """What follows the last closing think tag, else the last opening one; else all of the text."""
    for tag in (r"</\s*think\s*>", r"<\s*think\s*>"):
        if ends := [found.end() for found in re.finditer(tag, text, re.IGNORECASE)]:
            return text[ends[-1] :].strip()
    return text
