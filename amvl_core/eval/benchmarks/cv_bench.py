"""CV-Bench (nyu-visionx/CV-Bench): 2,638 questions on counting, relation, depth and distance.

The published `test_2d.parquet` and `test_3d.parquet`. Overall = 1/2 ((ADE20K + COCO) / 2 + Omni3D), by source.
"""

from __future__ import annotations

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
    lettered,
    mean,
    mean_of_parts,
)
from amvl_core.eval.benchmarks.blink import short_answer

SHARES = {"ADE20K": 0.25, "COCO": 0.25, "Omni3D": 0.5}
TASKS = ("Count", "Relation", "Depth", "Distance")


FILES = files.Published(
    (".parquet",),
    "the folder with test_2d.parquet and test_3d.parquet",
)


def read(uri: str) -> Iterator[Question | SkippedQuestion]:
    """The questions in published order."""
    yield from convert(FILES.rows(uri), _question)


def _question(file: str, row: dict[str, Any]) -> Question:
    options = lettered(row["choices"])
    return Question(
        item_id=f"cv_bench/{row['type']}/{row['idx']}",  # idx need not be unique across 2D and 3D
        task=row["task"],
        images=(files.image(row["image"]),),
        prompt=short_answer(options) + "\n" + row["prompt"],
        answer=letter(row["answer"]),
        options=options,
        part=row["source"],
        asked=row.get("question") or row["prompt"],
    )


CV_BENCH = Benchmark(
    name="cv_bench",
    size=2638,
    read=read,
    check=FILES.find,
    readings={"lmms-eval": lmms_eval.first_letter, "VLMEvalKit": vlmevalkit.infer},
    metrics={"overall": mean_of_parts(shares=SHARES), "micro": mean(), **{task: mean(task) for task in TASKS}},
)
