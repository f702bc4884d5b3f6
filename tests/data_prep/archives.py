"""Archives of a few files, as folder, tar or zip, and tiny data sets in the published schemas."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data_prep.pictures import png

Files = dict[str, bytes]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def as_folder(path: Path, files: Files) -> str:
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return str(path)


def as_tar(path: Path, files: Files, mode: str = "w:gz") -> str:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def as_zip(path: Path, files: Files) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def json_lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows: dict[str, object], group: int = 2) -> bytes:
    """Rows as Hugging Face writes them: columns that end in `image` or a number hold `struct<bytes, path>`."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table(
        {
            name: pa.array([row.get(name) for row in rows], IMAGE if re.search(r"(^|_)image(_\d+)?$", name) else None)
            for name in names
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=group)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def cell(data: bytes | None) -> dict[str, object] | None:
    return None if data is None else {"bytes": data, "path": None}


def easy_vqa(train: int = 6, test: int = 2) -> Files:
    questions = [["what is the blue shape?", "rectangle"], ["what color is it?", "blue"], ["is there a circle?", "no"]]
    files: Files = {}
    for split, count in (("train", train), ("test", test)):
        rows = [[*questions[i % 3], i // 2] for i in range(count)]
        files[f"easy/data/{split}/questions.json"] = json.dumps(rows).encode()
        for image in {row[2] for row in rows}:
            files[f"easy/data/{split}/images/{image}.png"] = png(seed=int(image) + 100 * (split == "test"))
    return files


def nlvr() -> Files:
    def example(identifier: str, label: str) -> dict[str, object]:
        return {
            "sentence": " There is a tower. ",
            "label": label,
            "identifier": identifier,
            "directory": "3",
            "evals": {"r1": "true"},
            "structured_rep": [[], [], []],
        }

    files = {
        "nlvr/dev/dev.json": json_lines(example("10-0", "true"), example("10-1", "false"), example("77-0", "true")),
        "nlvr/test/test.json": json_lines(example("77-2", "false"), example("78-0", "true")),
    }
    for name in ("dev-10-0-0", "dev-10-0-5", "dev-10-1-0", "dev-77-0-0"):
        files[f"nlvr/dev/images/3/{name}.png"] = png()
    for name in ("test-77-2-0", "test-77-2-1"):
        files[f"nlvr/test/images/3/{name}.png"] = png()
    return files


def maze(maps: int = 40) -> Files:
    files: Files = {}
    for number in range(maps):
        for task, question, answer in (("task1", "Is there a hole in row 1, column 3?", "Y"), ("task4", "LRU", "N")):
            folder = f"vsp/maze/{task}/maps/level3"
            files[f"{folder}/question/{number}.txt"] = question.encode()
            files[f"{folder}/answer/{number}.txt"] = answer.encode()
            files[f"{folder}/pure_text/{number}.txt"] = f"This is a {number} map.".encode()
            files[f"{folder}/img/{number}.png"] = png()
    return files


def chat(*rows: object, test: tuple[object, ...] = ()) -> Files:
    files = {"train.jsonl": json_lines(*rows), "pictures/a.png": png(seed=1), "pictures/b.png": png(seed=2)}
    if test:
        files["test.jsonl"] = json_lines(*test)
    return files


def chat_row(question: str = "<image>What?", answer: str = "This.", **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["pictures/a.png"], **more}
