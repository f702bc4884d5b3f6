"""When an answer in words is right, and which answers a training split gives."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

MAX_CANDIDATES = 16
"""A task with more different answers has no closed set of them."""


def normalise(answer: str) -> str:
    """Lower case, without outer punctuation or blanks: what exact match compares."""
    return answer.strip().strip(".,;:!?()[]\"'").strip().lower()


def is_correct(prediction: str, answer: str) -> bool:
    """Exact match after normalisation; an empty prediction is wrong."""
    return bool(normalise(prediction)) and normalise(prediction) == normalise(answer)


def majority_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The commonest answer of each task among (task, answer) of the training split; ties go to the first in order."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task, answer in pairs:
        counts[task][normalise(answer)] += 1
    return {task: min(count, key=lambda a: (-count[a], a)) for task, count in counts.items()}


def closed_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The answers of each task among (task, answer) of the training split, where they are few enough to try them all.

    Of answers that are the same after normalisation the first is kept.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for task, answer in pairs:
        found[task].setdefault(normalise(answer), answer)
    return {
        task: [answers[key] for key in sorted(answers)]
        for task, answers in found.items()
        if 1 < len(answers) <= MAX_CANDIDATES
    }
