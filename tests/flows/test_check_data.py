"""What `python -m flows check` says of data of one's own, good and bad."""

import json
import re
from pathlib import Path

import pytest

from amvl_core.contracts.errors import ConfigError
from flows.__main__ import main
from flows.check_data import check_data
from tests.data_prep.pictures import encode, grid, png, venn


def write(folder: Path, train: list[dict[str, object]], test: list[dict[str, object]]) -> str:
    (folder / "images").mkdir()
    (folder / "images" / "1.png").write_bytes(png())
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def row(answer: object = "a cup", image: str = "images/1.png") -> dict[str, object]:
    said = [("user", "<image>What is it?"), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in said], "images": [image]}


def test_good_data_get_their_lengths_and_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path, [row()] * 40, [row(42)] * 30)
    assert main(["check", data, "--param", "data.max_tokens=512"]) == 0
    said = capsys.readouterr().out
    assert f"{data} is read as chat_jsonl, rows: 40 train, 30 test" in said
    assert ", train: 40 of 40 rows kept" in said
    assert ", test: 30 of 30 rows kept" in said  # a number is an answer
    for text in ("prompt, tokens", "target, tokens", "image as it is, pixels", "(it is 512)", "is the default for"):
        assert text in said
    assert "a run would train on what is kept" in said


def test_bad_data_get_reasons_examples_and_remedies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [row("word " * 400)] * 30 + [row(image="images/1.PNG")] * 5 + [{"text": "a"}] * 2
    data = write(tmp_path, [row()] * 10 + bad, [row()] * 9)
    assert check_data([data], [], "demo") == 1
    said = capsys.readouterr().out
    assert "  30 dropped: too_long, such as " in said
    assert "images/1.png exists" in said
    assert "the row has neither messages nor conversations" in said
    assert "warning: " in said and "most as too_long (30): data.max_tokens=" in said
    assert "a run would stop before training: 9 test rows are left" in said
    assert check_data([data], ["data.accept_losses=true"], "demo") == 0


def test_pictures_that_look_alike_or_show_nothing_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [venn("12", "7", "30"), venn("12", "8", "30"), grid(5, 5), grid(10, 5)]
    rows = [row(image=f"images/like{number}.png") for number in range(len(pictures))]
    data = write(tmp_path, rows, [row(image="images/like0.png")] * 30)
    for number, picture in enumerate(pictures):
        (tmp_path / "images" / f"like{number}.png").write_bytes(encode(picture))
    assert check_data([data], ["data.max_pixels=172800", "data.max_tokens=1024"], "demo") == 0
    said = capsys.readouterr().out
    assert ", train: 4 of 4 rows kept" in said and "dropped:" not in said
    assert "duplicates, and training samples that give away a test sample, are not looked for here" in said


def test_a_length_that_cuts_most_answers_is_refused_here_too(tmp_path: Path) -> None:
    data = write(tmp_path, [row()] * 40, [row("two words")] * 30)
    with pytest.raises(ConfigError, match="right answers are cut"):
        check_data([data], ["evaluation.max_new_tokens=1"], "demo")


@pytest.mark.parametrize(
    ("train", "test", "given", "preset", "said"),
    [
        (
            [row()] * 3,
            [row()] * 30,
            [],
            "lvr-demo",
            r"stages\.\w+ \(lvr\) .* regions .* none of the 3 training",
        ),
        ([row(" ")] * 3, [row()] * 30, ["data.accept_losses=true"], "demo", "no training row is kept"),
        ([row()] * 3, [row(" ")] * 30, ["data.accept_losses=true"], "demo", "no test row is kept"),
        ([], [row()] * 30, [], "demo", "no training row is kept"),
    ],
)
def test_what_stops_every_run_stops_this(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    train: list[dict[str, object]],
    test: list[dict[str, object]],
    given: list[str],
    preset: str,
    said: str,
) -> None:
    assert check_data([write(tmp_path, train, test)], given, preset) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "would stop before training" in line)
    assert re.search(said, line), line


def test_the_budget_of_pixels_that_is_proposed_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos[v2]"
    folder.mkdir()
    data = write(folder, [row()] * 3, [row()] * 30)
    given = ["data.min_pixels=50000", "data.max_pixels=60000"]
    assert check_data([data], given, "demo") == 0
    said = capsys.readouterr().out
    assert f"{data} is read as chat_jsonl" in said
    assert "data.max_pixels=50000 keeps 0% of the images at their size" in said
    assert "it is 60000, 0% are scaled down, 100% are scaled up to data.min_pixels (50000)" in said
    assert check_data([data], [given[0], "data.max_pixels=50000"], "demo") == 0
