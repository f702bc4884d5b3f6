"""A published benchmark as a dataset with a test split alone: nothing of a question is lost on the way."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from amvl_core.backbones.loading import base_processor
from amvl_core.contracts.config import BenchmarkSource, RunConfig
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import DatasetRecord, load_record
from amvl_core.contracts.sample import Video
from amvl_core.data.reader import ShardReader
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Question
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.methods.amvl.presets import demo
from data_prep.published import fingerprint, read
from tests.amvl_core.eval.benchmarks import published


def config(**evaluation: int) -> RunConfig:
    base = demo()
    return base.model_copy(update={"evaluation": base.evaluation.model_copy(update=evaluation)})


def hrbench(folder: Path) -> None:
    published.tsv(folder / "hr_bench_4k.tsv", published.hrbench_rows())


WRITERS = {
    "vstar": published.vstar,
    "hrbench_4k": hrbench,
    "blink": published.blink,
    "visual_puzzles": published.visual_puzzles,
    "mmvp": lambda folder: published.mmvp(folder, 4),
    "cv_bench": published.cv_bench,
    "mmstar": published.mmstar,
    "vsi_bench": published.vsi_bench,
    "vsi_bench_vlmevalkit": published.vsi_bench,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_question_comes_back_as_it_was_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    WRITERS[name](folder)
    uri = str(tmp_path / "stage")
    source = BenchmarkSource.model_validate({"name": name, "uri": str(folder)})
    record = read(config(), source, uri, lambda _: None)
    assert load_record(uri, DatasetRecord) == record
    questions = [found for found in BENCHMARKS[name].read(str(folder)) if isinstance(found, Question)]
    shards = ShardReader(record, "test")
    assert [question(shards[number]) for number in range(len(shards))] == questions
    assert len(questions) == record.kept == record.rows("test") > 1
    assert record.rows("train") == 0


def test_drops_are_counted_by_reason_with_examples(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    published.blink(folder, answer="(Z)")
    events: list[Progress] = []
    source = BenchmarkSource(name="blink", uri=str(folder))
    record = read(config(), source, str(tmp_path / "stage"), events.append)
    (report,) = record.reports
    assert (report.read, report.kept, report.dropped) == (2, 1, {"answer_not_among_options": 1})
    assert report.examples["answer_not_among_options"][0].sample_id == "val-00000-of-00001.parquet/0"
    assert events[0].total == 1901


def test_a_text_with_more_places_than_images_is_dropped_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    published.vstar(folder)
    file = folder / "test_questions.jsonl"
    file.write_text(file.read_text().replace("What is", "<image><image>What is"))
    source = BenchmarkSource(name="vstar", uri=str(folder))
    record = read(config(), source, str(tmp_path / "stage"), lambda _: None)
    assert (record.kept, record.dropped) == (1, {"image_places": 1})
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match=r"gives no question of vstar: image_places \(1\)"):
        read(config(), source, str(tmp_path / "other"), lambda _: None)
    assert not (tmp_path / "other" / "test-00000.parquet").exists()


@pytest.mark.parametrize("text", ["<|image_pad|>", "<|im_end|>", "<latent_pad>", "</abs_token>"])
def test_a_text_with_a_control_token_is_dropped(tmp_path: Path, text: str) -> None:
    published.vstar(tmp_path, text=f"What is {text}?\n(A) one\n(B) two")
    source = BenchmarkSource(name="vstar", uri=str(tmp_path))
    record = read(config(), source, str(tmp_path / "stage"), lambda _: None)
    assert (record.kept, record.dropped) == (1, {"reserved_text": 1})
    (example,) = record.reports[0].examples["reserved_text"]
    assert repr(text) in example.detail


def test_an_image_that_the_models_processor_refuses_is_dropped_and_no_other(tmp_path: Path) -> None:
    """The limit is the processor's own: what is kept can be encoded, what is dropped cannot."""
    processor = base_processor(config().model)
    kept = []
    for number, size in enumerate([(1, 200), (200, 1), (1, 201), (2001, 10)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        published.vstar(folder)
        image = Image.new("RGB", size)
        image.save(folder / "direct_attributes" / "sa_1.png")
        lines = (folder / "test_questions.jsonl").read_text().splitlines(keepends=True)
        (folder / "other.png").write_bytes(published.picture())
        lines[1] = json.dumps(json.loads(lines[1]) | {"image": "other.png"})
        (folder / "test_questions.jsonl").write_text("".join(lines))
        source = BenchmarkSource(name="vstar", uri=str(folder))
        record = read(config(), source, str(folder / "stage"), lambda _: None)
        kept.append(record.kept == 2)
        if kept[-1]:
            assert processor.image_processor(images=[image])["image_grid_thw"].prod() > 0
        else:
            assert record.dropped == {"extreme_aspect": 1}
            with pytest.raises(ValueError, match="aspect ratio"):
                processor.image_processor(images=[image])
    assert kept == [True, True, False, False]


def test_a_large_image_counts_as_many_tokens_as_the_budget_allows(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (7680, 4320)).save(buffer, "PNG")
    folder = tmp_path / "published"
    folder.mkdir()
    published.vstar(folder)
    (folder / "direct_attributes" / "sa_1.png").write_bytes(buffer.getvalue())
    source = BenchmarkSource(name="vstar", uri=str(folder))
    tokens, names = [], set()
    for pixels in (256 * 256, 512 * 512):
        settings = config(max_pixels=pixels)
        names.add(fingerprint(settings, source))
        record = read(settings, source, str(tmp_path / str(pixels)), lambda _: None)
        tokens.append(ShardReader(record, "test").column("num_tokens")[0])
    assert 0.9 < (tokens[1] - tokens[0]) / ((512**2 - 256**2) / 16**2) <= 1.0
    assert len(names) == 2


def test_a_video_is_shown_as_one_or_as_images_and_counted_as_it_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    published.vsi_bench(folder)
    source = BenchmarkSource(name="vsi_bench", uri=str(folder))
    records = {}
    for shown in ("video", "images"):
        settings = config().model_dump(mode="json")
        settings["evaluation"]["video"] = shown
        asked = RunConfig.model_validate(settings)
        records[shown] = read(asked, source, str(tmp_path / shown), lambda _: None)
        assert fingerprint(asked, source) == records[shown].fingerprint
    assert records["video"].fingerprint != records["images"].fingerprint
    readers = {shown: ShardReader(record, "test") for shown, record in records.items()}
    # 40 frames at 10 a second are 4 seconds, of which 32 are kept.
    assert readers["video"][0].videos == (Video(32, 8.0),) and readers["images"][0].videos == ()
    assert len(readers["video"][0].images) == len(readers["images"][0].images) == 32
    # Frames of 64 x 48 pixels are 4 x 3 tokens of 16 x 16; 16 pairs of them in one place, or 32 in places of their own.
    tokens = {shown: int(reader.column("num_tokens")[0]) for shown, reader in readers.items()}
    assert tokens["images"] - tokens["video"] == 32 * (12 + 2) - (16 * 12 + 2)
