"""Tiny copies of the published files, after the documented schemas."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.videos import mp4


def picture(shade: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def cell(shade: int = 0) -> dict[str, Any]:
    return {"bytes": picture(shade), "path": None}


def base64_picture(shade: int = 0) -> str:
    return base64.b64encode(picture(shade)).decode()


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


VSTAR_TEXT = (
    "What is the material of the glove?\n(A) rubber\n(B) cotton\n(C) kevlar\n(D) leather\n"
    "Answer with the option's letter from the given choices directly."
)


def vstar(folder: Path, **changes: Any) -> None:
    row = {
        "image": "direct_attributes/sa_1.png",
        "text": VSTAR_TEXT,
        "category": "direct_attributes",
        "label": "A",
        "question_id": 0,
    }
    side = "Is it left or right?\n(A) left\n(B) right\nAnswer with the option's letter from the given choices directly."
    second = {**row, "category": "relative_position", "text": side, "label": "B", "question_id": "0"}
    (folder / "direct_attributes").mkdir()
    (folder / "direct_attributes" / "sa_1.png").write_bytes(picture())
    (folder / "test_questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row | changes, second)))


def hrbench_rows(image: Any = None) -> list[dict[str, Any]]:
    texts = ["red", "blue", "2", "green"]
    return [
        {
            "index": 4 * question + turn,
            "question": f"What colour is sign {question}?",
            "answer": "ABCD"[-turn % 4],
            "category": ("single", "cross")[question],
            **{name: texts[(i + turn) % 4] for i, name in enumerate("ABCD")},
            "cycle_category": str(turn),
            "image": image or base64_picture(question),
        }
        for turn in range(4)
        for question in range(2)
    ]


def blink(folder: Path, **changes: Any) -> None:
    row = {
        "idx": "val_Jigsaw_1",
        "question": "Which fits?",
        "sub_task": "Jigsaw",
        **{f"image_{i}": cell(i) if i < 4 else None for i in range(1, 5)},
        "choices": ["the second image", "the third image"],
        "answer": "(A)",
        "prompt": "Which fits? Select from the following choices.\n(A) the second image\n(B) the third image",
        "explanation": "",
    }
    second = {**row, "idx": "val_Jigsaw_2", "answer": "(B)"}
    # Without a value in any row a column has no type; the published one is an image.
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist([row | changes, second])
    at = table.schema.get_field_index("image_4")
    table = table.set_column(at, "image_4", pa.array([None, None], type=image))
    for split in ("val", "test"):
        path = folder / "Jigsaw" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)


def visual_puzzles(folder: Path) -> None:
    row = {"id": 1, "image": cell(), "question": "<image1>Which comes next?", "options": ["w", "x", "y", "z"]}
    row |= {"answer": "C", "category": "Inductive", "difficulty": "Easy"}
    parquet(folder / "data" / "train-00000-of-00001.parquet", [row, {**row, "id": 2, "options": None}])


def mmvp(folder: Path, questions: int = 100) -> None:
    (folder / "MMVP Images").mkdir()
    lines = []
    for index in range(1, questions + 1):
        (folder / "MMVP Images" / f"{index}.jpg").write_bytes(picture(index % 256, "JPEG"))
        right = "(a)" if index % 2 else "(b)"
        fields = {"Index": index, "Question": "Is the door open?", "Options": "(a) Open (b) Closed (partly)"}
        lines.append({**fields, "Correct Answer": right})
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def cv_bench(folder: Path) -> None:
    row = {"idx": 0, "type": "2D", "task": "Count", "image": cell(), "question": "How many?", "choices": ["2", "3"]}
    row |= {"answer": "(B)", "prompt": "How many?\n(A) 2\n(B) 3", "filename": "x.png", "source": "ADE20K"}
    third = {**row, "type": "3D", "task": "Depth", "source": "Omni3D"}
    parquet(folder / "test_2d.parquet", [row, {**row, "idx": 1, "source": "COCO", "task": "Relation"}])
    parquet(folder / "test_3d.parquet", [third])


def mmstar(folder: Path) -> None:
    question = "Which is shown?\nOptions: A: a cat, not a dog, B: a dog, C: a cow, D: none"
    row = {"index": 0, "question": question, "image": cell(), "answer": "B", "category": "math"}
    row |= {"l2_category": "geometry", "meta_info": "{}"}
    parquet(
        folder / "mmstar.parquet", [row, {**row, "index": 1, "question": "How much?", "category": "coarse perception"}]
    )


VSI_ROWS = [
    ("object_counting", "How many chairs are in this room?", None, "4"),
    ("object_abs_distance", "How far are the bed and the door apart, in meters?", None, "2.5"),
    ("object_size_estimation", "What is the length of the sofa, in centimeters?", None, "180"),
    ("room_size_estimation", "What is the size of this room, in square meters?", None, "20.4"),
    ("object_rel_distance", "Which is closest to the door?", ["A. bed", "B. sofa", "C. lamp", "D. table"], "C"),
    ("object_rel_direction_easy", "Is the bed to my left or right?", ["A. left", "B. right"], "B"),
    ("object_rel_direction_medium", "Left, right or back?", ["A. left", "B. right", "C. back"], "A"),
    ("object_rel_direction_hard", "Which corner?", ["A. back-left", "B. back-right", "C. left", "D. right"], "D"),
    ("route_planning", "Which turns?", ["A. Turn Left", "B. Turn Right", "C. Turn Back"], "A"),
    ("obj_appearance_order", "In which order?", ["A. bed, sofa", "B. sofa, bed"], "B"),
]


def vsi_bench(folder: Path, changes: Mapping[int, dict[str, Any]] = MappingProxyType({})) -> None:
    """A question of every type, in turn about a video of 40 frames and one of 33."""
    rows = [
        {
            "id": i,
            "dataset": "scannet",
            "scene_name": f"scene{i % 2}",
            "question_type": kind,
            "question": question,
            "options": options,
            "ground_truth": right,
        }
        | changes.get(i, {})
        for i, (kind, question, options, right) in enumerate(VSI_ROWS)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "scannet").mkdir()
    for scene, frames in enumerate((40, 33)):
        (folder / "scannet" / f"scene{scene}.mp4").write_bytes(mp4(frames))
