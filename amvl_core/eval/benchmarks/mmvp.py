"""MMVP (MMVP/MMVP): 150 pairs of images that look alike to CLIP, one question each; a pair counts if both are right.

`Questions.csv` with the images in `MMVP Images/<Index>.jpg` beside it. The published answers of 99, 100, 279 and 280
are swapped (github.com/tsb0601/MMVP/issues/30); they are corrected here, as lmms-eval does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from amvl_core.eval import lmms_eval
from amvl_core.eval.benchmarks import files
from amvl_core.eval.benchmarks.benchmark import (
    Benchmark,
    Question,
    SkippedQuestion,
    convert,
    letter,
    mean,
    whole_groups,
)

INSTRUCTION = "Answer with the option's letter from the given choices directly."
CORRECTED = {99: "B", 100: "A", 279: "B", 280: "A"}
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.IGNORECASE | re.DOTALL)


FILES = files.Published(
    (".csv",),
    "the folder that holds Questions.csv and `MMVP Images`",
    lambda name: name == "Questions.csv",
)


def read(uri: str) -> Iterator[Question | SkippedQuestion]:
    """The 300 questions in published order."""
    yield from convert(FILES.rows(uri), _question)


def _question(file: str, row: dict[str, Any]) -> Question:
    index = int(row["Index"])
    options = {name.upper(): text for name, text in _OPTION.findall(row["Options"])}
    listed = "".join(f"\n{name}. {text}" for name, text in options.items())
    return Question(
        item_id=f"mmvp/{index}",
        task="all",
        images=(files.beside(file, f"MMVP Images/{index}.jpg"),),
        prompt=f"{row['Question']}{listed}\n{INSTRUCTION}",
        answer=CORRECTED.get(index) or letter(row["Correct Answer"]),
        options=options,
        group=f"pair {(index + 1) // 2}",  # (1, 2), (3, 4) ...
        asked=row["Question"],
    )


MMVP = Benchmark(
    name="mmvp",
    size=300,
    read=read,
    check=FILES.find,
    readings={"lmms-eval": lmms_eval.mmvp},
    metrics={"question": mean(), "pair": whole_groups(2)},
)
