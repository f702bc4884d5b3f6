from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Region
from amvl_core.contracts.sources import VisualCotSource
from data_prep.filters import DEGENERATE_BOX, MALFORMED_ROW, MISSING_IMAGE, UNREADABLE_IMAGE
from data_prep.sources import detect
from tests.data_prep.archives import as_folder, as_tar, as_zip, json_lines
from tests.data_prep.pictures import decode, encode, noise
from tests.data_prep.sources.reading import converted, drops, listed, outcomes
from tests.shared import unpacked

BIRD = "001.Black_footed_Albatross/x.jpg"
INSTRUCTION = " Please provide the bounding box coordinate of the region that can help you answer the question better."
JPEG = encode(noise(50, 40), "JPEG")


def line(**change: Any) -> dict[str, Any]:
    return {
        "question": "Does the bird have grey forehead?", "answer": "Yes", "image": BIRD, "width": 50, "height": 40,
        "bboxs": [[13.0, 3.0, 29.0, 29.5]], "dataset": "cub", "split": "train",
    } | change  # fmt: skip


def item(dataset: str = "vsr", image: str = "cot/vsr/0001.jpg", box: str = "[10, 5, 30, 25]", **change: Any) -> Any:
    turns = [
        ("human", f"<image>\nWhat is it?{INSTRUCTION}"),
        ("gpt", "[0.200, 0.200, 0.600, 0.600]"),
        ("human", "<image>"),
        ("gpt", "dog"),
    ]
    return {
        "dataset": dataset, "split": "train", "question_id": 0, "image": [image, f"{image}###{box}"],
        "conversations": [{"from": who, "value": value} for who, value in turns],
    } | change  # fmt: skip


def metadata(*lines: object) -> dict[str, bytes]:
    return {"metadata/cub_cot_train.jsonl": json_lines(*lines), f"cot_image_data/cub/{BIRD}": JPEG}


def test_metadata_keeps_question_answer_and_boxes(tmp_path: Path) -> None:
    two = line(bboxs=[[13, 3, 29, 29], [0, 0, 50, 40]], answer="No")
    source = detect(as_tar(tmp_path / "v.tar.gz", metadata(line(), two)))
    assert source == VisualCotSource(uri=str(tmp_path / "v.tar.gz"), annotations="metadata")
    first, second = converted(source)
    assert first == Conversation(
        "visual_cot/cub_cot_train/0000001", "visual_cot", "train", "cub", (JPEG,),
        "<image>Does the bird have grey forehead?", (), "Yes", (Region("region", (13.0, 3.0, 29.0, 29.5)),),
    )  # fmt: skip
    assert [region.box for region in second.regions] == [(13, 3, 29, 29), (0, 0, 50, 40)]


def test_two_forms_of_one_folder_go_by_names_of_their_own(tmp_path: Path) -> None:
    files = metadata(line()) | {"viscot_363k.json": json.dumps([item()]).encode(), "cot_image_data/vsr/0001.jpg": JPEG}
    uri = as_folder(tmp_path / "v", files)
    samples = converted(VisualCotSource(uri=uri)) + converted(
        VisualCotSource(uri=uri, annotations="metadata", name="visual_cot_plain")
    )
    assert [(sample.sample_id, sample.source) for sample in samples] == [
        ("visual_cot/viscot_363k/0000000", "visual_cot"),
        ("visual_cot_plain/cub_cot_train/0000001", "visual_cot_plain"),
    ]


def test_images_are_read_out_of_the_published_tar_in_pieces(tmp_path: Path) -> None:
    files = {f"cot_image_data/cub/{BIRD}": JPEG, "cot_image_data/cub/other.jpg": encode(noise(90, 90), "JPEG")}
    whole = Path(as_tar(tmp_path / "whole.tar", files, "w")).read_bytes()
    size = -(-len(whole) // 13)
    pieces = {f"cot_images_tar_split/cot_images_{i:02d}": whole[i * size : (i + 1) * size] for i in range(13)}
    rows = {"metadata/cub_cot_train.jsonl": json_lines(line(), line(image="gone.jpg"), line(image="other.jpg"))}
    source = detect(as_folder(tmp_path / "v", rows | pieces))
    assert [found.images[0] for found in converted(source)] == list(files.values())
    assert drops(source) == {"visual_cot/cub_cot_train/0000002": MISSING_IMAGE}


@pytest.mark.parametrize(
    ("box", "becomes"),
    [
        ([-3, 2, 20, 99], (0, 2, 20, 40)),  # out of range: clipped
        ([13, 3, 13, 20], None),  # no width
        ([29, 3, 13, 20], None),  # wrong order
        ([60, 3, 70, 20], None),  # beside the image
    ],
)
def test_boxes_are_clipped_or_the_row_is_dropped(tmp_path: Path, box: list[float], becomes: object) -> None:
    source = detect(as_folder(tmp_path / "v", metadata(line(), line(bboxs=[box]))))
    if becomes is None:
        assert drops(source) == {"visual_cot/cub_cot_train/0000002": DEGENERATE_BOX}
    else:
        assert converted(source)[1].regions == (Region("region", becomes),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (line(answer=7), MALFORMED_ROW),
        (line(answer=["Yes"]), MALFORMED_ROW),
        (line(question=None), MALFORMED_ROW),
        (line(image=None), MALFORMED_ROW),
        (line(bboxs=[[1, 2, 3]]), MALFORMED_ROW),
        (line(bboxs=[[1, 2, 3, float("nan")]]), MALFORMED_ROW),
        (line(bboxs="none"), MALFORMED_ROW),
        (line(image="gone.jpg"), MISSING_IMAGE),
        (line(image="../../../etc/passwd"), MISSING_IMAGE),
        (line(image="bad.jpg"), UNREADABLE_IMAGE),
        (["no", "object"], MALFORMED_ROW),
    ],
)
def test_rows_that_are_wrong_are_one_drop_each(tmp_path: Path, row: object, reason: str) -> None:
    files = metadata(line(), row, line()) | {"cot_image_data/cub/bad.jpg": b"no image"}
    source = detect(as_zip(tmp_path / "v.zip", files))
    assert drops(source) == {"visual_cot/cub_cot_train/0000002": reason}
    assert len(converted(source)) == 2


def test_conversations_show_a_crop_as_the_step(tmp_path: Path) -> None:
    pixels = noise(50, 40)
    files = {"viscot_363k.json": json.dumps([item()]).encode(), "cot_image_data/vsr/0001.jpg": encode(pixels)}
    (sample,) = converted(detect(as_tar(tmp_path / "v.tar", files, "w")))
    assert (sample.question, sample.answer, sample.task) == ("<image>\nWhat is it?", "dog", "vsr")
    assert sample.steps == ("[0.200, 0.200, 0.600, 0.600]<image>",)
    assert sample.regions == (Region("region", (10, 5, 30, 25)),)
    whole, part = sample.images
    assert whole == files["cot_image_data/vsr/0001.jpg"]
    assert np.array_equal(np.asarray(decode(part)), np.asarray(pixels)[5:25, 10:30])


def test_folders_go_by_several_names(tmp_path: Path) -> None:
    items = [
        item("textcap", "cot/textvqa/a.jpg"),
        item("v7w", "cot/v7w/v7w_1.jpg"),
        item("visual7w", "cot/visual7w/v7w_1.jpg"),
        item("cub", "cot/cub/cot/b.jpg"),
    ]
    images = ["textvqa/a.jpg", "visual7w/v7w_1.jpg", "cub/cot/b.jpg"]
    files = {"viscot_363k.json": json.dumps(items).encode()} | {f"cot_image_data/{name}": JPEG for name in images}
    source = detect(as_folder(tmp_path / "v", files))
    assert drops(source) == {}
    assert [row.images for row in listed(source)] == [
        ("cot_image_data/textvqa/a.jpg",), ("cot_image_data/visual7w/v7w_1.jpg",),
        ("cot_image_data/visual7w/v7w_1.jpg",), ("cot_image_data/cub/cot/b.jpg",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (item(image="cot/vsr/gone.jpg"), MISSING_IMAGE),
        (item(box="[10, 5, 30]"), MALFORMED_ROW),
        (item(box="[a, 5, 30, 25]"), MALFORMED_ROW),
        (item(box="[30, 5, 10, 25]"), DEGENERATE_BOX),
        (item(image="cot/vsr/0001.jpg", conversations=[{"from": "human", "value": "<image>"}]), MALFORMED_ROW),
        ({**item(), "image": []}, MISSING_IMAGE),
        ({**item(), "image": [None]}, MALFORMED_ROW),
    ],
)
def test_conversations_that_are_wrong(tmp_path: Path, wrong: object, reason: str) -> None:
    files = {"viscot_363k.json": json.dumps([item(), wrong, item()]).encode(), "cot_image_data/vsr/0001.jpg": JPEG}
    assert list(drops(detect(as_folder(tmp_path / "v", files))).values()) == [reason]


def test_detailed_steps(tmp_path: Path) -> None:
    program = [
        {"operation": "select", "dependencies": [], "argument": "tall cat (123)"},
        {"operation": "relate", "dependencies": [0], "argument": "dog,left,s (77)"},
    ]
    rows = [
        line(thought="1. Find the cat. 2. It weighs 3. 5 kg.", reasoning=program, full_answer="Yes, it is."),
        line(thought="1. First.\n2. Row 3. Column 4.\n3. Last.", reasoning=None),
        line(thought="Just look.", reasoning=[*program, *program]),
        line(thought=None),
    ]
    files = {
        "cot_with_detailed_reasoning_steps/gqa_cot_train.jsonl": json_lines(*rows),
        "cot_with_detailed_reasoning_steps/gqa_cot_val.jsonl": json_lines(line(split="val")),
        f"cot_image_data/cub/{BIRD}": JPEG,
    }
    source = detect(as_folder(tmp_path / "v", files))
    assert source == VisualCotSource(uri=str(tmp_path / "v"), annotations="detailed")
    samples = converted(source)
    assert [sample.steps for sample in samples] == [
        ("Find the cat.", "It weighs 3. 5 kg."), ("First.", "Row 3. Column 4.", "Last."), ("Just look.",), (), (),
    ]  # fmt: skip
    assert [sample.regions[0].label for sample in samples[:3]] == ["tall cat", "region", "region"]
    assert Counter(sample.split for sample in samples) == {"train": 4, "test": 1}


def test_without_annotations_of_that_form_nothing_starts(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "v", metadata(line()))
    with pytest.raises(DataError, match="no Visual-CoT annotations of the form 'conversations'"):
        listed(VisualCotSource(uri=uri))


def _blank(width: int, height: int) -> bytes:
    from PIL import Image

    return encode(Image.new("1", (width, height)))


def test_real_metadata(tmp_path: Path) -> None:
    folder = unpacked("visual-cot") / "metadata"
    files, boxes = {}, 0
    for name in ("cub", "dude", "sroie", "vsr"):
        data = (folder / f"{name}_cot_train.jsonl").read_bytes()
        files[f"metadata/{name}_cot_train.jsonl"] = data
        for row in map(json.loads, data.splitlines()):
            boxes += len(row["bboxs"])
            files[f"cot_image_data/{name}/{row['image']}"] = _blank(row["width"], row["height"])
    found = outcomes(detect(as_folder(tmp_path / "v", files)))
    samples = [sample for sample in found.values() if isinstance(sample, Conversation)]
    assert len(found) == len(samples) == 200 and boxes == sum(len(sample.regions) for sample in samples)
    assert Counter(sample.task for sample in samples) == {"cub": 50, "dude": 50, "sroie": 50, "vsr": 50}


def test_real_conversations(tmp_path: Path) -> None:
    folder = unpacked("visual-cot") / "viscot_benchmark"
    items, sizes = [], {}
    for file in sorted((folder / "benchmark").glob("*.json")):
        items += (published := json.loads(file.read_bytes()))
        shapes = [json.loads(row) for row in (folder / "benchmark_det" / f"{file.stem}.jsonl").read_text().splitlines()]
        by_path = {Path(row["img_path"]).name: (row["width"], row["height"]) for row in shapes}
        for entry in published:
            path = entry["image"][0].replace("cot/v7w", "cot/visual7w").removeprefix("cot/")
            sizes[path] = by_path[Path(path).name]
    files = {f"cot_image_data/{path}": _blank(*size) for path, size in sizes.items()}
    files["viscot_363k.json"] = json.dumps(items).encode()
    found = outcomes(detect(as_folder(tmp_path / "v", files)))
    assert len(found) == len(items) > 30
    # One published box of DUDE lies below its page of 2401 pixels: [1409, 2512, 1478, 2549].
    dropped = {number for number, sample in enumerate(found.values()) if not isinstance(sample, Conversation)}
    assert [items[number]["image"][0] for number in dropped] == ["cot/dude/bc01d0bb2e3524e6ef64d1e69dacd5a0_6.jpg"]
    for sample, entry in zip(found.values(), items, strict=True):
        if not isinstance(sample, Conversation):
            assert (sample.reason, "2401" in sample.detail) == (DEGENERATE_BOX, True)
            continue
        assert "Please provide" not in sample.question and sample.question.startswith("<image>\n")
        assert sample.answer == entry["conversations"][3]["value"] and sample.split == "test"
        # The published box text is relative to the image padded to a square: both say the same place.
        width, height = decode(sample.images[0]).size
        x1, y1, x2, y2 = sample.regions[0].box
        side, left, top = max(width, height), max(height - width, 0) / 2, max(width - height, 0) / 2
        relative = [(x1 + left) / side, (y1 + top) / side, (x2 + left) / side, (y2 + top) / side]
        said = json.loads(sample.steps[0].removesuffix("<image>"))
        # Rounded to three decimals, of boxes that were cut to whole pixels: at most one pixel of the longer side.
        assert relative == pytest.approx(said, abs=1.5 / side + 0.001)


def test_a_crop_of_a_jpeg_is_a_jpeg(tmp_path: Path) -> None:
    files = {"viscot_363k.json": json.dumps([item()]).encode(), "cot_image_data/vsr/0001.jpg": JPEG}
    (sample,) = converted(detect(as_folder(tmp_path / "v", files)))
    assert decode(sample.images[1]).format == "JPEG" and decode(sample.images[1]).size == (20, 20)


def test_rows_of_another_form_are_malformed(tmp_path: Path) -> None:
    files = {"viscot_363k.json": json.dumps([line(), item()]).encode(), "cot_image_data/vsr/0001.jpg": JPEG}
    assert drops(VisualCotSource(uri=as_folder(tmp_path / "a", files))) == {
        "visual_cot/viscot_363k/0000000": MALFORMED_ROW
    }
    source = VisualCotSource(uri=as_folder(tmp_path / "b", metadata(item(), line())), annotations="metadata")
    assert drops(source) == {"visual_cot/cub_cot_train/0000001": MALFORMED_ROW}


def test_two_files_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    files = {f"{top}/metadata/cub_cot_train.jsonl": json_lines(line()) for top in "ab"}
    found = outcomes(VisualCotSource(uri=as_folder(tmp_path, files), annotations="metadata"))
    assert list(found) == ["visual_cot/cub_cot_train/0000001", "visual_cot/cub_cot_train-2/0000001"]
