"""BLINK (BLINK-Benchmark/BLINK), validation split: 14 tasks, 1,901 questions with up to four images; Table 2.

One folder per task with `val-*.parquet`. The answers of the test split are not published, so it is left out. The
official overall score is the macro mean of the 14 tasks, Table 2's average that of seven, VLMEvalKit's the micro mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    mean_of_tasks,
)

SIZES = {
    "Art_Style": 117,
    "Counting": 120,
    "Forensic_Detection": 132,
    "Functional_Correspondence": 130,
    "IQ_Test": 150,
    "Jigsaw": 150,
    "Multi-view_Reasoning": 133,
    "Object_Localization": 122,
    "Relative_Depth": 124,
    "Relative_Reflectance": 134,
    "Semantic_Correspondence": 139,
    "Spatial_Relation": 143,
    "Visual_Correspondence": 172,
    "Visual_Similarity": 135,
}
SEVEN = (
    *("IQ_Test", "Jigsaw", "Object_Localization", "Art_Style", "Multi-view_Reasoning", "Spatial_Relation"),
    "Visual_Similarity",
)
"""The tasks of Table 2, in its order."""


FILES = files.Published(
    (".parquet",),
    "the folder that holds a folder per task with val-*.parquet",
    lambda name: name.startswith("val"),
)


def read(uri: str) -> Iterator[Question | SkippedQuestion]:
    """The questions of the validation split, task by task."""
    yield from convert(FILES.rows(uri), _question)


def _question(file: str, row: dict[str, Any]) -> Question:
    shown = [row[name] for name in ("image_1", "image_2", "image_3", "image_4") if row.get(name) is not None]
    options = lettered(row["choices"])
    return Question(
        item_id=row["idx"],
        task=task_of(row["idx"]),
        images=tuple(files.image(value) for value in shown),
        prompt=short_answer(options) + row["prompt"],
        answer=letter(row["answer"]),
        options=options,
        asked=row.get("question") or row["prompt"],
    )


def task_of(idx: str) -> str:
    """`val_Art_Style_12` -> `Art_Style`; ValueError for another form."""
    split, _, rest = idx.partition("_")
    task, _, number = rest.rpartition("_")
    if split != "val" or task not in SIZES or not number.isdigit():
        raise ValueError(f"{idx!r} is no question of the validation split")
    return task


def short_answer(options: Mapping[str, str]) -> str:
    """lmms-eval's first line, which names the letters there are."""
    return f"Note: You only need to respond with {', '.join(options)} without providing any additional information.\n"


BLINK = Benchmark(
    name="blink",
    size=sum(SIZES.values()),
    read=read,
    check=FILES.find,
    readings={"lmms-eval": lmms_eval.first_letter, "VLMEvalKit": vlmevalkit.infer},
    metrics={
        "overall": mean_of_tasks(),
        "average of seven": mean_of_tasks(SEVEN),
        "micro": mean(),
        **{task: mean(task) for task in SIZES},
    },
)
