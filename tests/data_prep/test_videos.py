"""Rows of one's own with videos: frames in their place, as a video or as images, and what is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts.records import DatasetRecord
from amvl_core.contracts.sample import StoredSample, Video
from amvl_core.contracts.sources import ChatJsonlSource
from amvl_core.data.reader import ShardReader
from amvl_core.data.video import uniform_indices
from data_prep.units import UnitRecord
from tests.data_prep.archives import as_folder, chat, json_lines
from tests.data_prep.test_units import finish, work
from tests.videos import mp4, number_of

FILES = {"pictures/a.png": chat()["pictures/a.png"], "clips/v.mp4": mp4(20), "clips/short.mp4": mp4(5)}
FILES |= {"clips/broken.mp4": mp4(20)[:-300]}


def row(question: Any, **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "two"}]
    return {"messages": turns, **fields}


def prepared(folder: Path, *rows: dict[str, Any], **data: Any) -> tuple[list[StoredSample], UnitRecord]:
    source = ChatJsonlSource(uri=as_folder(folder / "chat", {**FILES, "train.jsonl": json_lines(*rows)}))
    job = work(source, folder / "out", frames=8, min_pixels=1, **data)
    (unit,) = finish(job)
    if unit.shard is None:
        return [], unit
    about = {"uri": str(folder / "out"), "fingerprint": "f", "schema_version": 3, "reports": []}
    reader = ShardReader(DatasetRecord(shards=[unit.shard], kept=unit.shard.rows, dropped={}, **about), "train")
    return [reader[number] for number in range(len(reader))], unit


@pytest.mark.parametrize(
    "given",
    [
        row("<video>How many?", videos=["clips/v.mp4"]),
        row("<video>How many?", video="clips/v.mp4"),
        row([{"type": "video", "video": "clips/v.mp4"}, {"type": "text", "text": "How many?"}]),
        row([{"type": "video", "path": "clips/v.mp4"}, {"type": "text", "text": "How many?"}]),
        row([{"type": "video"}, {"type": "text", "text": "How many?"}], videos=["clips/v.mp4"]),
    ],
)
def test_a_video_is_frames_at_equal_distances(tmp_path: Path, given: dict[str, Any]) -> None:
    ((sample,), _) = prepared(tmp_path, given)
    assert sample.question == "<video>How many?"
    assert sample.videos == (Video(8, 4.0),)  # 20 frames at 10 a second are two seconds
    assert [number_of(frame) for frame in sample.images] == uniform_indices(20, 8)


def test_images_and_videos_stand_in_the_order_of_their_places(tmp_path: Path) -> None:
    region = {"label": "cup", "box": [1, 1, 9, 9], "image": 1}
    given = row("In <video> or <image>?", videos=["clips/v.mp4"], images=["pictures/a.png"], regions=[region])
    ((sample,), _) = prepared(tmp_path, given)
    assert len(sample.images) == 9 and sample.videos == (Video(8, 4.0),)
    assert [number_of(frame) for frame in sample.images[:8]] == uniform_indices(20, 8)
    # The box stays on its picture.
    assert [region.image for region in sample.regions] == [8]


@pytest.mark.parametrize(("shown_as", "places"), [("video", "<video>"), ("images", "<image>" * 8)])
def test_a_step_shows_an_image_beside_a_video(tmp_path: Path, shown_as: str, places: str) -> None:
    steps = ["Look.", "Here: <image>"]
    given = row("<video>How many?", videos=["clips/v.mp4"], images=["pictures/a.png"], steps=steps)
    ((sample,), _) = prepared(tmp_path, given, video=shown_as)
    assert (sample.question, sample.steps, sample.step_images) == (f"{places}How many?", tuple(steps), (None, 8))
    assert [number_of(frame) for frame in sample.images[:8]] == uniform_indices(20, 8)
    assert sample.images[8:] == (FILES["pictures/a.png"],)


def test_shown_as_images_a_video_is_as_many_of_them(tmp_path: Path) -> None:
    ((sample,), _) = prepared(tmp_path, row("In <video> two?", videos=["clips/v.mp4"]), video="images")
    assert (sample.question, sample.videos) == (f"In {'<image>' * 8} two?", ())
    assert [number_of(frame) for frame in sample.images] == uniform_indices(20, 8)


def test_what_is_no_sample_is_a_drop_with_its_reason(tmp_path: Path) -> None:
    rows = {
        "too_few_frames": row("<video>?a", videos=["clips/short.mp4"]),
        "unreadable_video": row("<video>?b", videos=["clips/broken.mp4"]),
        "missing_image": row("<video>?c", videos=["clips/none.mp4"]),
        "placeholder_mismatch": row("How many?", videos=["clips/v.mp4"]),
    }
    samples, unit = prepared(tmp_path, *rows.values())
    assert samples == []
    assert unit.report.dropped == dict.fromkeys(sorted(rows), 1)
    details = {reason: found[0].detail for reason, found in unit.report.examples.items()}
    assert details["too_few_frames"] == "video 1: 5 frames, 8 are asked for"
    assert details["placeholder_mismatch"] == "messages: 0 <video> for 1 videos; write one for each where it goes"
