"""From stored predictions to accuracies with intervals; needs no model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from amvl_core.records import TaskScore

Z_95 = 1.959963984540054


class Item(NamedTuple):
    """One scored question."""

    task: str
    answer: str
    correct: bool


def extract(raw_output: str) -> str:
    """The answer in a model's text: its last line that is not empty."""
    lines = [line.strip() for line in raw_output.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def normalise(answer: str) -> str:
    """Lower case, without outer punctuation or blanks: what exact match compares."""
    return answer.strip().strip(".,;:!?()[]\"'").strip().lower()


def is_correct(prediction: str, answer: str) -> bool:
    """Exact match after normalisation; an empty prediction is wrong."""
    return bool(normalise(prediction)) and normalise(prediction) == normalise(answer)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion; (0, 1) where there is no item."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, Z_95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 or n correct the bound is the proportion itself; rounding must not push it past.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


def majority_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The commonest answer of each task among (task, answer) of the training split; ties go to the first in order."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task, answer in pairs:
        counts[task][normalise(answer)] += 1
    return {task: min(count, key=lambda a: (-count[a], a)) for task, count in counts.items()}


def score(items: Iterable[Item], majority: Mapping[str, str]) -> tuple[list[TaskScore], TaskScore]:
    """A score per task in order of name, and the mean over all items.

    `majority` maps a task to the answer that a model without eyes would always give.
    """
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.task].append(item)
    scores = [_score(task, group, majority) for task, group in sorted(groups.items())]
    everything = [item for group in groups.values() for item in group]
    return scores, _score("all", everything, majority)


def _score(name: str, items: list[Item], majority: Mapping[str, str]) -> TaskScore:
    n, correct = len(items), sum(item.correct for item in items)
    blind = sum(normalise(item.answer) == majority.get(item.task) for item in items)
    low, high = wilson(correct, n)
    return TaskScore(
        task=name,
        n=n,
        correct=correct,
        accuracy=correct / n if n else 0.0,
        low=low,
        high=high,
        majority=blind / n if n else 0.0,
    )
