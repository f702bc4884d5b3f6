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


# --- what its readings share ---


def after_thought(text: str) -> str:
    """What follows the last closing think tag, else the last opening one; else all of the text."""
    for tag in (r"</\s*think\s*>", r"<\s*think\s*>"):
        if ends := [found.end() for found in re.finditer(tag, text, re.IGNORECASE)]:
            return text[ends[-1] :].strip()
    return text
