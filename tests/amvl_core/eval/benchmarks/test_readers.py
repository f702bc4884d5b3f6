"""From the published files to questions: prompts are frozen here, word for word, and traps of the formats are met."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation
from amvl_core.contracts.sources import MICROWORLD_TASKS, MicroworldSource
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Question, SkippedQuestion, lettered
from amvl_core.eval.benchmarks.mmstar import options_in
from amvl_core.eval.benchmarks.prepared import question
from data_prep import microworld
from data_prep.sources import detect
from tests.amvl_core.eval.benchmarks import published
from tests.data_prep import archives
from tests.data_prep.archives import as_folder
from tests.data_prep.sources.reading import converted
from tests.shards import sample_of


def questions(name: str, uri: Path) -> list[Question]:
    found = list(BENCHMARKS[name].read(str(uri)))
    assert all(isinstance(item, Question) for item in found), found
    return [item for item in found if isinstance(item, Question)]


def drops(name: str, uri: Path) -> list[tuple[str, str]]:
    return [(item.place, item.reason) for item in BENCHMARKS[name].read(str(uri)) if isinstance(item, SkippedQuestion)]


def prepared_prompts(samples: Iterable[Conversation]) -> dict[str, str]:
    """The last prompt of every task of the test split, laid out and read back as evaluation does."""
    return {
        asked.task: asked.prompt
        for sample in samples
        if sample.split == "test"
        for asked in [
            question(
                sample_of("i", sample.question, sample.answer, sample.images, source=sample.source, task=sample.task)
            )
        ]
    }


ASKED = {
    "hrbench_4k": "What colour is sign 0?",
    "blink": "Which fits?",
    "visual_puzzles": "Which comes next?",
    "mmvp": "Is the door open?",
    "cv_bench": "How many?",
    "mmstar": "Which is shown?",
    "vstar": published.VSTAR_TEXT.partition("\n(A)")[0],
}


@pytest.mark.parametrize("name", ASKED)
def test_the_question_alone_is_kept_without_options_and_instruction(tmp_path: Path, name: str) -> None:
    if name == "hrbench_4k":
        published.parquet(tmp_path / "hr_bench_4k.parquet", published.hrbench_rows())
    else:
        getattr(published, name)(tmp_path)
    first = questions(name, tmp_path)[0]
    assert first.asked == ASKED[name] != first.prompt


def test_vstar(tmp_path: Path) -> None:
    published.vstar(tmp_path)
    first, second = questions("vstar", tmp_path)
    assert first.prompt == published.VSTAR_TEXT
    assert first.options == {"A": "rubber", "B": "cotton", "C": "kevlar", "D": "leather"}
    assert (first.item_id, first.task, first.answer) == ("vstar/direct_attributes/0", "direct_attributes", "A")
    assert (second.item_id, second.options) == ("vstar/relative_position/0", {"A": "left", "B": "right"})
    assert first.images == (published.picture(),)


@pytest.mark.parametrize("kind", ["parquet", "tsv"])
def test_hrbench(tmp_path: Path, kind: str) -> None:
    rows = published.hrbench_rows()
    if kind == "parquet":
        published.parquet(tmp_path / "hr_bench_4k.parquet", rows)
    else:
        published.tsv(tmp_path / "hr_bench_4k.tsv", rows)
    found = questions("hrbench_4k", tmp_path)
    assert found[0].prompt == (
        "What colour is sign 0?\nA. red\nB. blue\nC. 2\nD. green\nAnswer the option letter directly."
    )
    assert {item.options[item.answer] for item in found} == {"red"}
    assert [item.part for item in found] == ["0", "0", "1", "1", "2", "2", "3", "3"]
    assert len({item.group for item in found}) == 2
    assert len({item.item_id for item in found}) == 8
    assert {item.group for item in found if item.task == "single"} == {found[0].group}


def test_hrbench_in_the_published_folder_with_both_resolutions(tmp_path: Path) -> None:
    for resolution, shade in (("4k", 40), ("8k", 80)):
        rows = published.hrbench_rows(published.base64_picture(shade))
        published.parquet(tmp_path / f"hr_bench_{resolution}.parquet", rows)
    for resolution, shade in (("4k", 40), ("8k", 80)):
        found = questions(f"hrbench_{resolution}", tmp_path)
        assert [item.images for item in found] == [(published.picture(shade),)] * 8
        assert found[0].item_id == f"hrbench_{resolution}/0"


def test_hrbench_refuses_two_files_of_one_resolution_and_files_of_none(tmp_path: Path) -> None:
    published.parquet(tmp_path / "hr_bench_4k.parquet", published.hrbench_rows())
    published.tsv(tmp_path / "HRBench4K.tsv", published.hrbench_rows())
    with pytest.raises(DataError, match=r"several data sets \(HRBench4K\.tsv, hr_bench_4k\.parquet\); give the P"):
        BENCHMARKS["hrbench_4k"].check(str(tmp_path))
    assert len(questions("hrbench_4k", tmp_path / "HRBench4K.tsv")) == 8
    with pytest.raises(DataError, match="none of the files looked for; give the Parquet or TSV file with 8k in its"):
        BENCHMARKS["hrbench_8k"].check(str(tmp_path / "hr_bench_4k.parquet"))


def test_hrbench_tsv_cells_that_name_another_row(tmp_path: Path) -> None:
    rows = published.hrbench_rows()
    # Row 0 shows what row 4 holds, which stands after it; row 5 names a row that is not there.
    rows[0]["image"], rows[1]["image"] = str(rows[2]["index"]), "99"
    published.tsv(tmp_path / "hr_bench_4k.tsv", rows)
    found = list(BENCHMARKS["hrbench_4k"].read(str(tmp_path)))
    assert isinstance(found[0], Question)
    assert found[0].images == (published.picture(0),)
    assert drops("hrbench_4k", tmp_path) == [("hr_bench_4k.tsv/1", "missing_image")]


def test_hrbench_drops_nan_options_and_reads_several_images(tmp_path: Path) -> None:
    rows = published.hrbench_rows()[:1]
    rows[0] |= {"D": None, "image": str([published.base64_picture(1), published.base64_picture(2)])}
    published.parquet(tmp_path / "hr_bench_4k.parquet", rows)
    (only,) = questions("hrbench_4k", tmp_path)
    assert list(only.options) == ["A", "B", "C"]
    assert only.images == (published.picture(1), published.picture(2))


def test_blink_reads_the_validation_split_and_leaves_null_images_out(tmp_path: Path) -> None:
    published.blink(tmp_path)
    first, second = questions("blink", tmp_path)
    assert first.prompt == (
        "Note: You only need to respond with A, B without providing any additional information.\n"
        "Which fits? Select from the following choices.\n(A) the second image\n(B) the third image"
    )
    assert (first.task, first.answer, second.answer) == ("Jigsaw", "A", "B")
    assert first.images == tuple(published.picture(i) for i in (1, 2, 3))


def test_a_folder_that_is_a_link_is_read_and_hidden_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    published.blink(tmp_path / "there")
    (task,) = (tmp_path / "there").iterdir()
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / task.name).symlink_to(task)
    hidden = tmp_path / "given" / ".cache"
    hidden.mkdir()
    (hidden / "val-1.parquet").write_bytes(b"unfinished")
    assert questions("blink", tmp_path / "given") == questions("blink", tmp_path / "there")


@pytest.mark.parametrize("name", ["._test_questions.jsonl", "__MACOSX/test_questions.jsonl"])
def test_what_a_system_leaves_beside_the_files_is_not_read(tmp_path: Path, name: str) -> None:
    published.vstar(tmp_path)
    asked = questions("vstar", tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\x16\7\xff\xfe")
    assert questions("vstar", tmp_path) == asked


def test_visual_puzzles(tmp_path: Path) -> None:
    published.visual_puzzles(tmp_path)
    first, second = questions("visual_puzzles", tmp_path)
    instruction = "Answer the question with the option's letter from the given choices directly."
    assert first.prompt == f"Question: Which comes next?\nOptions:\n(A) w\n(B) x\n(C) y\n(D) z\n{instruction}"
    assert second.prompt == (
        f"Question: Which comes next?\nOptions: Choose from (A) (B) (C) (D) in the image.\n{instruction}"
    )
    assert (first.task, list(second.options)) == ("inductive", ["A", "B", "C", "D"])


def test_mmvp_pairs_and_corrected_answers(tmp_path: Path) -> None:
    published.mmvp(tmp_path)
    found = questions("mmvp", tmp_path)
    assert found[0].prompt == (
        "Is the door open?\nA. Open\nB. Closed (partly)\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [item.group for item in found[:4]] == ["pair 1", "pair 1", "pair 2", "pair 2"]
    assert [found[i].answer for i in (0, 1, 98, 99)] == ["A", "B", "B", "A"]


def test_cv_bench(tmp_path: Path) -> None:
    published.cv_bench(tmp_path)
    found = questions("cv_bench", tmp_path)
    assert found[0].prompt == (
        "Note: You only need to respond with A, B without providing any additional information.\n\n"
        "How many?\n(A) 2\n(B) 3"
    )
    assert [(item.item_id, item.task, item.part) for item in found] == [
        ("cv_bench/2D/0", "Count", "ADE20K"),
        ("cv_bench/2D/1", "Relation", "COCO"),
        ("cv_bench/3D/0", "Depth", "Omni3D"),
    ]


def test_mmstar(tmp_path: Path) -> None:
    published.mmstar(tmp_path)
    first, second = questions("mmstar", tmp_path)
    assert first.prompt == (
        "Which is shown?\nOptions: A: a cat, not a dog, B: a dog, C: a cow, D: none\n"
        "Answer with the option's letter from the given choices directly"
    )
    assert first.options == {"A": "a cat, not a dog", "B": "a dog", "C": "a cow", "D": "none"}
    assert second.options == dict.fromkeys("ABCD", "")


def test_mmstar_options_that_cannot_be_told_apart() -> None:
    assert options_in("x Options: A: 1:2, B: 3") == {"A": "1:2", "B": "3"}
    assert options_in("x Options: B: 1, A: 2") == dict.fromkeys("ABCD", "")


def test_prompts_of_the_prepared_sources(tmp_path: Path) -> None:
    """What preparation leaves of a source's question is what a model is asked."""
    assert prepared_prompts(converted(detect(as_folder(tmp_path / "easy", archives.easy_vqa(0, 3))))) == {
        "easy_vqa/shape": "<image>what is the blue shape?",
        "easy_vqa/colour": "<image>what color is it?",
        "easy_vqa/yes/no": "<image>is there a circle?",
    }
    assert prepared_prompts(converted(detect(as_folder(tmp_path / "nlvr", archives.nlvr())))) == {
        "nlvr/nlvr": "<image>There is a tower.\nIs this true or false?"
    }
    assert prepared_prompts(converted(detect(as_folder(tmp_path / "maze", archives.maze())))) == {
        "vsp_maze/hole": "<image>Is there a hole in row 1, column 3?",
        "vsp_maze/safe path": "<image>The player moves left, right, up. Is the path safe from every hole?",
    }


def test_prompts_of_microworld() -> None:
    assert prepared_prompts(microworld.generate(MicroworldSource(test=len(MICROWORLD_TASKS)), "test")) == {
        "microworld/colour": "<image>What colour is the square?",
        "microworld/shape": "<image>Which shape is blue?",
        "microworld/count": "<image>How many blue shapes are there?",
        "microworld/compare": "<image>Which colour is there more of?",
        "microworld/relation": "<image>On which side of the star is the circle?",
        "microworld/odd_one_out": "<image>Which one is different?",
        "microworld/jigsaw": "<image>Does the top or bottom piece fit?",
        "microworld/maze": "<image>Does the path of the ball lead to red or blue?",
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": "direct_attributes/none.png"}, "missing_image"),
        ({"image": ""}, "missing_image"),
        ({"image": "."}, "missing_image"),
        ({"image": "direct_attributes"}, "missing_image"),
        ({"image": "\ud800.png"}, "missing_image"),
        ({"image": "a::b.png"}, "missing_image"),
        ({"image": "\0"}, "missing_image"),
        ({"image": 300 * "a"}, "missing_image"),
        ({"category": ["a"]}, "malformed_row"),
        ({"category": 3}, "malformed_row"),
        ({"category": "\ud800"}, "malformed_row"),
        ({"question_id": "\ud800"}, "malformed_row"),
        ({"text": published.VSTAR_TEXT + "\ud800"}, "malformed_row"),
        ({"label": "E"}, "answer_not_among_options"),
        ({"label": None}, "answer_not_among_options"),
        ({"text": None}, "malformed_row"),
        ({"category": "relative_position", "text": published.VSTAR_TEXT}, "duplicate_id"),
    ],
)
def test_a_bad_row_is_a_drop(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    published.vstar(tmp_path, **changes)
    # The row that repeats an item is the one that comes later.
    row = 1 if reason == "duplicate_id" else 0
    assert drops("vstar", tmp_path) == [(f"test_questions.jsonl/{row}", reason)]


def test_an_image_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(published.picture())
    folder = tmp_path / "vstar"
    folder.mkdir()
    for image in ("../private.png", "direct_attributes/../../private.png", str(tmp_path / "private.png")):
        shutil.rmtree(folder / "direct_attributes", ignore_errors=True)
        published.vstar(folder, image=image)
        dropped = [item for item in BENCHMARKS["vstar"].read(str(folder)) if isinstance(item, SkippedQuestion)]
        said = f"{image!r} leads outside of the folder of test_questions.jsonl"
        assert [(item.reason, item.detail) for item in dropped] == [("missing_image", said)]


def test_a_question_that_is_null_is_a_drop_and_not_the_word_none(tmp_path: Path) -> None:
    rows = published.hrbench_rows()
    rows[3] |= {"question": None}
    published.parquet(tmp_path / "hr_bench_4k.parquet", rows)
    assert drops("hrbench_4k", tmp_path) == [("hr_bench_4k.parquet/3", "malformed_row")]
    folder = tmp_path / "cv_bench"
    folder.mkdir()
    published.cv_bench(folder)
    table = pq.read_table(folder / "test_3d.parquet").to_pylist()
    published.parquet(folder / "test_3d.parquet", [{**row, "prompt": None} for row in table])
    assert drops("cv_bench", folder) == [("test_3d.parquet/0", "malformed_row")]


def test_what_is_said_of_a_bad_row_names_its_field_and_can_be_stored(tmp_path: Path) -> None:
    published.vstar(tmp_path, category=["a"], image="direct_attributes/sa_1.png")
    rows = [json.loads(line) for line in (tmp_path / "test_questions.jsonl").read_text().splitlines()]
    rows[1] |= {"image": "\ud800.png"}
    (tmp_path / "test_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    details = [item.detail for item in BENCHMARKS["vstar"].read(str(tmp_path)) if isinstance(item, SkippedQuestion)]
    assert details == ["task is no text: ['a']", "\\ud800.png"]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (f"[{published.base64_picture()}]", "unreadable_image"),
        ("[" * 300, "unreadable_image"),
        ("[" + "-" * 100_000 + "1]", "unreadable_image"),
        ("[]" + " " * 100, "missing_image"),
        ("[None, '" + "A" * 100 + "']", "missing_image"),
    ],
    ids=["unquoted", "open", "deep", "empty", "null"],
)
def test_an_image_cell_that_is_no_list_of_images_is_a_drop(tmp_path: Path, cell: str, reason: str) -> None:
    rows = published.hrbench_rows()
    rows[1]["image"] = cell
    published.tsv(tmp_path / "hr_bench_4k.tsv", rows)
    assert drops("hrbench_4k", tmp_path) == [("hr_bench_4k.tsv/1", reason)]


def test_a_question_without_an_image_is_a_drop(tmp_path: Path) -> None:
    published.blink(tmp_path, image_1=None, image_2=None, image_3=None)
    assert [reason for _, reason in drops("blink", tmp_path)] == ["missing_image"]


@pytest.mark.parametrize("kept", [20, 4000])
def test_an_image_that_is_cut_off_is_a_drop(tmp_path: Path, kept: int) -> None:
    published.vstar(tmp_path)
    # With 4,000 of some 12,000 bytes the header is whole, and only decoding finds out.
    noise = Image.effect_noise((128, 96), 90)
    noise.save(tmp_path / "direct_attributes" / "sa_1.png")
    whole = (tmp_path / "direct_attributes" / "sa_1.png").read_bytes()
    (tmp_path / "direct_attributes" / "sa_1.png").write_bytes(whole[:kept])
    assert len(whole) > 8000
    assert [reason for _, reason in drops("vstar", tmp_path)] == ["unreadable_image"] * 2


def test_options_that_are_numbers_null_or_nan() -> None:
    assert lettered(["x ", float("nan"), 2, None]) == {"A": "x", "C": "2"}


def test_a_line_that_is_no_json_is_a_drop(tmp_path: Path) -> None:
    published.vstar(tmp_path)
    with (tmp_path / "test_questions.jsonl").open("a") as file:
        file.write('{"image": \n[1]\n' + "[" * 100_000 + "\n" + '{"image": ' + "9" * 5000 + "}\n")
    assert [place for place, _ in drops("vstar", tmp_path)] == [f"test_questions.jsonl/{row}" for row in range(2, 6)]


def test_a_folder_without_the_files_says_which_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the files looked for; give the folder with test_questions\.jsonl"):
        list(BENCHMARKS["vstar"].read(str(tmp_path)))


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mmstar.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="damaged or incomplete"):
        list(BENCHMARKS["mmstar"].read(str(tmp_path)))
