"""From stored predictions to accuracies with intervals; needs no model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from amvl_core.eval.statistics import wilson
from amvl_core.records import TaskScore


class Item(NamedTuple):
    """One scored question."""

    task: str
    answer: str
    correct: bool


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
