"""V* (craigwu/vstar_bench): 191 questions about small details in large photographs; Table 1.

`test_questions.jsonl` with the images beside it, or the Parquet files of the data set's page. The published text holds
question, options and instruction, and is the prompt as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from amvl_core.eval import lmms_eval, vlmevalkit
from amvl_core.eval.benchmarks import files
from amvl_core.eval.benchmarks.benchmark import Benchmark, Question, SkippedQuestion, convert, letter, mean

_OPTION = re.compile(r"^\(([A-D])\)[ \t]*(.*)$", re.MULTILINE)


FILES = files.Published(
    (".jsonl", ".parquet"),
    "the folder with test_questions.jsonl and its images, or its Parquet files",
)


def read(uri: str) -> Iterator[Question | SkippedQuestion]:
    """The questions in published order."""
    yield from convert(FILES.rows(uri), _question)


def _question(file: str, row: dict[str, Any]) -> Question:
    shown = row["image"]
    return Question(
        # question_id is a number or text, and need not be unique across categories.
        item_id=f"vstar/{row['category']}/{row['question_id']}",
        task=row["category"],
        images=(files.beside(file, shown) if isinstance(shown, str) else files.image(shown),),
        prompt=row["text"],
        answer=letter(row["label"]),
        options={name: text.strip() for name, text in _OPTION.findall(row["text"])},
        asked=_OPTION.split(row["text"], maxsplit=1)[0].strip(),
    )


VSTAR = Benchmark(
    name="vstar",
    size=191,
    read=read,
    check=FILES.find,
    readings={"lmms-eval": lmms_eval.vstar, "VLMEvalKit": vlmevalkit.infer},
    metrics={"overall": mean(), "attribute": mean("direct_attributes"), "spatial": mean("relative_position")},
)
