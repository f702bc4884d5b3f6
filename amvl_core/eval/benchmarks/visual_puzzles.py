"""VisualPuzzles (neulab/VisualPuzzles): 1,168 puzzles in five categories; Table 6.

The published Parquet files, whatever their split is called: there is only one. Options may be in the image alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amvl_core.eval import lmms_eval, vlmevalkit
from amvl_core.eval.benchmarks import files
from amvl_core.eval.benchmarks.benchmark import Benchmark, Question, SkippedQuestion, convert, letter, lettered, mean

INSTRUCTION = "Answer the question with the option's letter from the given choices directly."
IN_THE_IMAGE = "\nOptions: Choose from (A) (B) (C) (D) in the image."
SIZES = {"algorithmic": 262, "analogical": 211, "deductive": 200, "inductive": 209, "spatial": 286}


FILES = files.Published(
    (".parquet",),
    "the folder with the published Parquet files",
)


def read(uri: str) -> Iterator[Question | SkippedQuestion]:
    """The puzzles in published order."""
    yield from convert(FILES.rows(uri), _question)


def _question(file: str, row: dict[str, Any]) -> Question:
    texts = row["options"]
    options = lettered(texts) if texts else dict.fromkeys("ABCD", "")
    listed = "\nOptions:" + "".join(f"\n({name}) {text}" for name, text in options.items()) if texts else IN_THE_IMAGE
    # "<image1>" stands in some questions for the one image, which comes first in any case.
    asked = row["question"].replace("<image1>", "").strip()
    return Question(
        item_id=f"visual_puzzles/{row['id']}",
        task=row["category"].lower(),
        images=(files.image(row["image"]),),
        prompt=f"Question: {asked}{listed}\n{INSTRUCTION}",
        answer=letter(row["answer"]),
        options=options,
        asked=asked,
    )


VISUAL_PUZZLES = Benchmark(
    name="visual_puzzles",
    size=sum(SIZES.values()),
    read=read,
    check=FILES.find,
    readings={"lmms-eval": lmms_eval.visual_puzzles, "VLMEvalKit": vlmevalkit.visual_puzzles},
    metrics={"overall": mean(), **{task: mean(task) for task in SIZES}},
)
