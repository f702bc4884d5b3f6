"""Whatever stands in the place of one value of a row, it ends as a sample or as a drop, and its neighbours are kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amvl_core.contracts import sources
from amvl_core.contracts.sample import Conversation
from tests.data_prep.archives import Files, as_folder, chat_row, json_lines
from tests.data_prep.pictures import png
from tests.data_prep.sources import test_chats, test_cogcom, test_refocus, test_visual_cot
from tests.data_prep.sources.reading import outcomes

IMAGE = png(200, 100)
PLACES = [
    f"cot_image_data/cub/{test_visual_cot.BIRD}", "cot_image_data/vsr/0001.jpg", "images/chart.png",
    "images/edited.png", "images/TextVQA/x.png", "General/a.png", "General/b.png", "pictures/a.png",
]  # fmt: skip
IMAGES: Files = dict.fromkeys(PLACES, IMAGE)
CROP = {
    "func": "crop_and_zoom_in_1", "param": "`bbx_1`", "onbox": None, "variables": {"img_1": "img_1"},
    "desc": "Look at `img_1`", "return": "img_1", "found": True,
}  # fmt: skip
TREE = {"-1,0--0,0": test_cogcom.FOUND_SIGN, "0,0--1,0": test_cogcom.READ, "0,*--1,1": CROP}
PROGRAM = [{"operation": "select", "dependencies": [], "argument": "cat (1)"}]
BOXES = '{"boxes":[100, 200, 500, 1000]}'

REGION = {"label": "cup", "box": [1, 2, 30, 40], "image": 0}
PARTS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": "pictures/a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
    ]
}

FORMATS: dict[str, tuple[type[Any], dict[str, Any], str, Any]] = {
    "metadata": (sources.VisualCotSource, {"annotations": "metadata"}, "metadata/cub_cot_train.jsonl",
                 test_visual_cot.line()),
    "detailed": (sources.VisualCotSource, {"annotations": "detailed"},
                 "cot_with_detailed_reasoning_steps/gqa_cot_train.jsonl",
                 test_visual_cot.line(thought="1. a", reasoning=PROGRAM)),
    "conversations": (sources.VisualCotSource, {}, "viscot_363k.json", test_visual_cot.item()),
    "refocus": (sources.RefocusSource, {}, "train.jsonl", test_refocus.raw()),
    "older refocus": (sources.RefocusSource, {}, "train.jsonl", test_refocus.old()),
    "cogcom": (sources.CogcomSource, {}, "com.jsonl", test_cogcom.line(test_cogcom.question(TREE))),
    "flat cogcom": (sources.CogcomSource, {}, "com.jsonl", test_cogcom.line()),
    "monet": (sources.MonetSource, {}, "data.json", test_chats.monet()),
    "onethinker": (sources.OneThinkerSource, {}, test_chats.FILE, test_chats.thought(BOXES)),
    "llava": (sources.LlavaJsonSource, {}, "train.json", test_chats.llava()),
    "chat": (sources.ChatJsonlSource, {}, "train.jsonl", chat_row(id="a", task="t", steps=["s"], regions=[REGION])),
    "chat parts": (sources.ChatJsonlSource, {}, "train.jsonl", PARTS),
}  # fmt: skip

anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12),
    st.sampled_from([[], {}, [[]], [{}], {"": None}, [1, 2, 3, 4], [[1, 2]], "../x", "", "\0", "<image>", "`bbx_1`"]),
    st.lists(st.integers(), max_size=5), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside of `value`, itself included."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def altered(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    result = copy.deepcopy(value)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return result


@pytest.mark.parametrize("name", list(FORMATS))
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_value(name: str, data: st.DataObject) -> None:
    make, fields, file, good = FORMATS[name]
    good = json.loads(json.dumps(good))
    wrong = altered(good, data.draw(st.sampled_from(list(places(good)))), data.draw(anything))
    neighbours = [
        good | {"id": "b"} if name.startswith("chat") else good,
        wrong,
        good | {"id": "c"} if name.startswith("chat") else good,
    ]
    content = json_lines(*neighbours) if file.endswith("l") else json.dumps(neighbours).encode()
    with TemporaryDirectory() as folder:
        found = list(outcomes(make(uri=as_folder(Path(folder), IMAGES | {file: content}), **fields)).values())
    kept = sum(isinstance(value, Conversation) for value in found)
    each = 2 if name == "cogcom" else 1  # chains of one row
    assert kept >= 2 * each and len(found) >= 2 * each + 1
    assert isinstance(found[0], Conversation) and isinstance(found[-1], Conversation)
