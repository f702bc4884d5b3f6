"""MMStar (Lin-Chen/MMStar): 1,500 questions that need their image, 250 in each of six categories.

The published Parquet file. The options stand in the question: "... Options: A: a cat, B: a dog".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from amvl_core.eval import lmms_eval, vlmevalkit
from amvl_core.eval.benchmarks import files
from amvl_core.eval.benchmarks.benchmark import (
    Benchmark,
    Question,
    SkippedQuestion,
    convert,
    letter,
    mean,
    mean_of_tasks,
)

INSTRUCTION = "\nAnswer with the option's letter from the given choices directly"
CATEGORIES = (
    *("coarse perception", "fine-grained perception", "instance reasoning", "logical reasoning"),
    *("science & technology", "math"),
)
_OPTION = re.compile(r"(?:^|[\s,])([A-D]):\s*(.*?)(?=,?\s+[A-D]:\s|$)", re.DOTALL)


FILES = files.Published(
    (".parquet",),
    "the published Parquet file",
)


def read(uri: str) -> Iterator[Question | SkippedQuestion]:
    """The questions in published order."""
    yield from convert(FILES.rows(uri), _question)


def _question(file: str, row: dict[str, Any]) -> Question:
    question = row["question"].strip()
    return Question(
        item_id=f"mmstar/{row['index']}",
        task=row["category"],
        images=(files.image(row["image"]),),
        prompt=question + INSTRUCTION,
        answer=letter(row["answer"]),
        options=options_in(question),
        asked=question.partition("Options:")[0].strip(),
    )


def options_in(question: str) -> dict[str, str]:
    """The options after the last "Options:", or A to D without texts where they cannot be told apart."""
    found = dict(_OPTION.findall(question.rpartition("Options:")[2]))
    in_order = list(found) == list("ABCD")[: len(found)]
    return found if len(found) > 1 and in_order else dict.fromkeys("ABCD", "")


MMSTAR = Benchmark(
    name="mmstar",
    size=1500,
    read=read,
    check=FILES.find,
    readings={"lmms-eval": lmms_eval.mmstar, "VLMEvalKit": vlmevalkit.infer},
    metrics={"overall": mean_of_tasks(CATEGORIES), **{name: mean(name) for name in CATEGORIES}},
)
