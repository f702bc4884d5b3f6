from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amvl_core.contracts.sample import Conversation, Region
from amvl_core.contracts.sources import CogcomSource
from data_prep.filters import DEGENERATE_BOX, INCOMPLETE_REASONING, MALFORMED_ROW, MISSING_IMAGE
from data_prep.sources import detect
from data_prep.sources.cogcom import MAX_CHAINS, chains
from data_prep.sources.raw_row import Rejected
from tests.data_prep.archives import as_folder, as_tar, as_zip, json_lines
from tests.data_prep.pictures import decode, encode, noise, png
from tests.data_prep.sources.reading import converted, drops

PIXELS = noise(200, 100)
FOUND_SIGN = {
    "func": "grounding_1", "param": "the sign", "onbox": None, "variables": {"bbx_1": [[10, 20, 60, 50]]},
    "desc": "Find the sign `bbx_1`", "return": "bbx_1", "found": False,
}  # fmt: skip
READ = {
    "func": "OCR_1", "param": "`bbx_1`", "onbox": [10, 20, 60, 50], "variables": {"txt_1": "42"},
    "desc": "Read `txt_1` in `bbx_1`, not `txt_9`", "return": "txt_1", "found": True,
}  # fmt: skip


def question(tree: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    return {
        "question": "Which number?", "answer": "42", "unique_id": "u", "steps_txt": ["..."], "com_founds": ["0,0--1,0"],
        "final_com": {"-1,0--0,0": FOUND_SIGN, "0,0--1,0": READ} if tree is None else tree, "cropped": None,
    } | change  # fmt: skip


def line(*questions: object, **change: Any) -> dict[str, Any]:
    nested = {"metadata": list(questions)} if questions else question()
    return {"pid": "p1", "image_path": "images/TextVQA/x.png", "img_size": [200, 100], **nested} | change


def files(*lines: object, name: str = "com.jsonl") -> dict[str, bytes]:
    return {name: json_lines(*lines), "images/TextVQA/x.png": encode(PIXELS)}


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])
def test_both_nestings_give_the_same_sample(tmp_path: Path, nested: bool, pack: Any) -> None:
    source = detect(pack(tmp_path / "c", files(line(question()) if nested else line())))
    assert isinstance(source, CogcomSource)
    assert converted(source) == [
        Conversation(
            "cogcom/com/0000001-0-0", "cogcom", "train", "TextVQA", (encode(PIXELS),), "<image>Which number?",
            ("Find the sign [10, 20, 60, 50]", "Read 42 in [10, 20, 60, 50], not txt_9"), "42",
            (Region("the sign", (10, 20, 60, 50)),),
        )
    ]  # fmt: skip


def node(name: str, found: bool = False) -> dict[str, Any]:
    return {"func": None, "variables": {}, "desc": name, "found": found}


def names(tree: dict[str, Any]) -> list[str]:
    return ["".join(str(step["desc"]) for step in chain) for chain in chains(tree)]


def test_every_path_to_the_answer_is_a_chain() -> None:
    tree = {
        "-1,*--0,0": node("a"),
        "0,0--1,0": node("b", found=True),  # the answer, and on to another one
        "0,0--1,1": node("c"),
        "1,0--2,0": node("d", found=True),
        "1,1--2,1": node("e"),  # found nothing
        "1,*--2,10": node("f", found=True),  # behind every node of level 1, after its own edges
    }
    assert names(tree) == ["ab", "abd", "abf", "acf"]


def test_edges_are_ordered_by_number_not_by_text() -> None:
    tree = {"-1,0--0,10": node("k", True), "-1,0--0,2": node("c", True), "-1,*--0,1": node("b", True)}
    assert names(tree) == ["c", "k", "b"]


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"-1,0--0,0": node("a")}, INCOMPLETE_REASONING),
        ({}, INCOMPLETE_REASONING),
        ({"5,0--6,0": node("a", True)}, INCOMPLETE_REASONING),  # not reachable from the root
        ({"-1,0--0,0": node("a"), "0,0--0,0": node("b", True)}, MALFORMED_ROW),  # a circle
        ({"-1,0--0,0": node("a"), "0,0--0,0": node("b")}, MALFORMED_ROW),
        ({"-1,0--0,0": node("a"), "0,0--1,0": node("b"), "1,0--0,5": node("c", True)}, MALFORMED_ROW),  # upwards
        ({"root": node("a", True)}, MALFORMED_ROW),
        ({f"{level - 1},*--{level},{i}": node("x") for level in range(9) for i in range(5)}, MALFORMED_ROW),
        ({f"{level - 1},*--{level},{i}": node("x", True) for level in range(9) for i in range(5)}, MALFORMED_ROW),
    ],
)
def test_trees_without_a_way(tree: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as error:
        chains(tree)
    assert error.value.drop.reason == reason


def test_a_long_chain() -> None:
    tree = {f"{level - 1},0--{level},0": node(str(level), level == 1999) for level in range(2000)}
    assert [len(chain) for chain in chains(tree)] == [2000]


def test_as_many_paths_as_are_allowed() -> None:
    tree = {f"-1,0--0,{i}": node("x", True) for i in range(MAX_CHAINS)}
    assert len(chains(tree)) == MAX_CHAINS


@pytest.mark.parametrize(
    ("box", "zoom"),
    [([0, 0, 100, 50], 2), ([10, 20, 34, 42], 2), ([10, 20, 30, 35], 3), ([10, 20, 30, 30], 4)],
)
@pytest.mark.parametrize("on", ["onbox", "nested", "param"])
def test_a_crop_is_enlarged(tmp_path: Path, box: list[int], zoom: int, on: str) -> None:
    crop = {
        "func": "crop_and_zoom_in_1", "param": "`bbx_1`", "variables": {"img_1": "img_1"}, "desc": "Look at `img_1`",
        "return": "img_1", "found": True, "onbox": {"onbox": box, "nested": [box], "param": None}[on],
    }  # fmt: skip
    tree = {"-1,0--0,0": FOUND_SIGN | {"variables": {"bbx_1": box}}, "0,0--1,0": crop}
    (sample,) = converted(detect(as_folder(tmp_path / "c", files(line(question(tree))))))
    x1, y1, x2, y2 = box
    part = PIXELS.crop((x1, y1, x2, y2))
    expected = part.resize((part.width * zoom, part.height * zoom), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(decode(sample.images[1])), np.asarray(expected))
    assert sample.steps == (f"Find the sign {box}", "Look at img_1<image>")
    assert sample.regions == (Region("the sign", (x1, y1, x2, y2)),)


def test_several_questions_and_chains_of_one_image(tmp_path: Path) -> None:
    two = question({"-1,0--0,0": node("a", True), "-1,0--0,1": node("b", True)})
    lines = line(question(), two, question(answer=42), question({}))
    tests = files(line(), name="com_test.jsonl") | files(line(), name="com_math.jsonl")
    source = detect(as_folder(tmp_path / "c", files(lines) | tests))
    ids = [(sample.sample_id, sample.split) for sample in converted(source)]
    assert ids == [
        ("cogcom/com/0000001-0-0", "train"), ("cogcom/com/0000001-1-0", "train"), ("cogcom/com/0000001-1-1", "train"),
        ("cogcom/com_math/0000001-0-0", "train"), ("cogcom/com_test/0000001-0-0", "test"),
    ]  # fmt: skip
    assert drops(source) == {
        "cogcom/com/0000001-2": MALFORMED_ROW,
        "cogcom/com/0000001-3": INCOMPLETE_REASONING,
    }


def sign(**change: Any) -> dict[str, Any]:
    return question({"-1,0--0,0": FOUND_SIGN | {"found": True} | change})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (line(sign(variables={"bbx_1": [[60, 20, 10, 50]]})), DEGENERATE_BOX),
        (line(sign(variables={"bbx_1": [[10, 20, 60]]})), MALFORMED_ROW),
        (line(sign(variables={"bbx_1": "somewhere"})), MALFORMED_ROW),
        (line(sign(variables=["bbx_1"])), MALFORMED_ROW),
        (line(sign(func="crop_and_zoom_in_1", onbox=None, param=None)), MALFORMED_ROW),
        (line(image_path=None), MALFORMED_ROW),
        (line(image_path="images/gone.png"), MISSING_IMAGE),
        (line(image_path="/etc/passwd"), MISSING_IMAGE),
        ({"metadata": [], "image_path": "images/TextVQA/x.png"}, MALFORMED_ROW),
        ({"metadata": None, "image_path": "images/TextVQA/x.png"}, MALFORMED_ROW),
    ],
)
def test_rows_that_are_wrong_are_one_drop_each(tmp_path: Path, wrong: object, reason: str) -> None:
    source = detect(as_folder(tmp_path / "c", files(line(), wrong, line())))
    assert list(drops(source).values()) == [reason]


def test_a_box_beyond_the_edge_is_clipped(tmp_path: Path) -> None:
    source = detect(as_folder(tmp_path / "c", files(line(sign(variables={"bbx_1": [-5, 20, 999, 50]})))))
    assert converted(source)[0].regions == (Region("the sign", (0, 20, 200, 50)),)


def test_an_image_that_is_none(tmp_path: Path) -> None:
    source = detect(as_folder(tmp_path / "c", files(line()) | {"images/TextVQA/x.png": png()[:20]}))
    assert list(drops(source).values()) == ["unreadable_image"]
