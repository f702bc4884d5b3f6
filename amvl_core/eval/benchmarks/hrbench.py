"""HR-Bench 4K and 8K (DreamMr/HR-Bench): 200 questions, each under 4 rotations of its options; Table 1.

The published Parquet or TSV file; a folder may hold both resolutions. The score is the mean over the rotations of the
share that is right in each; there is no rule that all four must be. The rotations of a question are one group: 800
rows are not 800 independent items.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from amvl_core.eval import lmms_eval, vlmevalkit
from amvl_core.eval.benchmarks import files
from amvl_core.eval.benchmarks.benchmark import (
    Benchmark,
    Question,
    SkippedQuestion,
    convert,
    digest,
    letter,
    lettered,
    mean_of_parts,
)

INSTRUCTION = "Answer the option letter directly."


def _question(name: str, file: str, row: dict[str, Any]) -> Question:
    options = lettered([row["A"], row["B"], row["C"], row["D"]])
    images = files.images(row["image"])
    listed = "".join(f"\n{name}. {text}" for name, text in options.items())
    return Question(
        item_id=f"{name}/{row['index']}",
        task=row["category"],
        images=images,
        prompt=f"{row['question']}{listed}\n{INSTRUCTION}",
        answer=letter(row["answer"]),
        options=options,
        part=str(row["cycle_category"]),
        group=digest(*images, row["question"], "\n".join(sorted(options.values()))),
        asked=row["question"],
    )


def _benchmark(resolution: str) -> Benchmark:
    name = f"hrbench_{resolution}"
    published = files.Published(
        (".parquet", ".tsv"),
        f"the Parquet or TSV file with {resolution} in its name, or a folder that holds one such file",
        lambda file: resolution in file.lower(),
        single=True,
    )

    def read(uri: str) -> Iterator[Question | SkippedQuestion]:
        """The 800 rows of this resolution in published order."""
        yield from convert(published.rows(uri), partial(_question, name))

    return Benchmark(
        name=name,
        size=800,
        read=read,
        check=published.find,
        readings={"lmms-eval": lmms_eval.hrbench, "VLMEvalKit": vlmevalkit.infer},
        metrics={"overall": mean_of_parts(), "FSP": mean_of_parts("single"), "FCP": mean_of_parts("cross")},
    )


HRBENCH_4K, HRBENCH_8K = _benchmark("4k"), _benchmark("8k")
