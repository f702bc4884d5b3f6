from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa

from amvl_core.contracts.records import DatasetRecord, DroppedExample, Shard, SourceReport
from data_prep import report
from data_prep.report import Statistics
from data_prep.shards import SCHEMA, ShardRow, ShardWriter, sha256
from tests.data_prep.pictures import png
from tests.shards import sample_of

NASTY = "<script>alert('a & b')</script>"


def dataset(folder: Path) -> DatasetRecord:
    shards = []
    for number, rows in enumerate((50, 20)):
        file = folder / f"train-{number:05d}.parquet"
        writer = ShardWriter(file)
        for i in range(rows):
            writer.write(
                ShardRow(
                    sample_of(
                        f"s/{i}{NASTY}",
                        f"<image>Which {NASTY}?",
                        NASTY if i % 2 else "yes",
                        [png(40, 20, seed=i), png()] if i % 2 else [],
                        source=NASTY,
                    ),
                    image_sizes=[(40, 20), (16, 16)] if i % 2 else [],
                    num_tokens=10 + i,
                )
            )
        writer.close()
        shards.append(Shard(file=file.name, split="train", rows=rows, sha256=sha256(file)))
    example = DroppedExample(sample_id=NASTY, detail=NASTY)
    found = SourceReport(
        source=NASTY,
        split="train",
        read=73,
        kept=70,
        dropped={"no_answer": 3},
        examples={"no_answer": [example]},
        notes={NASTY: 7},
    )
    empty = SourceReport(source="e", split="test", read=1, kept=0, dropped={"too_long": 1}, examples={})
    return DatasetRecord(
        uri=str(folder), fingerprint="f", schema_version=1, shards=shards, kept=70,
        dropped={"no_answer": 3, "too_long": 1}, reports=[found, empty],
    )  # fmt: skip


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in ("meta", "img", "line", "rect"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_well_formed_self_contained_and_escapes_every_text(tmp_path: Path) -> None:
    report.write(dataset(tmp_path), [])
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.tags["script"] == page.tags["link"] == 0
    assert NASTY in page.text
    notes = f"What was passed over source rows what was passed over {NASTY} train 7 {NASTY}"
    assert "".join(notes.split()) in "".join(page.text.split())
    assert page.tags["figure"] == report.SHOWN_SAMPLES and page.tags["img"] == report.SHOWN_SAMPLES // 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import", text)


def test_the_json_says_the_same_as_the_record_and_counts_what_is_kept(tmp_path: Path) -> None:
    record = dataset(tmp_path)
    report.write(record, [])
    summary = json.loads((tmp_path / "report.json").read_text())
    assert (summary["read"], summary["kept"], summary["dropped"]) == (74, 70, record.dropped)
    source, empty = summary["sources"]
    assert source["tokens"]["min"] == 10 and source["tokens"]["max"] == 59 and source["tokens"]["median"] == 27
    assert sum(source["tokens"]["counts"]) == 70
    assert source["images_per_sample"] == {"0": 35, "2": 35}
    assert sum(source["image_side"]["counts"]) == 70 and source["image_side"]["max"] == 28
    assert source["answers"] == {NASTY: 35, "yes": 35} and source["distinct_answers"] == 2
    assert empty["answers"] == {}


def test_memory_of_free_form_answers_is_bounded() -> None:
    statistics = Statistics()
    for start in range(0, 45_000, 1500):
        answers = ["often" if i % 3 == 0 else str(i) for i in range(start, start + 1500)]
        rows = [{"num_tokens": 1, "image_sizes": [], "answer": answer, "task": "t"} for answer in answers]
        columns = pa.schema([SCHEMA.field(name) for name in rows[0]])
        statistics.add(pa.Table.from_pylist(rows, columns))
    assert len(statistics.answers) < 40_001
    assert statistics.summary()["answers"]["often"] == 15_000
