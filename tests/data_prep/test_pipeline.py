from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from amvl_core.contracts import content_identity, storage
from amvl_core.contracts.config import BenchmarkSource, DataConfig, ModelConfig, RunConfig
from amvl_core.contracts.errors import ConfigError, DataError, StorageError
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import DatasetRecord, load_record
from amvl_core.contracts.sources import ChatJsonlSource, EasyVqaSource, MicroworldSource
from amvl_core.data.encode import TokenCounter
from amvl_core.methods.amvl.presets import demo
from data_prep import filters, listing, published
from data_prep.microworld.export import FORMS, export
from data_prep.pipeline import fingerprint, prepare
from data_prep.sources import detect
from data_prep.units import Work
from tests.amvl_core.eval.benchmarks.published import vstar
from tests.data_prep import archives
from tests.data_prep.archives import as_folder, as_tar, as_zip, chat_row
from tests.data_prep.pictures import decode, encode, grid, png, venn


def configure(*sources: Any, **data: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "target": "answer",
        "min_pixels": 256,
        "max_pixels": 4096,
        "max_tokens": 256,
        "rows_per_shard": 4,
    }
    return demo().model_copy(update={"data": DataConfig(sources=sources, **(settings | data))})


def run(config: RunConfig, uri: Path | str) -> tuple[DatasetRecord, list[Progress]]:
    events: list[Progress] = []
    return prepare(config, str(uri), events.append), events


def here(data: DataConfig, folder: Path) -> Work:
    """The work of a source, without Ray."""
    config = configure(*data.sources)
    return Work(data, TokenCounter.from_model(config.model), (str(folder),))


def read(record: DatasetRecord, split: Any = "train") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for shard in record.files(split):
        rows += pq.read_table(io.BytesIO(storage.read_bytes(storage.join(record.uri, shard.file)))).to_pylist()
    return rows


def test_sources_become_one_dataset(ray_cluster: None, tmp_path: Path) -> None:
    easy = EasyVqaSource(uri=as_tar(tmp_path / "easy.tar.gz", archives.easy_vqa(10, 3)))
    chat = ChatJsonlSource(
        uri=as_zip(tmp_path / "chat.zip", archives.chat(*[chat_row(f"<image>{i}?") for i in range(5)]))
    )
    empty = ChatJsonlSource(name="empty", uri=as_folder(tmp_path / "empty", archives.chat()))
    config = configure(easy, chat, MicroworldSource(train=8, test=8), empty)
    record, events = run(config, tmp_path / "out")
    assert [(shard.file, shard.rows) for shard in record.files("train")] == [
        ("train-00000.parquet", 4), ("train-00001.parquet", 4), ("train-00002.parquet", 2),
        ("train-00003.parquet", 4), ("train-00004.parquet", 1),
        ("train-00005.parquet", 4), ("train-00006.parquet", 4),
    ]  # fmt: skip
    assert (record.rows("train"), record.rows("test"), record.kept, record.dropped) == (23, 11, 34, {})
    assert [(report.source, report.read) for report in record.reports if not report.kept] == [("empty", 0)]
    assert record.fingerprint == fingerprint(config)
    assert load_record(record.uri, DatasetRecord) == record
    rows = read(record)
    assert [row["sample_id"] for row in rows[:10]] == [f"easy_vqa/train/{i:06d}" for i in range(10)]
    assert rows[0]["question"].startswith("<image>") and rows[0]["answer"] and rows[0]["steps"] == []
    assert rows[0]["images"] == [archives.easy_vqa()["easy/data/train/images/0.png"]]
    assert rows[0]["task"] == "shape"
    assert all(row["num_tokens"] > 0 for row in rows)
    assert (events[0].done, events[-1].done, events[-1].total) == (0, 34, 34)
    assert [event.done for event in events] == sorted(event.done for event in events)


def test_every_row_is_kept_or_counted_with_a_reason(ray_cluster: None, tmp_path: Path) -> None:
    rows = [
        chat_row(),
        chat_row(images=["pictures/bad.png"]),
        chat_row(images=["pictures/cut.png"]),
        chat_row(images=["pictures/none.png"]),
        chat_row(answer=" "),
        chat_row("No placeholder?"),
        chat_row("<image>" + "long " * 300),
        chat_row(images=["pictures/tiny.png"]),
        *[{"messages": []} for _ in range(5)],
    ]
    files = archives.chat(*rows)
    files["pictures/bad.png"] = b"no image"
    files["pictures/cut.png"] = png(64, 64)[:500]
    files["pictures/tiny.png"] = png(2, 2)
    record, _ = run(configure(ChatJsonlSource(uri=as_folder(tmp_path / "chat", files))), tmp_path / "out")
    assert record.dropped == {
        filters.MALFORMED_ROW: 5,
        filters.MISSING_IMAGE: 1,
        filters.NO_ANSWER: 1,
        filters.PLACEHOLDER_MISMATCH: 1,
        filters.SMALL_IMAGE: 1,
        filters.TOO_LONG: 1,
        filters.UNREADABLE_IMAGE: 2,
    }
    (report,) = record.reports
    assert report.read == 13 == report.kept + sum(report.dropped.values())
    assert [example.sample_id for example in report.examples[filters.UNREADABLE_IMAGE]] == [
        "chat/train/line-0000002",
        "chat/train/line-0000003",
    ]
    assert len(report.examples[filters.MALFORMED_ROW]) == 3
    assert len(read(record)) == record.kept == 1


def test_bytes_do_not_depend_on_who_writes_or_how_the_source_is_packed(ray_cluster: None, tmp_path: Path) -> None:
    files = archives.easy_vqa(30, 5)
    uris = [as_folder(tmp_path / "f", files), as_tar(tmp_path / "t.tar", files, "w"), as_zip(tmp_path / "z", files)]
    data = configure(EasyVqaSource(uri=uris[0])).data
    # In this process, one after the other and backwards, against Ray's tasks on three CPUs.
    alone = here(data, tmp_path / "alone")
    done = [alone.run(unit) for unit in reversed(list(listing.units(data, 0, ())))]
    expected = [unit.shard for unit in sorted(done, key=lambda unit: (unit.split == "test", unit.number))]
    for number, uri in enumerate(uris):
        record, _ = run(configure(EasyVqaSource(uri=uri)), tmp_path / f"out{number}" / "dataset")
        assert record.shards == expected
        for shard in record.shards:
            data_of_shard = Path(record.uri, shard.file).read_bytes()
            assert hashlib.sha256(data_of_shard).hexdigest() == shard.sha256


def test_a_source_that_is_prepared_is_not_prepared_again(ray_cluster: None, tmp_path: Path) -> None:
    easy = EasyVqaSource(uri=as_zip(tmp_path / "easy.zip", archives.easy_vqa(10, 3)))
    world = MicroworldSource(train=8, test=4)
    one, _ = run(configure(easy), tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sources").rglob("*.parquet")}
    two, events = run(configure(easy, world), tmp_path / "two")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "sources").rglob("*.parquet")}
    assert before.items() < after.items() and one.fingerprint != two.fingerprint
    assert events[0].done == 0 and events[0].total == 13 and events[-1].total == 25
    assert two.shards[: len(one.files("train"))] == one.files("train")
    (tmp_path / "three").mkdir()
    alone, _ = run(configure(easy, world), tmp_path / "three" / "out")
    assert alone.shards == two.shards
    assert {file.name for file in (tmp_path / "two").iterdir()} >= {"record.json", "report.html", "report.json"}


def test_of_a_source_that_changed_while_it_was_read_nothing_stays(ray_cluster: None, tmp_path: Path) -> None:
    config = configure(ChatJsonlSource(uri=as_folder(tmp_path / "chat", archives.chat(chat_row()))))

    def change(_: Progress) -> None:
        (tmp_path / "chat" / "new").touch()

    with pytest.raises(DataError, match="source chat: the files that it reads changed while they were read"):
        prepare(config, str(tmp_path / "out"), change)
    assert not list((tmp_path / "sources").iterdir()) and not (tmp_path / "out").exists()
    assert run(config, tmp_path / "out")[0].fingerprint == fingerprint(config)


def test_a_run_reads_what_sources_and_benchmarks_hold_once(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    md5 = content_identity._md5
    monkeypatch.setattr(content_identity, "_md5", lambda file: read.append(file.name) or md5(file))
    monkeypatch.setattr(content_identity, "_SETTLED_NS", 0)
    config = configure(ChatJsonlSource(uri=as_folder(tmp_path / "chat", archives.chat(chat_row()))))
    (tmp_path / "vstar").mkdir()
    vstar(tmp_path / "vstar")
    benchmark = BenchmarkSource(name="vstar", uri=str(tmp_path / "vstar"))
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"benchmarks": (benchmark,)})})
    assert run(config, tmp_path / "out")[0].fingerprint == fingerprint(config)
    published.read(config, benchmark, str(tmp_path / "questions"), lambda _: None)
    pictures = ["chat/pictures/a.png", "chat/pictures/b.png", "vstar/direct_attributes/sa_1.png"]
    rows = ["chat/train.jsonl", "vstar/test_questions.jsonl"]
    assert sorted(str(Path(name).relative_to(tmp_path)) for name in read) == sorted([*pictures, *rows])


def test_repeats_are_dropped_across_sources_and_test_samples_never(ray_cluster: None, tmp_path: Path) -> None:
    pictures = archives.chat()
    rows = [chat_row(f"<image>{i}?", images=["pictures/a.png"]) for i in range(5)]
    train = ChatJsonlSource(name="a", uri=as_folder(tmp_path / "a", archives.chat(*rows, *rows[:2])))
    test_row = chat_row("<image>Other?", images=["pictures/b.png"])
    more = [chat_row("<image>1 ?", images=["pictures/a.png"]), chat_row("<image>Leaks?", images=["pictures/b.png"])]
    other = ChatJsonlSource(
        name="b",
        uri=as_folder(tmp_path / "b", archives.chat(*more, chat_row("Text?", images=[]), test=(test_row,) * 2)),
    )
    assert pictures["pictures/a.png"] != pictures["pictures/b.png"]
    record, _ = run(configure(train, other), tmp_path / "out")
    assert record.dropped == {filters.DUPLICATE: 3, filters.CONTAMINATED: 1}
    first, second, test = record.reports
    assert (first.kept, second.kept, test.kept) == (5, 1, 2)
    assert [example.detail for example in first.examples[filters.DUPLICATE]] == [
        "the same as sample a/train/line-0000001",
        "the same as sample a/train/line-0000002",
    ]
    assert second.examples[filters.DUPLICATE][0].detail == "the same as sample a/train/line-0000002"
    assert (
        second.examples[filters.CONTAMINATED][0].detail == "image 1 is image 1 of the test sample b/test/line-0000001"
    )
    assert [row["sample_id"] for row in read(record)] == [
        *(f"a/train/line-{i:07d}" for i in range(1, 6)),
        "b/train/line-0000003",
    ]
    kept, _ = run(configure(train, other, drop_duplicates=False), tmp_path / "kept")
    assert kept.dropped == {filters.CONTAMINATED: 1}
    everything, _ = run(
        configure(train, other, drop_duplicates=False, drop_contaminated=False), tmp_path / "everything"
    )
    assert everything.dropped == {} and everything.kept == 12


def test_what_only_looks_alike_is_kept_and_the_image_that_matches_is_named(ray_cluster: None, tmp_path: Path) -> None:
    pictures = {
        "empty.png": encode(grid(5, 5)),
        "wide.png": encode(grid(10, 5)),
        "seven.png": encode(venn("12", "7", "30")),
        "eight.png": encode(venn("12", "8", "30")),
        "copy.jpg": encode(venn("12", "8", "30"), "JPEG", quality=90),
    }
    files = {f"pictures/{name}": data for name, data in pictures.items()}
    names = ["empty.png", "wide.png", "seven.png", "eight.png", "copy.jpg"]
    rows = [chat_row("<image>How many?", images=[f"pictures/{name}"]) for name in names]
    rows.append(chat_row("<image><image>Both?", images=["pictures/empty.png", "pictures/copy.jpg"]))
    tested = [chat_row("<image>Draw on.", images=["pictures/empty.png"])]
    tested.append(chat_row("<image><image>Which?", images=["pictures/wide.png", "pictures/eight.png"]))
    source = ChatJsonlSource(name="a", uri=as_folder(tmp_path / "a", archives.chat(*rows, test=tuple(tested)) | files))
    record, _ = run(configure(source, max_pixels=480 * 360, max_tokens=4096), tmp_path / "out")
    train, test = record.reports
    assert (train.kept, test.kept, train.dropped) == (3, 2, {filters.CONTAMINATED: 3})
    assert [row["sample_id"] for row in read(record)] == [f"a/train/line-{i:07d}" for i in (1, 2, 3)]
    assert [example.detail for example in train.examples[filters.CONTAMINATED]] == [
        "image 1 is image 2 of the test sample a/test/line-0000002",
        "image 1 is nearly image 2 of the test sample a/test/line-0000002",
        "image 2 is nearly image 2 of the test sample a/test/line-0000002",
    ]
    alone, _ = run(
        configure(source, max_pixels=480 * 360, max_tokens=4096, drop_contaminated=False), tmp_path / "alone"
    )
    assert alone.dropped == {filters.DUPLICATE: 1}
    assert alone.reports[0].examples[filters.DUPLICATE][0].detail == (
        "the same, with nearly the same images, as sample a/train/line-0000004"
    )


def test_images_and_regions_are_brought_to_the_pixel_budget(ray_cluster: None, tmp_path: Path) -> None:
    source = MicroworldSource(tasks=("colour",), train=4, test=0)
    full, _ = run(configure(source), tmp_path / "full")
    width, height = read(full)[0]["image_sizes"][0].values()
    half, _ = run(configure(source, max_pixels=width * height // 4), tmp_path / "half")
    for before, after in zip(read(full), read(half), strict=True):
        assert decode(after["images"][0]).size == (width // 2, height // 2)
        assert after["image_sizes"] == [{"width": width // 2, "height": height // 2}]
        old, new = (row["regions"] for row in (before, after))
        assert old and len(old) == len(new)
        for one, other in zip(old, new, strict=True):
            assert other["box"] == pytest.approx([value / 2 for value in one["box"]], abs=0.02)


def test_steps_are_stored_with_the_image_that_each_is_about(ray_cluster: None, tmp_path: Path) -> None:
    row = chat_row(steps=["Look at <image>.", "It is red."], answer="red")
    row["images"] = ["pictures/a.png", "pictures/b.png"]
    source = ChatJsonlSource(uri=as_folder(tmp_path / "chat", archives.chat(row)))
    with_steps, _ = run(configure(source, target="steps_and_answer"), tmp_path / "steps")
    (stored,) = read(with_steps)
    assert stored["steps"] == [{"text": "Look at <image>.", "image": 1}, {"text": "It is red.", "image": None}]
    assert stored["answer"] == "red"
    assert len(stored["images"]) == 2
    without, _ = run(configure(source), tmp_path / "answer")
    (stored,) = read(without)
    assert (stored["steps"], stored["answer"]) == ([], "red")
    assert len(stored["images"]) == 1


@pytest.mark.parametrize("form", list(FORMS))
def test_exported_microworld_is_prepared_as_microworld_itself(ray_cluster: None, tmp_path: Path, form: str) -> None:
    generated = MicroworldSource(train=16, test=8)
    export(generated, form, tmp_path / form)
    source = detect(str(tmp_path / form))
    assert source.kind == form
    records = [
        run(configure(chosen, target="steps_and_answer"), tmp_path / name)[0]
        for chosen, name in ((source, "converted"), (generated, "generated"))
    ]
    assert [record.kept for record in records] == [24, 24]

    def content(record: DatasetRecord) -> list[Any]:
        left_out = ("sample_id", "source")
        rows = [{name: value for name, value in row.items() if name not in left_out} for row in read(record)]
        return sorted(rows, key=lambda row: (row["task"], row["question"], row["images"]))

    converted, wanted = map(content, records)
    if form == "zebra_cot":  # it has no boxes
        for row in wanted:
            row["regions"] = []
    assert converted == wanted


@pytest.mark.parametrize("kind", ["folder", "easy.tar.gz", "easy.zip"])
def test_s3_in_and_out(ray_cluster: None, s3_bucket: str, tmp_path: Path, kind: str) -> None:
    files = archives.easy_vqa(10, 3)
    pack = {"folder": as_folder, "easy.tar.gz": as_tar, "easy.zip": as_zip}[kind]
    local_uri = pack(tmp_path / kind, files)
    uri = f"{s3_bucket}/sources/{kind}"
    if kind == "folder":
        storage.upload(tmp_path / kind, uri)
    else:
        storage.write_bytes(uri, Path(local_uri).read_bytes())
    config = configure(EasyVqaSource(uri=uri))
    remote, _ = run(config, f"{s3_bucket}/prepared/{kind}")
    local, _ = run(configure(EasyVqaSource(uri=local_uri)), tmp_path / "out")
    assert remote.shards == local.shards
    assert remote.uri == f"{s3_bucket}/prepared/{kind}"
    assert load_record(remote.uri, DatasetRecord) == remote
    assert len(read(remote)) == 10
    before = fingerprint(config)
    assert before == fingerprint(config) == remote.fingerprint
    target = f"{uri}/easy/data/train/images/0.png" if kind == "folder" else uri
    storage.write_bytes(target, storage.read_bytes(target) + b"\0")
    assert fingerprint(config) != before


def test_nothing_kept_is_an_error_with_reasons_and_no_record(ray_cluster: None, tmp_path: Path) -> None:
    source = ChatJsonlSource(uri=as_folder(tmp_path / "chat", archives.chat(chat_row(answer=""), chat_row(answer=" "))))
    with pytest.raises(DataError, match="2 x no_answer, such as chat/train/line-0000001"):
        run(configure(source), tmp_path / "out")
    assert load_record(str(tmp_path / "out"), DatasetRecord) is None


def test_errors_of_tasks_reach_the_user_as_they_are(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        run(configure(EasyVqaSource(uri=as_folder(tmp_path / "easy", archives.easy_vqa()))), tmp_path / "file" / "out")


def test_bad_input_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.zip does not exist"):
        run(configure(EasyVqaSource(uri=str(tmp_path / "gone.zip"))), tmp_path / "out")
    with pytest.raises(ConfigError, match="'microworld'"):
        run(configure(MicroworldSource(seed=1), MicroworldSource(seed=2)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "a.tar.gz", archives.easy_vqa())
    config = configure(EasyVqaSource(uri=path))
    moved = tmp_path / "elsewhere.tgz"
    moved.write_bytes(Path(path).read_bytes())
    assert fingerprint(configure(EasyVqaSource(uri=str(moved)))) == fingerprint(config)
    assert fingerprint(configure(EasyVqaSource(uri=path, name="mine"))) != fingerprint(config)
    moved.write_bytes(gzip.compress(gzip.decompress(moved.read_bytes()) + b"\0"))
    assert fingerprint(configure(EasyVqaSource(uri=str(moved)))) != fingerprint(config)


def test_fingerprint_of_a_folder_sees_a_changed_file(tmp_path: Path) -> None:
    config = configure(EasyVqaSource(uri=as_folder(tmp_path / "easy", archives.easy_vqa())))
    before = fingerprint(config)
    assert fingerprint(config) == before
    (tmp_path / "easy" / "easy/data/train/images/0.png").write_bytes(png(20, 20))
    assert fingerprint(config) != before


def test_fingerprint_covers_what_matters_and_nothing_else() -> None:
    base = configure(MicroworldSource())
    same = [
        base.model_copy(update={"seed": 5, "storage": "/elsewhere"}),
        base.model_copy(update={"cluster": base.cluster.model_copy(update={"num_workers": 7})}),
        base.model_copy(update={"latent": base.latent.model_copy(update={"num_slots": 5})}),
        base.model_copy(update={"stages": {"sft": base.stages["sft"]}}),
        configure(MicroworldSource(), features=True),
    ]
    other = [
        configure(MicroworldSource(seed=1)),
        configure(MicroworldSource(), max_tokens=300),
        configure(MicroworldSource(), rows_per_shard=5),
        configure(MicroworldSource(), drop_duplicates=False),
        configure(MicroworldSource(), drop_contaminated=False),
        base.model_copy(update={"model": ModelConfig(base="some/model")}),
    ]
    assert {fingerprint(config) for config in same} == {fingerprint(base)}
    assert len({fingerprint(config) for config in [base, *other]}) == len(other) + 1


def test_the_module_imports_nothing_heavy() -> None:
    code = "import sys, data_prep.pipeline; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
