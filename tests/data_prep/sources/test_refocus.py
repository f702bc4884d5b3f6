from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Region
from amvl_core.contracts.sources import RefocusSource
from data_prep.filters import DEGENERATE_BOX, MALFORMED_ROW, MISSING_IMAGE, UNREADABLE_IMAGE
from data_prep.sources import detect
from tests.data_prep.archives import as_folder, as_tar, as_zip, cell, json_lines, parquet
from tests.data_prep.pictures import png
from tests.data_prep.sources.reading import converted, drops, listed

CHART, EDITED = png(100, 80, seed=1), png(100, 80, seed=2)
CODE = '\n\nACTION 0:\n```python\ndisplay(focus_on_x_values_with_mask(image_1, ["2001"], boxes))\n```'
NO_BOXES: dict[str, list[float]] = {"x1": [], "y1": [], "x2": [], "y2": []}


def columns(*boxes: tuple[float, float, float, float]) -> dict[str, list[float]]:
    return {side: [box[i] for box in boxes] for i, side in enumerate(("x1", "y1", "x2", "y2"))}


BOX, OTHER = (10.0, 5.0, 20.0, 60.0), (30.0, 5.0, 40.0, 60.0)


def row(**change: Any) -> dict[str, Any]:
    return {
        "id": "train-1", "question": "How much in 2001?", "answer": "7",
        "thoughts": [f"THOUGHT 0: I look at 2001.{CODE}", "THOUGHT 1: It is 7.\n\nACTION 1:\nNo action needed."],
        "focus_areas_bbox": columns(BOX), "source": "chartqa_v_bar", "split": "train",
        "x_values": ["2000", "2001"], "y_values": [], "x_values_bbox": columns(OTHER, BOX),
        "y_values_bbox": NO_BOXES, "figure_bbox": {"x1": 0.0, "y1": 0.0, "x2": 100.0, "y2": 80.0},
    } | change  # fmt: skip


def in_table(**change: Any) -> dict[str, Any]:
    return row(image=cell(CHART), edited_image=cell(EDITED)) | change


def raw(**change: Any) -> dict[str, Any]:
    return row(image="images/chart.png", edited_image="images/edited.png") | change


def old(**change: Any) -> dict[str, Any]:
    turns = [
        {"response": f"THOUGHT 0: I look at 2001.{CODE}", "images": ["images/chart.png"]},
        {"response": "THOUGHT 1: It is 7.", "images": ["images/chart.png", "images/edited.png"]},
    ]
    return {
        "id": "train-1", "query": "How much in 2001?", "answer": ["7"], "conversations": turns,
        "focus_areas": [dict(zip(("x1", "y1", "x2", "y2"), BOX, strict=True))],
        "x_values_bbox": {"2000": dict(zip(("x1", "y1", "x2", "y2"), OTHER, strict=True)), "2001": list(BOX)},
    } | change  # fmt: skip


def tables(*rows: dict[str, Any]) -> dict[str, bytes]:
    return {"data/train-00000-of-00003.parquet": parquet(*rows)}


def raws(*rows: object) -> dict[str, bytes]:
    images = {"images/chart.png": CHART, "images/edited.png": EDITED, "images/bad.png": b"no image"}
    return {"train_raw_data/chart.jsonl": json_lines(*rows), **images}


@pytest.mark.parametrize("files", [tables(in_table()), raws(raw()), raws(old())], ids=["parquet", "raw", "older raw"])
@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
def test_every_form_gives_the_same_sample(tmp_path: Path, files: dict[str, bytes], pack: Any) -> None:
    source = detect(pack(tmp_path / "r", files))
    assert isinstance(source, RefocusSource)
    (sample,) = converted(source)
    assert sample == Conversation(
        sample.sample_id, "refocus", "train", sample.task, (CHART, EDITED), "<image>How much in 2001?",
        ("I look at 2001.<image>", "It is 7."), "7", (Region("2001", BOX),),
    )  # fmt: skip
    assert sample.task == ("refocus" if "query" in str(files) else "chartqa_v_bar")


def test_the_edited_image_stands_behind_the_last_code(tmp_path: Path) -> None:
    late = [f"THOUGHT 0: Look.{CODE}", f"THOUGHT 1: Again.{CODE}", "THOUGHT 2: 7."]
    none = ["THOUGHT 0: Look.", "THOUGHT 1: 7."]
    samples = converted(
        detect(as_folder(tmp_path / "r", raws(raw(thoughts=late), raw(thoughts=none), raw(thoughts=[]))))
    )
    assert [sample.steps for sample in samples] == [
        ("Look.", "Again.<image>", "7."), ("Look.<image>", "7."), ("<image>",),
    ]  # fmt: skip


@pytest.mark.parametrize("empty", [None, ""])
def test_without_an_edited_image_the_steps_are_words(tmp_path: Path, empty: str | None) -> None:
    (sample,) = converted(detect(as_folder(tmp_path / "r", raws(raw(edited_image=empty)))))
    assert (sample.steps, sample.images) == (("I look at 2001.", "It is 7."), (CHART,))


def test_without_an_edited_image_in_a_table(tmp_path: Path) -> None:
    first, second = converted(detect(as_folder(tmp_path / "r", tables(in_table(), in_table(edited_image=None)))))
    assert (len(first.images), len(second.images)) == (2, 1)
    assert second.steps == ("I look at 2001.", "It is 7.")


@pytest.mark.parametrize(
    "focus",
    [
        columns(BOX),
        [list(BOX)],
        list(BOX),
        dict(zip(("x1", "y1", "x2", "y2"), BOX, strict=True)),
        {"2001": dict(zip(("x1", "y1", "x2", "y2"), BOX, strict=True))},
    ],
)
def test_boxes_come_in_several_shapes(tmp_path: Path, focus: object) -> None:
    source = detect(as_folder(tmp_path / "r", raws(raw(focus_areas_bbox=focus))))
    assert converted(source)[0].regions == (Region("2001", BOX),)


@pytest.mark.parametrize("none", [None, {}, [], NO_BOXES])
def test_no_focus_is_no_region(tmp_path: Path, none: object) -> None:
    assert converted(detect(as_folder(tmp_path / "r", raws(raw(focus_areas_bbox=none)))))[0].regions == ()


def test_boxes_of_tables_are_shares(tmp_path: Path) -> None:
    change = {"focus_areas_bbox": columns((0.1, 0.25, 0.5, 1.0)), "x_values_bbox": columns((0.1, 0.25, 0.5, 1.0))}
    source = detect(as_folder(tmp_path / "r", raws(raw(**change, x_values=["2003"], split="test"))))
    (sample,) = converted(source)
    assert sample.regions == (Region("2003", (10, 20, 50, 80)),)
    assert sample.split == "test"


def test_an_area_without_a_label_is_called_focus(tmp_path: Path) -> None:
    both = raw(focus_areas_bbox=columns((1, 2, 3, 4), BOX, BOX))
    (sample,) = converted(detect(as_folder(tmp_path / "r", raws(both))))
    assert [region.label for region in sample.regions] == ["focus", "2001", "focus"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (raw(answer=7), MALFORMED_ROW),
        (raw(answer=["7"]), MALFORMED_ROW),
        (old(answer=[7]), MALFORMED_ROW),
        (raw(thoughts="THOUGHT 0: ..."), MALFORMED_ROW),
        (raw(focus_areas_bbox={"x1": [1], "y1": [1, 2], "x2": [3], "y2": [4]}), MALFORMED_ROW),
        (raw(focus_areas_bbox=[[1, 2, 3]]), MALFORMED_ROW),
        (raw(focus_areas_bbox="none"), MALFORMED_ROW),
        (raw(focus_areas_bbox=columns((20, 5, 10, 60))), DEGENERATE_BOX),
        (raw(image=None), MISSING_IMAGE),
        (raw(image=""), MISSING_IMAGE),
        (raw(image="images/gone.png"), MISSING_IMAGE),
        (raw(image="../../../../etc/passwd"), MISSING_IMAGE),
        (raw(image="images/bad.png"), UNREADABLE_IMAGE),
        (old(conversations=[]), MISSING_IMAGE),
        (17, MALFORMED_ROW),
    ],
)
def test_rows_that_are_wrong_are_one_drop_each(tmp_path: Path, wrong: object, reason: str) -> None:
    source = detect(as_folder(tmp_path / "r", raws(raw(), wrong, old())))
    assert drops(source) == {"refocus/train_raw_data/chart/0000002": reason}


def test_a_table_row_without_image(tmp_path: Path) -> None:
    source = detect(as_folder(tmp_path / "r", tables(in_table(), in_table(image=None), in_table(image=cell(None)))))
    assert list(drops(source).values()) == [MISSING_IMAGE, MISSING_IMAGE]


def test_tables_are_read_before_raw_files(tmp_path: Path) -> None:
    source = RefocusSource(uri=as_folder(tmp_path / "r", tables(in_table()) | raws(raw(), raw())))
    assert [row.sample_id for row in listed(source)] == ["refocus/data/train-00000-of-00003/0000000"]


def test_a_table_that_is_cut_is_refused_and_not_read_as_none(tmp_path: Path) -> None:
    (whole,) = tables(in_table()).values()
    for more in (raws(raw()), {"train-0.parquet": whole}):
        source = RefocusSource(uri=as_folder(tmp_path / str(len(more)) / "r", more | {"train-1.parquet": whole[:-50]}))
        with pytest.raises(DataError, match=r"r/train-1\.parquet is damaged or incomplete"):
            listed(source)


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither Parquet files of ReFocus nor"):
        listed(RefocusSource(uri=as_folder(tmp_path / "r", {"readme.txt": b"x"})))
