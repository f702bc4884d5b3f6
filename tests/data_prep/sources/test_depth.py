"""However deeply a row is nested, it ends as a sample or as a drop that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.sample import Conversation
from amvl_core.contracts.sources import ChatJsonlSource
from data_prep.filters import MALFORMED_ROW, Drop
from data_prep.sources.depth import MAX_DEPTH, TOO_DEEP, too_deep
from tests.data_prep.archives import as_folder, json_lines, parquet
from tests.data_prep.sources.reading import outcomes
from tests.data_prep.sources.test_any_value import FORMATS, IMAGES, altered, places


def deep(levels: int, lists: bool = True) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if lists else {"a": value}
    return value


@pytest.mark.parametrize("lists", [True, False])
def test_what_is_too_deep(lists: bool) -> None:
    assert not too_deep(deep(MAX_DEPTH, lists)) and too_deep(deep(MAX_DEPTH + 1, lists))
    assert not too_deep(1) and not too_deep([[[]] * 1000] * 1000)


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_row_that_is_nested_too_deeply_is_a_drop(tmp_path: Path, name: str) -> None:
    make, fields, file, good = FORMATS[name]
    paths = [path for path in places(good) if path]
    for levels in (MAX_DEPTH - 10, 600, 900):
        rows = [altered(good, path, deep(levels, lists)) for path in paths for lists in (True, False)]
        content = json_lines(*rows) if file.endswith("l") else json.dumps(rows).encode()
        uri = as_folder(tmp_path / str(levels), IMAGES | {file: content})
        found = list(outcomes(make(uri=uri, **fields)).values())
        assert len(found) >= len(rows)
        if levels > MAX_DEPTH:
            assert all(isinstance(value, Drop) and value.reason == MALFORMED_ROW for value in found)
            assert all(isinstance(value, Drop) and TOO_DEEP in value.detail for value in found)


def written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False)
    return bytes(sink.getvalue().to_pybytes())


def test_boxes_of_an_answer(tmp_path: Path) -> None:
    make, _, file, good = FORMATS["onethinker"]
    reply = f"<think>a</think><answer>{json.dumps({'boxes': deep(600)})}</answer>"
    row = altered(good, ("messages", 1, "content"), reply)
    uri = as_folder(tmp_path, IMAGES | {file: json.dumps([row]).encode()})
    (found,) = outcomes(make(uri=uri)).values()
    assert isinstance(found, Drop) and TOO_DEEP in found.detail


def test_a_row_of_a_table(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    column = pa.array([1])
    for _ in range(600):
        column = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), column)
    table = pa.table({"messages": pa.array([row["messages"]]), "audios": column})
    files = {"train-0.parquet": parquet(row), "train-1.parquet": written(table)}
    good, dropped = outcomes(ChatJsonlSource(uri=as_folder(tmp_path, files))).values()
    assert isinstance(good, Conversation)
    assert isinstance(dropped, Drop) and TOO_DEEP in dropped.detail and "row 0 of row group 0" in dropped.detail
