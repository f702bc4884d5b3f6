from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amvl_core.contracts.config import DataConfig
from amvl_core.contracts.errors import StorageError
from amvl_core.contracts.sample import Conversation, Region
from amvl_core.contracts.sources import ChatJsonlSource, EasyVqaSource
from data_prep import duplicates, filters, listing
from data_prep.duplicate_keys import KeyFile
from data_prep.units import Work, step_images
from tests.data_prep import archives
from tests.data_prep.archives import as_folder, as_tar, chat_row
from tests.data_prep.pictures import png


def repeats(folder: Path, rows: list[dict[str, object]], **data: Any) -> list[int]:
    """The rows that are dropped as duplicates."""
    source = ChatJsonlSource(uri=as_folder(folder / "chat", archives.chat(*rows)))
    done = finish(work(source, folder / "out", **data))
    files = [KeyFile(str(folder / "out" / f"{unit.split}-{unit.number:05d}.keys.parquet"), unit.split) for unit in done]
    return [repeat.row for repeat in duplicates.find(files, duplicates=True, contaminated=True)]


class Counter:
    """As many tokens as there are words."""

    patch_size, merge_size = 14, 2

    def count(self, texts: list[str], sizes: list[tuple[int, int]], low: int, high: int, videos: Any = ()) -> int:
        return sum(len(text.split()) for text in texts)


def work(source: Any, folder: Path, **data: Any) -> Work:
    settings = {"min_pixels": 64, "max_pixels": 10**5, "max_tokens": 50, "rows_per_shard": 8, **data}
    return Work(DataConfig(sources=(source,), **settings), Counter(), (str(folder),))


def finish(job: Work) -> list[Any]:
    return [job.run(unit) for unit in listing.units(job.data, 0, ())]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


ROWS = {
    "good": chat_row(),
    filters.MALFORMED_ROW: {"messages": []},
    filters.NO_ANSWER: chat_row(answer=" "),
    filters.NO_QUESTION: chat_row("<image>"),
    filters.INCOMPLETE_REASONING: chat_row(steps=["one", " "]),
    filters.PLACEHOLDER_MISMATCH: chat_row("No placeholder?"),
    filters.RESERVED_TEXT: chat_row("<image>a<|im_end|>b"),
    filters.MISSING_IMAGE: chat_row(images=["pictures/none.png"]),
    filters.UNREADABLE_IMAGE: chat_row(images=["pictures/cut.png"]),
    filters.SMALL_IMAGE: chat_row(images=["pictures/tiny.png"]),
    filters.EXTREME_ASPECT: chat_row(images=["pictures/long.png"]),
    filters.TOO_LONG: chat_row("<image>" + "long " * 60),
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(ROWS)), max_size=30), st.integers(1, 12))
def test_every_row_is_kept_or_dropped_for_its_reason(tmp_path: Path, kinds: list[str], size: int) -> None:
    root = tmp_path / str(time.monotonic_ns())
    files = archives.chat(*[ROWS[kind] for kind in kinds])
    files |= {"pictures/cut.png": png(64, 64)[:500], "pictures/tiny.png": png(2, 2), "pictures/long.png": png(9, 999)}
    source = ChatJsonlSource(uri=as_folder(root / "chat", files))
    done = finish(work(source, root / "out", rows_per_shard=size))
    assert sum(unit.report.read for unit in done) == len(kinds)
    assert sum(unit.report.kept for unit in done) == kinds.count("good")
    for reason in set(ROWS) - {"good"}:
        assert sum(unit.report.dropped.get(reason, 0) for unit in done) == kinds.count(reason)
        for unit in done:
            assert len(unit.report.examples.get(reason, [])) == min(3, unit.report.dropped.get(reason, 0))


def test_the_chains_of_one_question_are_all_kept_where_their_steps_are_laid_out(tmp_path: Path) -> None:
    rows = [chat_row(steps=steps) for steps in (["Go left.", "Read."], ["Go right.", "Read."], ["Go left.", "Read."])]
    both = {"target": "steps_and_answer"}
    assert repeats(tmp_path / "steps", rows, **both) == [2]
    assert repeats(tmp_path / "answer", rows, target="answer") == [1, 2]


def test_a_unit_that_is_finished_is_not_done_again(tmp_path: Path) -> None:
    source = EasyVqaSource(uri=as_folder(tmp_path / "easy", archives.easy_vqa(20, 5)))
    job = work(source, tmp_path / "out")
    first = finish(job)
    before = digests(tmp_path / "out")
    finished = {"train-00000", "train-00001", "test-00000"}
    units = list(listing.units(job.data, 0, finished))
    assert [unit.name for unit in units if unit.rows] == ["train-00002"]
    assert [job.run(unit) for unit in units] == first
    (tmp_path / "out" / "train-00001.json").unlink()
    (tmp_path / "out" / "train-00002.json").write_text("{")
    with pytest.raises(StorageError, match=r"train-00002.json is damaged; remove it"):
        finish(job)
    (tmp_path / "out" / "train-00002.json").unlink()
    assert finish(job) == first and digests(tmp_path / "out") == before


def test_images_of_a_sequential_archive_travel_with_unfinished_units_only(tmp_path: Path) -> None:
    source = EasyVqaSource(uri=as_tar(tmp_path / "easy.tar", archives.easy_vqa(20, 5), "w"))
    job = work(source, tmp_path / "out")
    units = {unit.name: unit for unit in listing.units(job.data, 0, {"train-00000"})}
    assert units["train-00000"].payload is None and units["train-00000"].rows == ()
    assert units["train-00001"].payload == {
        f"easy/data/train/images/{i}.png": archives.easy_vqa(20)[f"easy/data/train/images/{i}.png"] for i in range(4, 8)
    }
    assert {unit.total for unit in units.values()} == {25}


CHILD = """
import sys
from pathlib import Path
from amvl_core.contracts.sources import EasyVqaSource
from tests.data_prep.test_units import finish, work
finish(work(EasyVqaSource(uri=sys.argv[1]), Path(sys.argv[2])))
"""


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "easy", archives.easy_vqa(400, 100))
    finish(work(EasyVqaSource(uri=uri), tmp_path / "whole"))
    chosen, killed = random.Random(1), 0
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, uri, str(tmp_path / "killed")])
        while not any((tmp_path / "killed").glob("*")) and child.poll() is None:
            time.sleep(0.002)
        time.sleep(chosen.random() * 0.15)
        killed += child.poll() is None
        child.kill()
        child.wait()
    assert killed > 0, "every child was done before it was killed"
    finish(work(EasyVqaSource(uri=uri), tmp_path / "killed"))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


FULL = """
import resource, sys
from pathlib import Path
from amvl_core.contracts.sources import EasyVqaSource
from amvl_core.contracts.errors import StorageError
from tests.data_prep.test_units import finish, work
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    finish(work(EasyVqaSource(uri=sys.argv[1]), Path(sys.argv[2])))
except StorageError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "easy", archives.easy_vqa(20, 5))
    done = subprocess.run(
        [sys.executable, "-c", FULL, uri, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cannot write") and "too large" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("question", "steps", "images", "regions", "expected"),
    [
        ("<image>Q?", ("Look.", "So."), 1, (), (0, 0)),
        ("<image><image>Q?", ("Look.", "So."), 2, (), (None, None)),
        ("<image><image>Q?", ("Look.", "So."), 2, (1, 0), (1, 0)),
        ("<image><image>Q?", ("Look.", "So."), 2, (1,), (None, None)),
        ("<image>Q?", ("First.", "<image><image>See.", "<image>And."), 4, (), (None, 1, 3)),
        ("Q?", ("First.", "Then."), 0, (), (None, None)),
    ],
)
def test_a_step_is_about_its_own_image_its_regions_or_the_only_one(
    question: str, steps: tuple[str, ...], images: int, regions: tuple[int, ...], expected: tuple[int | None, ...]
) -> None:
    boxes = tuple(Region("r", (0, 0, 1, 1), image) for image in regions)
    asked = Conversation("i", "s", "train", "t", (b"",) * images, question, steps, "a", boxes)
    assert step_images(asked) == expected
