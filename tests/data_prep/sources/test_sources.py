from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from amvl_core.config import ChatJsonlSource, EasyVqaSource, NlvrSource, VspMazeSource
from amvl_core.errors import DataError
from data_prep.filters import MALFORMED_ROW, MISSING_IMAGE, TEST_OVERLAP
from data_prep.sources import detect
from tests.conftest import real_data
from tests.data_prep import archives
from tests.data_prep.archives import as_folder, as_tar, as_zip, chat_row, png
from tests.data_prep.sources.reading import converted, listed


def test_easy_vqa(tmp_path: Path) -> None:
    source = detect(as_tar(tmp_path / "easy.tar.gz", archives.easy_vqa()))
    assert isinstance(source, EasyVqaSource)
    samples = converted(source)
    assert [sample.split for sample in samples] == ["train"] * 6 + ["test"] * 2
    assert [sample.task for sample in samples[:3]] == ["shape", "colour", "yes/no"]
    assert samples[0].question == "<image>what is the blue shape?"
    assert samples[2].images == (archives.easy_vqa()["easy/data/train/images/1.png"],)
    assert len({sample.sample_id for sample in samples}) == 8


def test_easy_vqa_rows_that_are_wrong(tmp_path: Path) -> None:
    files = archives.easy_vqa()
    files["easy/data/train/questions.json"] = json.dumps([["only a question"], ["q", "no", 0]]).encode()
    rows = listed(EasyVqaSource(uri=as_folder(tmp_path / "a", files)))
    assert rows[0].drop is not None and rows[0].drop.reason == MALFORMED_ROW
    assert rows[1].drop is None
    files["easy/data/train/questions.json"] = b'[["q", "no", 0], ["\xff", "no", 0], ["q", "no", 0], ["q'
    rows = listed(EasyVqaSource(uri=as_folder(tmp_path / "b", files)))
    assert [row.drop is None for row in rows if row.split == "train"] == [True, False, True, False]


def test_easy_vqa_steps_are_what_the_training_questions_of_an_image_give_away(tmp_path: Path) -> None:
    files = archives.easy_vqa(0, 2)
    questions = [
        ["what color is the shape?", "teal", 0],
        ["is there not a circle?", "no", 0],  # so there is one
        ["is a triangle present?", "no", 0],
        ["is there a red shape?", "no", 1],  # says nothing of what there is
        ["is there a circle?", "yes", 2],
        ["is a triangle present?", "yes", 2],  # contradicts the line before
    ]
    files["easy/data/train/questions.json"] = json.dumps(questions).encode()
    for image in range(3):
        files[f"easy/data/train/images/{image}.png"] = png(seed=image)
    samples = converted(detect(as_folder(tmp_path / "easy", files)))
    both = ("The color is teal.", "The shape is a circle.")
    assert [sample.steps for sample in samples] == [both, both, both, (), (), (), (), ()]
    assert [sample.split for sample in samples[-2:]] == ["test", "test"]


def test_nlvr(tmp_path: Path) -> None:
    source = detect(as_zip(tmp_path / "nlvr.zip", archives.nlvr()))
    assert isinstance(source, NlvrSource)
    rows = listed(source)
    assert [row.sample_id for row in rows] == [
        "nlvr/dev-10-0-0", "nlvr/dev-10-0-5", "nlvr/dev-10-1-0", "nlvr/dev-77-0-0",
        "nlvr/test-77-2-0", "nlvr/test-77-2-1", "nlvr/test-78-0-0",
    ]  # fmt: skip
    assert {row.sample_id: row.drop.reason for row in rows if row.drop} == {"nlvr/dev-77-0-0": TEST_OVERLAP}
    samples = converted(source)
    assert samples[0].question == "<image>There is a tower.\nIs this true or false?"
    assert [sample.answer for sample in samples] == ["true", "true", "false", "false", "false"]


def test_vsp_maze(tmp_path: Path) -> None:
    source = detect(as_folder(tmp_path / "maze", archives.maze()))
    assert isinstance(source, VspMazeSource)
    samples = converted(source)
    assert Counter(sample.task for sample in samples) == {"hole": 40, "safe path": 40}
    by_id = {sample.sample_id: sample for sample in samples}
    path = by_id["vsp_maze/task4/level3/0"]
    assert path.question == "<image>The player moves left, right, up. Is the path safe from every hole?"
    assert path.answer == "no"
    assert by_id["vsp_maze/task1/level3/0"].answer == "yes"
    # Both tasks show the same maps, so a map must be on the same side in both.
    for number in range(40):
        assert by_id[f"vsp_maze/task1/level3/{number}"].split == by_id[f"vsp_maze/task4/level3/{number}"].split
    assert 0 < sum(sample.split == "test" for sample in samples) < 40


def test_chat_jsonl(tmp_path: Path) -> None:
    rows = (
        chat_row(id="x", task="colour", steps=["One.", "Two."]),
        chat_row("No image.", images=[]),
        chat_row(id="x"),
        chat_row(images=["../../secret.png"]),
        chat_row(images="pictures/a.png"),
        {"messages": [{"role": "user", "content": "<image>What?"}]},
        [1, 2],
    )
    files = archives.chat(*rows, test=(chat_row(answer="That."),))
    files["train.jsonl"] += b"\n{broken\n"
    source = detect(as_tar(tmp_path / "My Set.tar.gz", files))
    assert source == ChatJsonlSource(uri=str(tmp_path / "My Set.tar.gz"), name="my_set")
    listing = listed(source)
    assert [row.drop.reason if row.drop else None for row in listing] == [
        None, None, MALFORMED_ROW, MISSING_IMAGE, MALFORMED_ROW, MALFORMED_ROW, MALFORMED_ROW, MALFORMED_ROW, None,
    ]  # fmt: skip
    assert len({row.sample_id for row in listing}) == len(listing)
    first, second, last = converted(source)
    assert (first.sample_id, first.task, first.steps) == ("my_set/train/x", "colour", ("One.", "Two."))
    assert first.images == (files["pictures/a.png"],)
    assert (second.images, second.task) == ((), "my_set")
    assert (last.split, last.answer) == ("test", "That.")


def test_limits_draw_the_same_subset_in_published_order(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "easy", archives.easy_vqa(30, 10))
    everything = [row.sample_id for row in listed(EasyVqaSource(uri=uri))]
    source = EasyVqaSource(uri=uri, train_limit=7, test_limit=0)
    chosen = [row.sample_id for row in listed(source)]
    assert len(chosen) == 7 and chosen == sorted(chosen) and set(chosen) < set(everything)
    assert chosen == [row.sample_id for row in listed(source)]
    assert chosen != [row.sample_id for row in listed(source, seed=1)]
    more = [row.sample_id for row in listed(EasyVqaSource(uri=uri, train_limit=9, test_limit=0))]
    assert set(chosen) < set(more)


def test_detect_says_what_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="easy-VQA") as error:
        detect(as_zip(tmp_path / "x.zip", {"readme.txt": b"hello"}))
    assert "train.jsonl" in str(error.value) and "x.zip" in str(error.value)


def test_real_easy_vqa() -> None:
    samples = converted(detect(str(real_data("easy-vqa.tar.gz"))))
    assert Counter(sample.split for sample in samples) == {"train": 38_575, "test": 9_673}
    assert len({sample.answer for sample in samples}) == 13
    assert sum(sample.task == "yes/no" for sample in samples if sample.split == "train") == 28_407
    assert sum(sample.task == "yes/no" for sample in samples if sample.split == "test") == 7_136


def test_real_nlvr_keeps_presentations_apart() -> None:
    samples = converted(detect(str(real_data("nlvr.tar.gz"))))
    assert Counter(sample.split for sample in samples) == {"train": 1_978, "test": 990}
    prefixes = {
        split: {sample.sample_id.split("-")[1] for sample in samples if sample.split == split}
        for split in ("train", "test")
    }
    assert not prefixes["train"] & prefixes["test"]
    assert {sample.answer for sample in samples} == {"true", "false"}


def test_real_maze_shares_no_image_between_splits() -> None:
    samples = converted(detect(str(real_data("vsp-maze.tar.gz"))))
    assert Counter(sample.task for sample in samples) == {"hole": 400, "safe path": 500}
    images = {split: {sample.images for sample in samples if sample.split == split} for split in ("train", "test")}
    assert not images["train"] & images["test"]
    assert 135 <= sum(sample.split == "test" for sample in samples) <= 225


def test_nlvr_lines_that_are_no_text(tmp_path: Path) -> None:
    files = archives.nlvr()
    files["nlvr/dev/dev.json"] = b'\xff\n{"half": \n[1]\n' + files["nlvr/dev/dev.json"]
    dropped = [row.sample_id for row in listed(detect(as_folder(tmp_path / "n", files))) if row.drop]
    assert dropped == ["nlvr/dev-line-1", "nlvr/dev-line-2", "nlvr/dev-line-3", "nlvr/dev-77-0-0"]


def test_maze_files_that_are_no_text(tmp_path: Path) -> None:
    files = archives.maze(3)
    folder = "vsp/maze/task1/maps/level3"
    for number, kind in enumerate(("question", "answer", "pure_text")):
        files[f"{folder}/{kind}/{number}.txt"] = b"\xff\xfe"
    rows = listed(detect(as_folder(tmp_path / "m", files)))
    assert [row.drop is None for row in rows] == [False, False, False, True, True, True]
