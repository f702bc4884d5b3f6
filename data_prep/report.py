"""The report of a prepared dataset: what was read, kept and dropped and why, and what the kept samples look like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amvl_core.contracts import storage
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.records import DatasetRecord
from amvl_core.contracts.sample import Split
from amvl_core.pages import thumbnail
from data_prep import report_page
from data_prep.contamination import BenchmarkRecord

JSON_NAME, PAGE_NAME = "report.json", "report.html"

SHOWN_SAMPLES = 6
"""Samples with thumbnails for each source and split."""

SHOWN_ANSWERS = 9
THUMB_PIXELS = 168
_COUNTED_ANSWERS = 20_000
_COUNTED = ["source", "image_sizes.list.element.width", "image_sizes.list.element.height"]
_COUNTED += ["num_tokens", "task", "answer"]
_SHOWN = ["sample_id", "question", "answer", "images"]


@dataclass
class Statistics:
    """What the kept samples of one source and split look like. These are counters, so memory does not grow with rows.

    `sides` counts images by the square root of their area in pixels. Of free-form answers the commonest are counted.
    """

    tokens: Counter[int] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, str]] = field(default_factory=list)

    def add(self, rows: pa.Table) -> None:
        """Counts rows of a shard: their columns `num_tokens`, `image_sizes`, `task` and `answer`."""
        self.tokens.update(rows["num_tokens"].to_pylist())
        self.images.update(pc.list_value_length(rows["image_sizes"]).to_pylist())
        width, height = pc.list_flatten(rows["image_sizes"]).combine_chunks().flatten()
        self.sides.update(np.sqrt(np.multiply(width, height, dtype=np.float64)).round().astype(int).tolist())
        self.tasks.update(rows["task"].to_pylist())
        self.answers.update(answer.strip()[:80] for answer in rows["answer"].to_pylist())
        if len(self.answers) > 2 * _COUNTED_ANSWERS:
            self.answers = Counter(dict(self.answers.most_common(_COUNTED_ANSWERS)))

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON and for the page."""
        return {
            "tokens": _distribution(self.tokens),
            "image_side": _distribution(self.sides),
            "images_per_sample": dict(sorted(self.images.items())),
            "tasks": dict(sorted(self.tasks.items(), key=lambda item: (-item[1], item[0]))),
            "answers": dict(sorted(self.answers.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_ANSWERS]),
            "distinct_answers": len(self.answers),
        }


def write(record: DatasetRecord, benchmarks: Sequence[BenchmarkRecord]) -> None:
    """Writes `report.json` and `report.html` below the record's `uri`. Raises StorageError.

    `benchmarks` are those that training samples were compared with.
    """
    statistics = _statistics(record)
    sources = [
        {**found.model_dump(mode="json"), **statistics.get((found.source, found.split), Statistics()).summary()}
        for found in record.reports
    ]
    summary = {
        "fingerprint": record.fingerprint,
        "read": sum(found.read for found in record.reports),
        "kept": record.kept,
        "dropped": record.dropped,
        "shards": [shard.model_dump(mode="json") for shard in record.shards],
        "benchmarks": [
            benchmark.model_dump(include={"name", "questions", "images", "dropped"}) for benchmark in benchmarks
        ],
        "sources": sources,
    }
    storage.write_bytes(storage.join(record.uri, JSON_NAME), json.dumps(summary, indent=2, ensure_ascii=False).encode())
    samples = [statistics.get((found.source, found.split), Statistics()).samples for found in record.reports]
    page = report_page.render(summary, samples)
    storage.write_bytes(storage.join(record.uri, PAGE_NAME), page.encode())


def _statistics(record: DatasetRecord) -> dict[tuple[str, Split], Statistics]:
    """Reads a row group at a time, and only the images that are shown. A shard is of one source."""
    found: dict[tuple[str, Split], Statistics] = {}
    for shard in record.shards:
        with storage.opened(storage.join(record.uri, shard.file)) as stream:
            file = ParquetStream(stream)
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, _COUNTED)
                statistics = found.setdefault((rows["source"][0].as_py(), shard.split), Statistics())
                statistics.add(rows)
                if missing := SHOWN_SAMPLES - len(statistics.samples):
                    shown = file.read_row_group(group, _SHOWN).slice(0, missing).to_pylist()
                    statistics.samples += [_sample(row) for row in shown]
    return found


def _sample(row: dict[str, Any]) -> dict[str, str]:
    """What the page shows of one sample; `image` is a data URL of its first image, empty where there is none."""
    images = row["images"]
    return {
        "sample_id": row["sample_id"],
        "question": row["question"],
        "answer": row["answer"],
        "image": thumbnail(images[0], 2 * THUMB_PIXELS) if images else "",
        "images": str(len(images)),
    }


def _distribution(counts: Counter[int], bins: int = 24) -> dict[str, Any]:
    """Minimum, median, 95th percentile, maximum, and at most `bins` bars: `edges` (one more) and `counts`."""
    if not counts:
        return {"min": 0, "median": 0, "p95": 0, "max": 0, "edges": [], "counts": []}
    low, high = min(counts), max(counts)
    step = max(1, -(-(high + 1 - low) // bins))
    edges = list(range(low, high + step + 1, step))
    bars = [0] * (len(edges) - 1)
    for value, count in counts.items():
        bars[(value - low) // step] += count
    while bars and bars[-1] == 0:
        bars.pop()
        edges.pop()
    return {
        "min": low,
        "median": _quantile(counts, 0.5),
        "p95": _quantile(counts, 0.95),
        "max": high,
        "edges": edges,
        "counts": bars,
    }


def _quantile(counts: Counter[int], share: float) -> int:
    wanted, passed = share * sum(counts.values()), 0
    for value in sorted(counts):
        passed += counts[value]
        if passed >= wanted:
            return value
    return max(counts)
