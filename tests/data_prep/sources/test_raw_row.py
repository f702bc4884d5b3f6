from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Literal, NotRequired

import pytest
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.contracts.sample import Conversation
from amvl_core.contracts.sources import RefocusSource, VisualCotSource
from data_prep.filters import MALFORMED_ROW, Drop
from data_prep.sources.raw_row import Inline, Rejected, checked, read_image
from tests.data_prep.archives import as_folder, json_lines
from tests.data_prep.pictures import png
from tests.data_prep.sources import test_refocus, test_visual_cot
from tests.data_prep.sources.reading import outcomes


class Part(TypedDict):
    type: Literal["text"]
    text: str


class Item(TypedDict):
    said: str | list[Part]
    boxes: NotRequired[list[float] | list[list[float]]]
    name: NotRequired[str]


ITEM = TypeAdapter(Item)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"said": [{"type": "text"}]}, "said.0.text: Field required"),
        ({"said": [{"type": "text", "text": 1}]}, "said.0.text: Input should be a valid string"),
        ({"said": [{"type": "video", "text": "a"}]}, "said.0.type: Input should be 'text'"),
        ({"said": 1}, "said: Input should be a valid string or Input should be a valid list"),
        ({"said": "a", "boxes": [[1.0, "x"]]}, "boxes.0.1: Input should be a valid number, unable to parse"),
        ({"said": "a", "name": ["b"]}, "name: Input should be a valid string"),
        ({"said": None}, "said: Field required"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_the_form_that_was_meant_is_named(value: Any, said: str) -> None:
    with pytest.raises(Rejected) as error:
        checked(ITEM, value)
    assert error.value.drop.reason == MALFORMED_ROW and error.value.drop.detail.startswith(said)
    with pytest.raises(Rejected) as error:
        checked(ITEM, value, "row")
    assert error.value.drop.detail.startswith("row" if said[0] == "I" else f"row.{said}")


def test_null_is_no_field() -> None:
    assert checked(ITEM, {"said": "a", "name": None, "boxes": float("nan")}) == {"said": "a"}


@pytest.mark.parametrize("name", ["metadata", "conversations", "refocus", "older refocus"])
def test_the_fields_of_other_forms_may_be_null(tmp_path: Path, name: str) -> None:
    """Rows of two forms in one table: each has the other's fields as null."""
    rows: dict[str, tuple[Any, dict[str, Any], Any, str]] = {
        "metadata": (
            VisualCotSource,
            {"annotations": "metadata"},
            test_visual_cot.line(),
            "metadata/cub_cot_train.jsonl",
        ),
        "conversations": (VisualCotSource, {}, test_visual_cot.item(), "viscot_363k.json"),
        "refocus": (RefocusSource, {}, test_refocus.raw(), "train.jsonl"),
        "older refocus": (RefocusSource, {}, test_refocus.old(), "train.jsonl"),
    }
    everything = dict.fromkeys(field for _, _, row, _ in rows.values() for field in row)
    make, settings, row, file = rows[name]
    row = {**everything, **row}
    content = json_lines(row) if file.endswith("l") else json.dumps([row]).encode()
    places = [f"cot_image_data/cub/{test_visual_cot.BIRD}", "cot_image_data/vsr/0001.jpg", "images/chart.png"]
    images = dict.fromkeys([*places, "images/edited.png"], png(200, 100))
    (found,) = outcomes(make(uri=as_folder(tmp_path, images | {file: content}), **settings)).values()
    assert isinstance(found, Conversation), found


@pytest.mark.parametrize("text", ["{}", "data:image/png;base64,{}", "data:;base64,{}"])
def test_an_image_in_the_row(text: str) -> None:
    data = bytes(range(256))
    encoded = base64.b64encode(data).decode()
    for written in (encoded, encoded.rstrip("="), base64.encodebytes(data).decode().replace("\n", "\r\n")):
        assert read_image(None, Inline(text.format(written))) == data
    assert read_image(None, Inline(data)) == data


@pytest.mark.parametrize(
    "text", ["data:image/png,abc", "data:image/png;base64,a*b=", "data:", "data:image/png;base64,a"]
)
def test_an_image_in_the_row_that_is_none(text: str) -> None:
    found = read_image(None, Inline(text))
    assert isinstance(found, Drop) and found.reason == "unreadable_image" and "base64" in found.detail


def test_details_are_bounded() -> None:
    assert len(Drop("a", "x" * 10**6).detail) == len(Rejected("a", "x" * 10**6).drop.detail) == 300
