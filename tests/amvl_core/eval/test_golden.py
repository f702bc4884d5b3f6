"""Both harnesses, item by item, against their recorded outputs on real and hand-written texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from amvl_core.eval import lmms_eval, numerals, vlmevalkit
from amvl_core.eval.extract import Extraction, Extractor
from tests.shared import unpacked

ABCD = dict.fromkeys("ABCD", "")

WITHOUT_TEXTS: dict[str, tuple[Extractor, dict[str, str]]] = {
    "lmms_blink_cvbench": (lmms_eval.first_letter, ABCD),
    "lmms_vstar": (lmms_eval.vstar, ABCD),
    "lmms_mcq_ABCD": (lmms_eval.mcq_abcd, ABCD),
    "lmms_mcq_default": (lmms_eval.mcq_default, ABCD),
    "lmms_visualpuzzles_noopts": (lmms_eval.visual_puzzles, {}),
    "lmms_mmvp": (lmms_eval.mmvp, ABCD),
    "lmms_hrbench_can_infer_option": (lmms_eval.hrbench_option, ABCD),
    "vlmeval_can_infer_option": (vlmevalkit.infer_option, ABCD),
    "vlmeval_can_match_option": (vlmevalkit.match_option, ABCD),
    "vlmeval_visualpuzzles": (vlmevalkit.visual_puzzles, ABCD),
}
WITH_TEXTS: dict[str, Extractor] = {
    "lmms_hrbench_can_infer": lmms_eval.hrbench,
    "vlmeval_can_infer": vlmevalkit.infer,
    "lmms_visualpuzzles_opts": lmms_eval.visual_puzzles,
}
NUMBERS: dict[str, Callable[[str], float | None]] = {
    "lmms_extract_number": numerals.lmms_eval,
    "vlmeval_can_match_na": numerals.vlmevalkit,
}


def golden(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (unpacked("extraction-golden") / name).read_text().splitlines()]


@cache
def outputs(folder: Path, model: str, file: str) -> dict[str, str]:
    items = json.loads((folder / model / file).read_text())["val"]
    return {item["idx"]: item["full_prediction"] for item in items}


def expected(value: object) -> Extraction:
    """Their notation as ours. Upstream compares letters without case, and so does this."""
    if value == "__RANDOM__":
        return Extraction(None, drawn=True)
    return Extraction(str(value).upper() if value else None)


@pytest.mark.parametrize("column", WITHOUT_TEXTS)
def test_letters_on_blink_outputs(column: str) -> None:
    folder = unpacked("blink") / "saved_outputs"
    extractor, options = WITHOUT_TEXTS[column]
    rows = golden("blink_val_letters.jsonl")
    wrong = [
        (row["idx"], row["model"], extractor(text, options), row[column])
        for row in rows
        for text in [outputs(folder, row["model"], row["file"])[row["idx"]]]
        if extractor(text, options) != expected(row[column])
    ]
    assert (len(rows), wrong) == (1900, [])


@pytest.mark.parametrize("column", [*WITHOUT_TEXTS, *WITH_TEXTS])
def test_letters_on_synthetic_texts(column: str) -> None:
    rows = golden("synthetic_letters.jsonl")
    wrong = []
    for row in rows:
        extractor, options = WITHOUT_TEXTS.get(column) or (WITH_TEXTS[column], row["choices"])
        if extractor(row["text"], options) != expected(row[column]):
            wrong.append((row["text"], extractor(row["text"], options), row[column]))
    assert (len(rows), wrong) == (45, [])


@pytest.mark.parametrize("column", NUMBERS)
def test_numbers(column: str) -> None:
    rows = golden("synthetic_numbers.jsonl")
    wrong = [(row["text"], row[column]) for row in rows if NUMBERS[column](row["text"]) != row[column]]
    assert (len(rows), wrong) == (13, [])


def test_mean_relative_accuracy() -> None:
    rows = golden("vsibench_mra.jsonl")
    assert len(rows) == 38
    # Both are means of ten booleans; the worst case measured is 0.
    assert [numerals.mean_relative_accuracy(row["pred"], row["target"]) for row in rows] == [row["mra"] for row in rows]
