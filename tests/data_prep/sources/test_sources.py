from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Region
from amvl_core.contracts.sources import ChatJsonlSource, EasyVqaSource, NlvrSource, VspMazeSource
from data_prep.filters import DEGENERATE_BOX, MALFORMED_ROW, MISSING_IMAGE, PLACEHOLDER_MISMATCH, TEST_OVERLAP, Drop
from data_prep.sources import detect, source_name
from tests.data_prep import archives
from tests.data_prep.archives import as_folder, as_tar, as_zip, chat_row, png
from tests.data_prep.sources.reading import converted, drops, listed, outcomes
from tests.shared import DATA


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
    files["easy/data/train/questions.json"] = b'[["q", "no", 0], ["\xff", "no", 0], ["q", "no", 0]]'
    rows = listed(EasyVqaSource(uri=as_folder(tmp_path / "b", files)))
    assert [row.drop is None for row in rows if row.split == "train"] == [True, False, True]


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
        None, None, None, MISSING_IMAGE, None, MALFORMED_ROW, MALFORMED_ROW, MALFORMED_ROW, None,
    ]  # fmt: skip
    assert len({row.sample_id for row in listing}) == len(listing)
    first, second, again, plain, last = converted(source)
    assert (again.sample_id, plain.images) == ("my_set/train/x-line-0000003", first.images)
    assert (first.sample_id, first.task, first.steps) == ("my_set/train/x", "colour", ("One.", "Two."))
    assert first.images == (files["pictures/a.png"],)
    assert (second.images, second.task) == ((), "my_set")
    assert (last.split, last.answer) == ("test", "That.")


def turns(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def chat_samples(path: Path, *rows: object) -> list[Conversation | Drop]:
    return list(outcomes(ChatJsonlSource(uri=as_folder(path, archives.chat(*rows)))).values())


def test_chat_content_may_be_parts_and_a_system_turn_is_left_out(tmp_path: Path) -> None:
    asked = [{"type": "image"}, {"type": "text", "text": "What?"}]
    named = [{"type": "image", "image": "pictures/b.png"}, {"type": "text", "text": "What?"}]
    answer = ("assistant", [{"type": "text", "text": "This."}])
    rows = [
        chat_row(messages=turns(("system", "Be brief."), ("user", asked), answer)),
        {"messages": turns(("user", named), answer)},
        # The images of steps are behind those that the messages name.
        chat_row(messages=turns(("user", named), answer), steps=["Look.<image>"]),
    ]
    files = archives.chat()
    samples = [sample for sample in chat_samples(tmp_path / "c", *rows) if isinstance(sample, Conversation)]
    assert [(sample.question, sample.answer) for sample in samples] == 3 * [("<image>What?", "This.")]
    a, b = files["pictures/a.png"], files["pictures/b.png"]
    assert [sample.images for sample in samples] == [(a,), (b,), (b, a)]
    assert samples[2].steps == ("Look.<image>",)


def test_chat_makes_each_question_with_its_answer_a_sample(tmp_path: Path) -> None:
    messages = turns(
        ("user", "<image>What?"), ("assistant", "This."), ("user", "And <image>?"), ("assistant", "That."),
        ("user", "Where?"), ("assistant", "Here."),
    )  # fmt: skip
    both = ["pictures/a.png", "pictures/b.png"]
    rows = [
        {"messages": messages, "images": both, "id": 7, "task": "t"},
        chat_row(id="7-1"),  # would be the id of the second question
        {"messages": messages, "images": both},
    ]
    found = outcomes(ChatJsonlSource(uri=as_folder(tmp_path / "c", archives.chat(*rows))))
    files = archives.chat()
    a, b = files["pictures/a.png"], files["pictures/b.png"]
    expected = [
        ("<image>What?", "This.", (a,)),
        ("<image>And <image>?", "That.", (a, b)),
        ("<image>Where?", "Here.", (a,)),
    ]
    samples = {name: sample for name, sample in found.items() if isinstance(sample, Conversation)}
    seen = [(sample.question, sample.answer, sample.images) for sample in samples.values()]
    assert seen == [*expected, ("<image>What?", "This.", (a,)), *expected]
    line = "chat/train/line-0000003"
    assert list(samples) == [
        "chat/train/7-0",
        "chat/train/7-1",
        "chat/train/7-2",
        "chat/train/7-1-line-0000002",
        f"{line}-0",
        f"{line}-1",
        f"{line}-2",
    ]
    assert [sample.task for sample in samples.values()] == 3 * ["t"] + ["chat"] + 3 * ["chat"]


def test_chat_regions(tmp_path: Path) -> None:
    regions = [{"label": "cup", "box": [1, 2, 8, 99]}, {"label": "edge", "box": [0, 0, 4, 4], "image": 1}]
    row = chat_row("<image>What?", images=["pictures/a.png", "pictures/b.png"], steps=["<image>"], regions=regions)
    (sample,) = chat_samples(tmp_path / "c", row)
    assert isinstance(sample, Conversation)
    assert sample.regions == (Region("cup", (1, 2, 8, 16)), Region("edge", (0, 0, 4, 4), 1))


TWICE = turns(("user", "<image>A?"), ("assistant", "a"), ("user", "B?"), ("assistant", "b"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (chat_row(messages=[turn | {"weight": 0} for turn in TWICE]), MALFORMED_ROW),
        (chat_row(regions=[{"label": "x", "box": [1, 2, 3]}]), MALFORMED_ROW),
        (chat_row(regions=[{"label": "x", "box": [1, 2, 3, 4], "image": 1}]), MALFORMED_ROW),
        (chat_row(regions=[{"label": "x", "box": [4, 2, 1, 4]}]), DEGENERATE_BOX),
        (chat_row(messages=TWICE, steps=["s"]), MALFORMED_ROW),
        (chat_row(messages=TWICE, regions=[{"label": "x", "box": [1, 2, 3, 4]}]), MALFORMED_ROW),
        (chat_row(messages=TWICE[:3]), MALFORMED_ROW),
        (chat_row(messages=[TWICE[0], TWICE[0], TWICE[1], TWICE[1]]), MALFORMED_ROW),
        (chat_row(messages=TWICE[:2] + turns(("system", "Now be long."))), MALFORMED_ROW),
        (chat_row(messages=TWICE, images=[]), PLACEHOLDER_MISMATCH),
        (chat_row(messages=turns(("user", [{"type": "audio"}]), ("assistant", "a"))), MALFORMED_ROW),
        (
            chat_row(
                messages=turns(("user", [{"type": "image"}, {"type": "image", "image": "x"}]), ("assistant", "a"))
            ),
            MALFORMED_ROW,
        ),
    ],
)
def test_chat_rows_that_are_wrong(tmp_path: Path, wrong: object, reason: str) -> None:
    first, second, third = chat_samples(tmp_path / "c", chat_row(), wrong, chat_row())
    assert isinstance(first, Conversation) and isinstance(third, Conversation)
    assert isinstance(second, Drop) and second.reason == reason


def test_a_source_has_the_name_it_is_given(tmp_path: Path) -> None:
    uri = as_tar(tmp_path / "easy.tar.gz", archives.easy_vqa())
    plain, named = converted(EasyVqaSource(uri=uri)), converted(EasyVqaSource(uri=uri, name="mine"))
    assert {sample.source for sample in plain} == {"easy_vqa"}
    assert source_name(EasyVqaSource(uri=uri, name="mine")) == "mine"
    assert named == [
        replace(sample, source="mine", sample_id=sample.sample_id.replace("easy_vqa/", "mine/", 1)) for sample in plain
    ]


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
    samples = converted(detect(str(DATA / "easy-vqa.tar.gz")))
    assert Counter(sample.split for sample in samples) == {"train": 123, "test": 61}
    assert len({sample.answer for sample in samples}) == 10
    assert sum(sample.task == "yes/no" for sample in samples if sample.split == "train") == 90
    assert sum(sample.task == "yes/no" for sample in samples if sample.split == "test") == 44


def test_real_nlvr_keeps_presentations_apart() -> None:
    samples = converted(detect(str(DATA / "nlvr.tar.gz")))
    assert Counter(sample.split for sample in samples) == {"train": 20, "test": 8}
    prefixes = {
        split: {sample.sample_id.split("-")[1] for sample in samples if sample.split == split}
        for split in ("train", "test")
    }
    assert not prefixes["train"] & prefixes["test"]
    assert {sample.answer for sample in samples} == {"true", "false"}


def test_real_maze_shares_no_image_between_splits() -> None:
    samples = converted(detect(str(DATA / "vsp-maze.tar.gz")))
    assert Counter(sample.task for sample in samples) == {"hole": 9, "safe path": 25}
    images = {split: {sample.images for sample in samples if sample.split == split} for split in ("train", "test")}
    assert not images["train"] & images["test"]
    assert sum(map(len, images.values())) < len(samples)  # levels share maps
    assert Counter(sample.split for sample in samples) == {"train": 22, "test": 12}


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


def test_an_identifier_that_is_repeated_in_nlvr_is_a_drop(tmp_path: Path) -> None:
    files = archives.nlvr()
    files["nlvr/test/test.json"] += files["nlvr/test/test.json"].splitlines(keepends=True)[0]
    dropped = drops(detect(as_folder(tmp_path, files)))
    assert dropped == {
        "nlvr/dev-77-0-0": TEST_OVERLAP, "nlvr/test-78-0-0": MISSING_IMAGE,
        "nlvr/test-77-2-0-row-7": MALFORMED_ROW, "nlvr/test-77-2-1-row-8": MALFORMED_ROW,
    }  # fmt: skip


def test_mazes_that_are_there_twice_are_drops(tmp_path: Path) -> None:
    files = archives.maze(2)
    source = VspMazeSource(uri=as_folder(tmp_path, files | {f"copy/{name}": data for name, data in files.items()}))
    assert len(converted(source)) == 4 and set(drops(source).values()) == {MALFORMED_ROW}
