from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation
from amvl_core.contracts.sources import ZebraCotSource
from data_prep.filters import (
    INCOMPLETE_REASONING,
    MALFORMED_ROW,
    MISSING_IMAGE,
    PLACEHOLDER_MISMATCH,
    UNREADABLE_IMAGE,
)
from data_prep.sources import detect
from tests.data_prep.archives import Files, as_folder, as_tar, as_zip, cell, parquet
from tests.data_prep.pictures import png
from tests.data_prep.sources.reading import converted, drops, outcomes

CONFIG = "2D Visual Reasoning - Visual Jigsaw"
P1, P2, R1, R2 = (png(seed=seed) for seed in range(4))


def image(name: str) -> str:
    return f"<image_start>[{name}]<image_end>"


def row(**change: Any) -> dict[str, Any]:
    """Images of the problem out of order, one of the reasoning shown twice."""
    trace = (
        "THOUGHT 0: Look at the piece. <image_start> [reasoning_image_2] <image_end>\n"
        f"THOUGHT 1: Compare {image('reasoning_image_1')} with {image('reasoning_image_2')} THOUGHT 2: It fits."
    )
    return {
        "Question": f"Which of {image('problem_image_2')} fits {image('problem_image_1')}?",
        "Text Reasoning Trace": trace,
        "Final Answer": "B",
        "problem_image_1": cell(P1),
        "problem_image_2": cell(P2),
        "reasoning_image_1": cell(R1),
        "reasoning_image_2": cell(R2),
    } | change


def text_only(**change: Any) -> dict[str, Any]:
    return {"Question": "1 + 1?", "Text Reasoning Trace": "THOUGHT 0: Add.", "Final Answer": "2"} | change


def files(*rows: dict[str, Any], config: str = CONFIG) -> Files:
    return {f"{config}/train-00000-of-00002.parquet": parquet(*rows)}


@pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])
def test_images_stand_where_the_text_shows_them(tmp_path: Path, pack: Any) -> None:
    source = detect(pack(tmp_path / "z", files(row())))
    assert isinstance(source, ZebraCotSource)
    (sample,) = converted(source)
    assert sample == Conversation(
        f"zebra_cot/{CONFIG}/train-00000-of-00002/0000000", "zebra_cot", "train", CONFIG,
        (P2, P1, R2, R1, R2),
        "Which of <image> fits <image>?",
        ("Look at the piece. <image>", "Compare <image> with <image>", "It fits."),
        "B",
    )  # fmt: skip


def test_one_parquet_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet(row(), row()))
    assert [sample.images[0] for sample in converted(detect(str(path)))] == [P2, P2]


def test_configurations_have_columns_of_their_own(tmp_path: Path) -> None:
    few = text_only(Question=f"{image('problem_image_1')} Who wins?", problem_image_1=cell(P1))
    source = detect(as_folder(tmp_path / "z", files(row()) | files(few, text_only(), config="Chess")))
    samples = converted(source)
    assert [(sample.task, len(sample.images)) for sample in samples] == [(CONFIG, 5), ("Chess", 1), ("Chess", 0)]


def test_s3(s3_bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "zebra"
    as_folder(folder, files(row()))
    storage.upload(folder, f"{s3_bucket}/zebra")
    assert [sample.images for sample in converted(detect(f"{s3_bucket}/zebra"))] == [(P2, P1, R2, R1, R2)]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (row(reasoning_image_1=None), MISSING_IMAGE),
        (row(reasoning_image_1={"bytes": None, "path": "x.png"}), MISSING_IMAGE),
        (row(**{"Text Reasoning Trace": f"THOUGHT 0: {image('reasoning_image_9')}"}), MISSING_IMAGE),
        (row(**{"Text Reasoning Trace": f"THOUGHT 0: {image('reasoning_image_1')}"}), PLACEHOLDER_MISMATCH),
        (row(Question=row()["Question"] + "<image_start>[problem]<image_end>"), PLACEHOLDER_MISMATCH),
        (row(Question=row()["Question"] + " <image_start>"), PLACEHOLDER_MISMATCH),
        (text_only(**{"Text Reasoning Trace": " \n"}), INCOMPLETE_REASONING),
        (text_only(**{"Text Reasoning Trace": None}), MALFORMED_ROW),
        (text_only(**{"Final Answer": None}), MALFORMED_ROW),
    ],
)
def test_rows_that_are_wrong_are_one_drop_each(tmp_path: Path, wrong: dict[str, Any], reason: str) -> None:
    source = detect(as_folder(tmp_path / "z", files(row(), wrong, row())))
    assert drops(source) == {f"zebra_cot/{CONFIG}/train-00000-of-00002/0000001": reason}
    assert len(converted(source)) == 2


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    """Text of the first group, then an image column of it, are overwritten."""
    secret = "nowhere else"
    rows = [row(**{"Final Answer": f"{secret} {i}"}) for i in range(4)]
    whole = parquet(*rows)
    where = whole.index(secret.encode())
    broken = whole[: where - 40] + b"\xff" * 60 + whole[where + 20 :]
    path = tmp_path / "train.parquet"
    path.write_bytes(broken)
    found = outcomes(ZebraCotSource(uri=str(path)))
    assert [isinstance(value, Conversation) for value in found.values()] == [False, False, True, True]
    assert set(drops(ZebraCotSource(uri=str(path))).values()) == {MALFORMED_ROW}

    picture = whole.index(P1)
    path.write_bytes(whole[: picture - 60] + b"\xff" * 60 + whole[picture:])
    assert list(drops(ZebraCotSource(uri=str(path))).values()) == [UNREADABLE_IMAGE] * 2


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    """Nobody knows how many rows it held."""
    whole = files(row()) | files(row(), config="1 Chess")
    name = "1 Chess/train-00000-of-00002.parquet"
    source = detect(as_folder(tmp_path / "z", whole | {name: whole[name][:-50]}))
    with pytest.raises(DataError, match=f"z/{name} is damaged or incomplete .* download"):
        outcomes(source)


def test_a_column_of_images_that_is_null_throughout(tmp_path: Path) -> None:
    columns = {name: [value] for name, value in text_only(Question=f"{image('problem_image_1')} Who wins?").items()}
    table = pa.table({**columns, "problem_image_1": pa.array([P1]), "reasoning_image_1": pa.nulls(1)})
    pq.write_table(table, tmp_path / "train-0.parquet")
    assert [sample.images for sample in converted(detect(str(tmp_path)))] == [(P1,)]


def test_two_files_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    table = parquet(text_only())
    source = detect(as_folder(tmp_path, {f"{top}/Chess/train-0.parquet": table for top in "ab"}))
    assert list(outcomes(source)) == ["zebra_cot/Chess/train-0/0000000", "zebra_cot/Chess/train-0-2/0000000"]
