"""A readable sample of what a model answered."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from amvl_core import storage
from amvl_core.records import EvalRecord

SAMPLES_PER_TASK = 12
COLUMNS = ("task", "sample_id", "prompt", "answer", "prediction", "correct", "raw_output")


def sample(record: EvalRecord) -> dict[str, list[Any]]:
    """The first predictions of every task, wrong ones first, as columns."""
    fs, path = storage.filesystem(record.predictions_uri)
    with fs.open(path, "rb") as file:
        rows = pq.read_table(file, columns=list(COLUMNS)).to_pylist()
    kept: list[dict[str, Any]] = []
    for task in sorted({row["task"] for row in rows}):
        of_task = sorted((row for row in rows if row["task"] == task), key=lambda row: row["sample_id"])
        wrong = [row for row in of_task if not row["correct"]][: SAMPLES_PER_TASK // 2]
        right = [row for row in of_task if row["correct"]][: SAMPLES_PER_TASK - len(wrong)]
        kept += wrong + right
    return {name: [row[name] for row in kept] for name in COLUMNS}
