"""CogCoM's chains of manipulations (huggingface.co/datasets/qijimrc/CoMDataset).

`com.jsonl` and `com_math.jsonl` are trained on, `com_test.jsonl` is tested on. A line is an image with one question
(flat) or several (under `metadata`). `final_com` is a tree: the key `0,1--1,0` is an edge from node 1 of level 0 to
node 0 of level 1, the root is `-1,0`, and `*` stands for every node of its level. Each path from the root to a node
that found the answer is a chain, and each chain is a sample.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import CogcomSource
from data_prep.filters import INCOMPLETE_REASONING, MALFORMED_ROW
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import json_lines
from data_prep.sources.pictures import PublishedBox, crop, image_size, regions
from data_prep.sources.raw_row import RawRow, Rejected, checked, inside

FILES: tuple[tuple[str, Split], ...] = (("com.jsonl", "train"), ("com_math.jsonl", "train"), ("com_test.jsonl", "test"))
MAX_CHAINS = 64
MAX_NODES = 4096
"""Of one question: `*` can make a small tree have more paths than can be written down, with or without an answer."""

ROOT = -1
CROP = "crop_and_zoom"
ZOOMS = ((100, 4), (64, 3))
"""(image area per box area, from there on enlarged so many times); every other crop is enlarged twice."""


class Node(TypedDict):
    """One manipulation; the boxes and texts that it found are in `variables`, under the names that `desc` uses."""

    func: NotRequired[str | None]
    param: NotRequired[Any]
    onbox: NotRequired[Any]
    variables: NotRequired[dict[str, Any] | None]
    desc: NotRequired[str | None]
    found: NotRequired[bool | None]


class Question(TypedDict):
    """A question with its tree."""

    question: str
    answer: str
    final_com: dict[str, Node]


class Line(TypedDict):
    """An image; the questions are checked one by one, so that one of them may be wrong."""

    image_path: str
    metadata: NotRequired[list[Any]]


LINE, QUESTION = TypeAdapter(Line), TypeAdapter(Question)
BOX, BOXES = TypeAdapter(PublishedBox), TypeAdapter(list[PublishedBox])
Chain = tuple[Node, ...]

_EDGE = re.compile(r"(-?\d{1,6}),(\d{1,6}|\*)--(\d{1,6}),(\d{1,6})")
_NAME = re.compile(r"`(\w+)`")


def rows(source: CogcomSource, archive: Archive) -> Iterator[RawRow]:
    """Every chain of every question. Raises DataError if none of the published files is there."""
    found = [(name, split) for file, split in FILES if (name := archive.only(file)) is not None]
    if not found:
        raise DataError(f"{source.uri} holds none of {', '.join(file for file, _ in FILES)}; it is not CogCoM")
    for name, split in found:
        for number, value in json_lines(archive, name):
            sample_id = f"{source.name}/{posixpath.splitext(posixpath.basename(name))[0]}/{number:07d}"
            try:
                line = checked(LINE, value)
                image = inside(posixpath.dirname(name), line["image_path"])
                questions = line.get("metadata", [value])
                if not questions:
                    raise Rejected(MALFORMED_ROW, "metadata holds no question")
            except Rejected as rejected:
                yield RawRow(sample_id, split, (), None, rejected.drop)
                continue
            for which, question in enumerate(questions):
                yield from _question_rows(f"{sample_id}-{which}", split, image, question)


def _question_rows(sample_id: str, split: Split, image: str, value: object) -> Iterator[RawRow]:
    try:
        fields = checked(QUESTION, value)
        found = chains(fields["final_com"])
    except Rejected as rejected:
        yield RawRow(sample_id, split, (), None, rejected.drop)
        return
    for number, chain in enumerate(found):
        plain = {"question": fields["question"], "answer": fields["answer"], "chain": chain}
        yield RawRow(f"{sample_id}-{number}", split, (image,), plain)


def chains(tree: Mapping[str, Node]) -> list[Chain]:
    """Every path from the root to a node that found the answer, depth first; `*` is the last of a node's edges.

    Raises Rejected if there is no such path, if there are more than `MAX_CHAINS`, or if a key is no edge downwards.
    """
    edges = []
    for key, node in tree.items():
        edge = _EDGE.fullmatch(key)
        if edge is None or int(edge[1]) >= int(edge[3]):
            raise Rejected(MALFORMED_ROW, f"final_com: {key!r} is no edge from one level to a deeper one")
        edges.append((int(edge[1]), edge[2], int(edge[3]), int(edge[4]), node))
    edges.sort(key=lambda edge: (edge[0], edge[1] == "*", edge[2], edge[3]))
    found: list[Chain] = []
    waiting: list[tuple[int, int, Chain]] = [(ROOT, 0, ())]
    for _ in range(MAX_NODES):
        if not waiting:
            break
        level, index, path = waiting.pop()
        if path and path[-1].get("found"):
            found.append(path)
        below = [edge for edge in edges if edge[0] == level and edge[1] in ("*", str(index))]
        waiting += [(child, number, (*path, node)) for _, _, child, number, node in reversed(below)]
    if waiting or len(found) > MAX_CHAINS:
        raise Rejected(MALFORMED_ROW, f"final_com has more than {MAX_CHAINS} paths to the answer, or hardly an end")
    if not found:
        raise Rejected(INCOMPLETE_REASONING, "no path of final_com finds the answer")
    return found


def convert(source: CogcomSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One chain; what was found on the way are the regions, and a crop shows its part of the image, enlarged.

    Raises Rejected where a box has no area on the image.
    """
    (image,) = images
    size = image_size(image)
    known: dict[str, Any] = {}
    steps: list[str] = []
    shown: list[bytes] = [image]
    boxes: list[tuple[str, list[float]]] = []
    for node in row.fields["chain"]:
        new = node.get("variables") or {}
        known |= new
        for name, value in new.items():
            if name.startswith("bbx"):
                boxes += [(_label(node, name), box) for box in _boxes(value)]
        step = _NAME.sub(partial(_said, known), node.get("desc") or "").strip()
        if (node.get("func") or "").startswith(CROP):
            shown.append(_crop(image, size, node, known))
            step += IMAGE_PLACEHOLDER
        if step:
            steps.append(step)
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=posixpath.basename(posixpath.dirname(str(row.images[0]))) or "cogcom",
        images=tuple(shown),
        question=IMAGE_PLACEHOLDER + row.fields["question"],
        steps=tuple(steps),
        answer=row.fields["answer"],
        regions=regions(boxes, size),
    )


def _boxes(value: Any) -> list[list[float]]:
    """One box or a list of boxes."""
    nested = isinstance(value, list) and all(isinstance(item, list) for item in value)
    return checked(BOXES, value) if nested else [checked(BOX, value)]


def _label(node: Node, name: str) -> str:
    param = node.get("param")
    return param.strip("`") if isinstance(param, str) and param.strip("`") else name


def _said(known: Mapping[str, Any], found: re.Match[str]) -> str:
    """What a step says in the place of a name: the value, boxes one by one, else the name itself."""
    value = known.get(found[1])
    if value in (None, "", []):
        return found[1]
    if not isinstance(value, list):
        return str(value)
    items = value if all(isinstance(item, list) for item in value) else [value]
    return " ".join(json.dumps(item, ensure_ascii=False) for item in items)


def _crop(image: bytes, size: tuple[int, int], node: Node, known: Mapping[str, Any]) -> bytes:
    where = node.get("onbox")
    if where in (None, []):
        where = known.get(_label(node, ""))
    boxes = _boxes(where)
    if not boxes:
        raise Rejected(MALFORMED_ROW, "a crop has no box")
    x1, y1, x2, y2 = boxes[0]
    ratio = size[0] * size[1] / max((x2 - x1) * (y2 - y1), 1)
    zoom = next((times for least, times in ZOOMS if ratio >= least), 2)
    return crop(image, boxes[0], zoom)
