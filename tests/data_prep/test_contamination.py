from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from amvl_core.contracts import storage
from amvl_core.contracts.config import BenchmarkSource, RunConfig
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.sources import ChatJsonlSource, MicroworldSource
from amvl_core.eval.benchmarks.benchmark import Question, SkippedQuestion
from data_prep import contamination, duplicates, filters, near_pairs
from data_prep.contamination import BenchmarkRecord
from data_prep.copies import Picture, is_copy
from data_prep.duplicate_keys import KeyFile, Keys, features, key_name, write_pictures
from data_prep.images import PixelBudget, StoredImage, standardise
from data_prep.pipeline import fingerprint
from data_prep.report import JSON_NAME, PAGE_NAME
from tests.data_prep import archives
from tests.data_prep.archives import as_folder, chat_row
from tests.data_prep.pictures import encode, noise, venn
from tests.data_prep.test_pipeline import configure, run

QUESTION = "Which of the animals is on the left of the tree?"
TEXT = f"{QUESTION}\n(A) a\n(B) b\nAnswer with the option's letter from the given choices directly."


def photo(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    return noise(12, 9, seed=seed).resize((width, height), Image.Resampling.BICUBIC)


def vstar(folder: Path, *images: bytes, others: tuple[bytes, ...] = ()) -> BenchmarkSource:
    """V* as it is published, one question for each image; an empty image is one that is not there.

    Something else is asked of each of `others`.
    """
    texts = [*[TEXT] * len(images), *["Left or right?"] * len(others)]
    row = {"category": "direct_attributes", "label": "A"}
    rows = [{**row, "text": text, "image": f"{i}.png", "question_id": i} for i, text in enumerate(texts)]
    files = {f"{i}.png": data for i, data in enumerate([*images, *others]) if data}
    as_folder(folder, {"test_questions.jsonl": archives.json_lines(*rows), **files})
    return BenchmarkSource(name="vstar", uri=str(folder))


def evaluating(config: RunConfig, *benchmarks: BenchmarkSource) -> RunConfig:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"benchmarks": benchmarks})})


def training(folder: Path) -> ChatJsonlSource:
    """Seven rows: the first benchmark image with other bytes, a small compressed copy of the second (twice), another
    one, the question of all, and two that share nothing: a diagram with another figure than one there, a white image.
    """
    pictures = {
        "exact": encode(photo(1), "PNG", compress_level=0),
        "near": encode(photo(2, 160, 120), "JPEG", quality=75),
        "other": encode(photo(3)),
        "diagram": encode(venn("12", "8", "30", side=320)),
        "white": WHITE,
    }
    rows = [chat_row(f"<image>{name}?", images=[f"pictures/{name}"]) for name in pictures]
    rows.append(chat_row("<image><image>Both?", images=["pictures/other", "pictures/near"]))
    rows.append(chat_row("<image>" + QUESTION.lower(), images=["pictures/other"]))
    files = {"train.jsonl": archives.json_lines(*rows), **{f"pictures/{n}": d for n, d in pictures.items()}}
    return ChatJsonlSource(uri=as_folder(folder, files))


BENCHMARK = (encode(photo(1)), encode(photo(2)), b"")
WHITE = encode(Image.new("RGB", (100, 80), "white"))


def test_what_gives_a_benchmark_away_is_dropped_and_the_question_is_named(ray_cluster: None, tmp_path: Path) -> None:
    plain = configure(training(tmp_path / "chat"), max_pixels=320 * 240, max_tokens=4096)
    diagram = encode(venn("12", "7", "30", side=320))
    config = evaluating(plain, vstar(tmp_path / "vstar", *BENCHMARK, others=(diagram, WHITE)))
    record, events = run(config, tmp_path / "prepare" / "out")
    assert record.fingerprint == fingerprint(config) != fingerprint(plain)
    assert record.dropped == {filters.CONTAMINATED: 4} and record.kept == 3
    (found,) = record.reports
    assert [example.detail for example in found.examples[filters.CONTAMINATED]] == [
        "image 1 is image 1 of the question of vstar, vstar/direct_attributes/0",
        "image 1 is nearly image 1 of the question of vstar, vstar/direct_attributes/1",
        "image 2 is nearly image 1 of the question of vstar, vstar/direct_attributes/1",
    ]
    summary = json.loads(storage.read_bytes(storage.join(record.uri, JSON_NAME)))
    expected = {"name": "vstar", "questions": 4, "images": 4, "dropped": {"missing_image": 1}}
    assert summary["benchmarks"] == [expected]
    assert "Benchmarks that training samples were compared with" in (Path(record.uri) / PAGE_NAME).read_text()
    assert any(event.unit == "questions of benchmarks" for event in events)
    # The dataset without it, and a further one with it: neither the sources nor the benchmark are read again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepare").rglob("*.parquet")}
    without, _ = run(plain, tmp_path / "prepare" / "without")
    assert (without.dropped, without.kept) == ({}, 7)
    again, events = run(config, tmp_path / "prepare" / "again")
    assert again.shards == record.shards and not any(event.unit.startswith("questions") for event in events)
    assert (
        before.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "prepare").rglob("*.parquet")}.items()
    )


def test_the_fingerprint_holds_what_benchmarks_hold_where_it_matters(tmp_path: Path) -> None:
    config = configure(MicroworldSource())
    one, copy, other = (
        vstar(tmp_path / name, *images)
        for name, images in (("one", BENCHMARK[:1]), ("copy", BENCHMARK[:1]), ("other", BENCHMARK))
    )
    for folder in (tmp_path / "one", tmp_path / "copy"):
        for file in folder.iterdir():
            os.utime(file, (1, 1))
    assert fingerprint(evaluating(config, one)) == fingerprint(evaluating(config, copy))
    names = {fingerprint(evaluating(config, *chosen)) for chosen in ((), (one,), (other,), (one, other))}
    assert len(names) == 4
    off = configure(MicroworldSource(), drop_contaminated=False)
    assert fingerprint(evaluating(off, one)) == fingerprint(off)
    with pytest.raises(DataError, match="gone does not exist"):
        fingerprint(evaluating(config, BenchmarkSource(name="vstar", uri=str(tmp_path / "gone"))))


def test_a_benchmark_that_cannot_be_read_ends_the_run_as_its_reader_says(ray_cluster: None, tmp_path: Path) -> None:
    source = BenchmarkSource(name="hrbench_4k", uri=as_folder(tmp_path / "hr", {"hr_bench_4k.parquet": b"PAR1 cut"}))
    config = evaluating(configure(MicroworldSource(train=4, test=0)), source)
    with pytest.raises(DataError, match="is damaged or incomplete"):
        run(config, tmp_path / "prepare" / "out")


def question(number: int, size: int = 10) -> Question:
    return Question(f"q/{number}", "t", (bytes(size),), "What?", "A")


def test_batches_are_cut_at_the_same_places_when_some_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "BATCH_QUESTIONS", 3)
    monkeypatch.setattr(contamination, "BATCH_BYTES", 100)
    published: list[Any] = [
        *(question(i) for i in range(4)),
        SkippedQuestion("f/4", "missing_image"),
        question(5, 95),
        question(6),
    ]

    def cut(*finished: str) -> list[tuple[int, int, list[str], dict[str, int]]]:
        batches = contamination._batches(0, iter(published), finished)
        return [(b.number, b.size, [q.item_id for q in b.questions], dict(b.dropped)) for b in batches]

    whole = cut()
    assert whole == [
        (0, 3, ["q/0", "q/1", "q/2"], {}),
        (1, 2, ["q/3", "q/5"], {"missing_image": 1}),
        (2, 1, ["q/6"], {}),
    ]
    assert cut("00001.keys.parquet") == [whole[0], (1, 2, [], {"missing_image": 1}), whole[2]]


def test_near_images_are_those_that_comparing_all_finds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shown = [photo(seed) for seed in range(30)] + [Image.new("RGB", (64, 64), (shade, 9, 9)) for shade in (0, 6, 90)]
    copies = []
    for image in shown:
        values = np.asarray(image).astype(int) + random.integers(-4, 5, (image.height, image.width, 3))
        copies.append(Image.fromarray((values + random.integers(-6, 7)).clip(0, 255).astype(np.uint8)))
    budget = PixelBudget(1, 10**6, 28)

    def key_file(name: str, images: list[Image.Image], benchmark: str | None) -> tuple[KeyFile, list[StoredImage]]:
        keys, found = Keys(), []
        for number, image in enumerate(images):
            stored = standardise(encode(image), budget)
            assert isinstance(stored, StoredImage)
            keys.add(f"{name}/{number}", f"{name} {number}", "", [stored])
            found.append(stored)
        file = KeyFile(key_name(str(tmp_path / name)), "test" if benchmark else "train", benchmark)
        keys.write(file.uri)
        write_pictures(file, [[image] for image in found])
        return file, found

    train, stored_copies = key_file("train", copies, None)
    test, stored_shown = key_file("test", shown, "b")
    copies_MD, shown_MD = (
        np.stack([np.frombuffer(image.thumb, np.uint8) for image in found]) for found in (stored_copies, stored_shown)
    )
    of = [features(thumbs.tobytes(), np.ones(len(thumbs), int)) for thumbs in (copies_MD, shown_MD)]
    equal = np.stack([near_pairs.nearly_equal(copies_MD, np.broadcast_to(one, copies_MD.shape)) for one in shown_MD], 1)
    near = equal & (np.abs(of[0][:, None] - of[1][None]).max(2) <= near_pairs.CLOSE)
    pictures = [
        [Picture.of(image.data, image.upright_size) for image in found] for found in (stored_copies, stored_shown)
    ]
    for row, other in np.argwhere(near).tolist():
        near[row, other] = not stored_shown[other].blank and is_copy(pictures[0][row], pictures[1][other])
    wanted = [(row, int(near[row].argmax())) for row in range(len(copies)) if near[row].any()]
    assert 5 < len(wanted) < len(copies)
    found = duplicates.find([train, test], duplicates=True, contaminated=True)
    assert [(r.row, r.of_row) for r in found if r.match == "near image"] == wanted


def test_a_benchmark_is_cached_by_content_and_budget(ray_cluster: None, tmp_path: Path) -> None:
    source = vstar(tmp_path / "vstar", *BENCHMARK)
    budgets = [PixelBudget(1, 10**5, 28), PixelBudget(1, 10**5, 28), PixelBudget(1, 10**4, 28)]
    records = [contamination.prepare([source], budget, str(tmp_path / "keys"), lambda _: None)[0] for budget in budgets]
    assert records[0] == records[1] != records[2]
    assert len(list((tmp_path / "keys").iterdir())) == 2
    record = BenchmarkRecord.model_validate_json((Path(records[0].uri) / "record.json").read_bytes())
    assert (record, record.keys[0].benchmark) == (records[0], "vstar")
    rows = pq.read_table(io.BytesIO(storage.read_bytes(record.keys[0].uri))).to_pylist()
    assert [(row["sample_id"], row["images"]) for row in rows] == [
        ("vstar/direct_attributes/0", 1),
        ("vstar/direct_attributes/1", 1),
    ]


def test_of_a_benchmark_that_changed_while_it_was_read_nothing_stays(ray_cluster: None, tmp_path: Path) -> None:
    source = vstar(tmp_path / "vstar", *BENCHMARK)

    def change(_: Progress) -> None:
        (tmp_path / "vstar" / "new").touch()

    with pytest.raises(DataError, match="vstar: the files that it reads changed while they were read"):
        contamination.prepare([source], PixelBudget(1, 10**5, 28), str(tmp_path / "keys"), change)
    assert not list((tmp_path / "keys").iterdir())


def test_a_benchmark_that_was_half_read_goes_on_and_ends_the_same(ray_cluster: None, tmp_path: Path) -> None:
    many = contamination.BATCH_QUESTIONS + 6
    source = vstar(tmp_path / "vstar", *(encode(photo(seed, 32, 24)) for seed in range(many)))

    def prepared() -> tuple[BenchmarkRecord, dict[str, tuple[int, bytes]]]:
        (record,) = contamination.prepare([source], PixelBudget(1, 10**5, 28), str(tmp_path / "keys"), lambda _: None)
        files = (file for file in Path(record.uri).iterdir() if not file.name.startswith("."))
        return record, {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    whole, before = prepared()
    assert (whole.questions, whole.images, len(whole.files)) == (many, many, 2)
    (Path(whole.uri) / "record.json").unlink()
    (Path(whole.uri) / whole.files[1]).unlink()
    again, after = prepared()
    assert again == whole and {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in before.items()
    }
    assert after[whole.files[0]] == before[whole.files[0]]
