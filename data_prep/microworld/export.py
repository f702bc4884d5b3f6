"""Microworld in the four published formats, so that their converters can be run without downloading anything.

Each writer keeps to the schema that `data_prep/sources/` reads: question, steps, answer and regions come back as they
were, and images byte for byte. Zebra-CoT has no boxes, so regions are lost there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import MicroworldSource
from data_prep.microworld import generate
from data_prep.microworld.draw import SIZE

ROW_GROUP_ROWS = 100
"""What Hugging Face writes where rows hold images."""

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_BOXES = pa.struct([(side, pa.list_(pa.float64())) for side in ("x1", "y1", "x2", "y2")])
_REFOCUS = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("image", _IMAGE),
        ("thoughts", pa.list_(pa.string())),
        ("edited_image", _IMAGE),
        ("focus_areas_bbox", _BOXES),
        ("source", pa.string()),
        ("split", pa.string()),
        ("x_values", pa.list_(pa.string())),
        ("y_values", pa.list_(pa.string())),
        ("x_values_bbox", _BOXES),
        ("y_values_bbox", _BOXES),
        ("figure_bbox", pa.struct([(side, pa.float64()) for side in ("x1", "y1", "x2", "y2")])),
    ]
)
_ZEBRA = pa.schema(
    [
        ("Question", pa.string()),
        ("Text Reasoning Trace", pa.string()),
        ("Final Answer", pa.string()),
        ("problem_image_1", _IMAGE),
    ]
)

Samples = Iterable[Conversation]


def export(source: MicroworldSource, form: str, folder: Path) -> None:
    """Writes both splits of `source` below `folder` in one of `FORMS`. Raises ConfigError as `generate` does."""
    for split in ("train", "test"):
        FORMS[form](folder, split, generate(source, split))


def _visual_cot(folder: Path, split: Split, samples: Samples) -> None:
    name = f"microworld_cot_{'train' if split == 'train' else 'val'}"

    def lines() -> Iterator[dict[str, Any]]:
        for sample in samples:
            image = _save_image(folder / "cot_image_data" / sample.task, sample)
            yield {
                "question": _question(sample),
                "answer": sample.answer,
                "full_answer": sample.answer,
                "image": image,
                "width": SIZE,
                "height": SIZE,
                "bboxs": [region.box for region in sample.regions],
                "dataset": sample.task,
                "split": "train" if split == "train" else "val",
                "thought": "\n".join(f"{number}. {step}" for number, step in enumerate(sample.steps, 1)),
                "reasoning": [
                    {"operation": "select", "dependencies": [], "argument": f"{region.label} ({number})"}
                    for number, region in enumerate(sample.regions)
                ],
            }

    _write_lines(folder / "cot_with_detailed_reasoning_steps" / f"{name}.jsonl", lines())


def _refocus(folder: Path, split: Split, samples: Samples) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for sample in samples:
            boxes = _columns([region.box for region in sample.regions])
            yield {
                "id": f"{split}-{_stem(sample)}",
                "question": _question(sample),
                "answer": sample.answer,
                "image": _cell(sample),
                "thoughts": _thoughts(sample),
                "edited_image": None,
                "focus_areas_bbox": boxes,
                "source": sample.task,
                "split": split,
                "x_values": [region.label for region in sample.regions],
                "y_values": [],
                "x_values_bbox": boxes,
                "y_values_bbox": _columns([]),
                "figure_bbox": {"x1": 0.0, "y1": 0.0, "x2": SIZE, "y2": SIZE},
            }

    _write_table(folder / "data" / f"{split}-00000-of-00001.parquet", _REFOCUS, rows())


def _cogcom(folder: Path, split: Split, samples: Samples) -> None:
    def lines() -> Iterator[dict[str, Any]]:
        for sample in samples:
            image = _save_image(folder / "images" / sample.task, sample)
            qa = {
                "question": _question(sample),
                "answer": sample.answer,
                "unique_id": sample.sample_id,
                "steps_txt": sample.steps,
                "final_com": _tree(sample),
                "com_founds": list(_tree(sample))[-1:],
                "cropped": None,
            }
            yield {
                "pid": sample.sample_id,
                "image_path": f"images/{sample.task}/{image}",
                "img_size": [SIZE, SIZE],
                "metadata": [qa],
            }

    _write_lines(folder / ("com.jsonl" if split == "train" else "com_test.jsonl"), lines())


def _tree(sample: Conversation) -> dict[str, Any]:
    """One chain: a node for each step and region, together as long as there are both."""
    tree: dict[str, Any] = {}
    pairs = list(zip_longest(sample.steps, sample.regions))
    for level, (step, region) in enumerate(pairs):
        name = f"bbx_{level + 1}"
        tree[f"{level - 1},0--{level},0"] = {
            "func": "grounding_1" if region else None,
            "param": region.label if region else None,
            "onbox": None,
            "variables": {name: [region.box]} if region else {},
            "desc": step or "",
            "return": name if region else None,
            "found": level == len(pairs) - 1,
        }
    return tree


def _zebra_cot(folder: Path, split: Split, samples: Samples) -> None:
    shown = "<image_start>[problem_image_1]<image_end>"
    ordered = sorted(samples, key=lambda sample: sample.task)
    for task, group in groupby(ordered, key=lambda sample: sample.task):
        rows = (
            {
                "Question": sample.question.replace(IMAGE_PLACEHOLDER, shown),
                "Text Reasoning Trace": "\n".join(_thoughts(sample)),
                "Final Answer": sample.answer,
                "problem_image_1": _cell(sample),
            }
            for sample in group
        )
        _write_table(folder / task / f"{split}-00000-of-00001.parquet", _ZEBRA, rows)


FORMS: dict[str, Callable[[Path, Split, Samples], None]] = {
    "visual_cot": _visual_cot,
    "refocus": _refocus,
    "cogcom": _cogcom,
    "zebra_cot": _zebra_cot,
}


def _question(sample: Conversation) -> str:
    return sample.question.removeprefix(IMAGE_PLACEHOLDER)


def _thoughts(sample: Conversation) -> list[str]:
    return [f"THOUGHT {number}: {step}" for number, step in enumerate(sample.steps)]


def _columns(boxes: list[tuple[float, float, float, float]]) -> dict[str, list[float]]:
    return {side: [box[i] for box in boxes] for i, side in enumerate(("x1", "y1", "x2", "y2"))}


def _stem(sample: Conversation) -> str:
    return sample.sample_id.rsplit("/", 1)[-1]


def _cell(sample: Conversation) -> dict[str, Any]:
    return {"bytes": sample.images[0], "path": f"{_stem(sample)}.png"}


def _save_image(folder: Path, sample: Conversation) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{sample.split}_{_stem(sample)}.png"
    (folder / name).write_bytes(sample.images[0])
    return name


def _write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


def _write_table(file: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
