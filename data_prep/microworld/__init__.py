"""Microworld: generated images with questions, reasoning steps, regions and answers, all from a seed.

Sample number `i` depends on (seed, split, tasks, difficulty, i) alone, so blocks can be generated anywhere in any
order. Per task the answers are equally frequent. A task of dependent steps is one task for each number of steps
(`chain_5`), so a score table has its accuracy by difficulty. What an image shows belongs either to train or to test,
whatever the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from random import Random

from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import MicroworldSource, MicroworldTask
from data_prep.microworld import draw
from data_prep.microworld.dependent import DEPENDENT
from data_prep.microworld.scene import Scene, Task
from data_prep.microworld.tasks import TASKS

__all__ = ["count", "generate"]


def count(source: MicroworldSource, split: Split) -> int:
    """How many samples a split has. Raises ConfigError where no task, or one task twice, is asked for."""
    if not source.tasks or len(set(source.tasks)) < len(source.tasks):
        raise ConfigError(
            f"microworld: tasks is {list(source.tasks)}; "
            f"name at least one of {', '.join([*TASKS, *DEPENDENT])}, each once"
        )
    return source.train if split == "train" else source.test


def generate(source: MicroworldSource, split: Split, start: int = 0, stop: int | None = None) -> Iterator[Conversation]:
    """Samples `start` to `stop` (as in a slice) of a split; the tasks take turns.

    Regions are in pixels of the image, which is `draw.SIZE` square. Raises ConfigError like `count`.
    """
    indices = range(count(source, split))[start:stop]
    return (_sample(source, split, index) for index in indices)


def _sample(source: MicroworldSource, split: Split, index: int) -> Conversation:
    number, turn = divmod(index, len(source.tasks))
    name, task, number = _task(source, source.tasks[turn], number)
    scene = _scene(source.seed, split, name, task, number)
    return Conversation(
        sample_id=f"microworld/{split}/{index:06d}",
        source="microworld",
        split=split,
        task=name,
        images=(draw.png(scene.render()),),
        question=f"{IMAGE_PLACEHOLDER}{scene.question}",
        steps=scene.steps,
        answer=scene.answer,
        regions=scene.regions,
    )


def _task(source: MicroworldSource, kind: MicroworldTask, number: int) -> tuple[str, Task, int]:
    """What scene `number` of a kind of task is: a task, its name in score tables, and which of its scenes."""
    if kind in TASKS:
        return kind, TASKS[kind], number
    low, high = source.difficulty
    number, more = divmod(number, high - low + 1)
    moves = low + more
    answers, scene = DEPENDENT[kind]
    return f"{kind}_{moves}", Task(answers, lambda rng, answer: scene(rng, answer, moves)), number


def _scene(seed: int, split: Split, name: str, task: Task, number: int) -> Scene:
    """Scene `number` of a task: its answer is fixed first, then scenes are drawn until one belongs to the split."""
    round_, turn = divmod(number, len(task.answers))
    answer = _rng(seed, split, name, "answers", round_).sample(task.answers, len(task.answers))[turn]
    rng = _rng(seed, split, name, "scene", number)
    while True:
        scene = task.scene(rng, answer)
        if _split_of(scene) == split:
            return scene


def _split_of(scene: Scene) -> Split:
    """Half of all layouts are for training: a test layout is never one of them."""
    return "train" if _digest(*scene.layout) % 2 == 0 else "test"


def _rng(*key: object) -> Random:
    return Random(_digest(*key))


def _digest(*key: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
