"""The report of a prepared dataset: what was read, kept and dropped and why, and what the kept samples look like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from amvl_core import storage
from amvl_core.pages import thumbnail
from amvl_core.records import DatasetRecord
from amvl_core.sample import Split
from data_prep import report_page

JSON_NAME, PAGE_NAME = "report.json", "report.html"

SHOWN_SAMPLES = 6
"""Samples with thumbnails for each source and split."""

SHOWN_ANSWERS = 9
THUMB_PIXELS = 168
_COUNTED_ANSWERS = 20_000
_COLUMNS = ["sample_id", "source", "segments", "image_sizes", "num_tokens", "extra"]


@dataclass
class Statistics:
    """What the kept samples of one source and split look like; counters, so that memory does not grow with rows.

    `sides` counts images by the square root of their area in pixels. Of free-form answers the commonest are counted.
    """

    tokens: Counter[int] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, str]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Counts one row of a shard."""
        extra = json.loads(row["extra"])
        self.tokens[row["num_tokens"]] += 1
        self.images[len(row["image_sizes"])] += 1
        for size in row["image_sizes"]:
            self.sides[round((size["width"] * size["height"]) ** 0.5)] += 1
        self.tasks[extra["task"]] += 1
        self.answers[extra["answer"].strip()[:80]] += 1
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


def write(record: DatasetRecord) -> None:
    """Writes `report.json` and `report.html` below the record's `uri`. Raises StorageError."""
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
        "sources": sources,
    }
    storage.write_bytes(storage.join(record.uri, JSON_NAME), json.dumps(summary, indent=2, ensure_ascii=False).encode())
    samples = [statistics.get((found.source, found.split), Statistics()).samples for found in record.reports]
    page = report_page.render(summary, samples)
    storage.write_bytes(storage.join(record.uri, PAGE_NAME), page.encode())


def _statistics(record: DatasetRecord) -> dict[tuple[str, Split], Statistics]:
    found: dict[tuple[str, Split], Statistics] = {}
    for shard in record.shards:
        with storage.opened(storage.join(record.uri, shard.file)) as stream:
            file = pq.ParquetFile(stream)
            for number, row in enumerate(_rows(file)):
                statistics = found.setdefault((row["source"], shard.split), Statistics())
                statistics.add(row)
                if len(statistics.samples) < SHOWN_SAMPLES:
                    statistics.samples.append(_sample(file, number, row))
    return found


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    """All columns but the images, a row group at a time."""
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group, _COLUMNS).to_pylist()


def _sample(file: Any, number: int, row: dict[str, Any]) -> dict[str, str]:
    """What the page shows of one sample; `image` is a data URL of its first image, empty where there is none."""
    group = 0
    while number >= file.metadata.row_group(group).num_rows:
        number -= file.metadata.row_group(group).num_rows
        group += 1
    images = file.read_row_group(group, ["images"])["images"][number].as_py()
    question = next((segment["text"] for segment in row["segments"] if segment["kind"] == "prompt"), "")
    return {
        "sample_id": row["sample_id"],
        "question": question,
        "answer": json.loads(row["extra"])["answer"],
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
