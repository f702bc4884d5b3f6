"""Losses that a run tells, warns of, and stops at."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from amvl_core.contracts.config import DataConfig, override
from amvl_core.contracts.errors import ConfigError, DataError
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import DatasetRecord, SourceReport
from amvl_core.contracts.sources import ChatJsonlSource, MicroworldSource
from amvl_core.methods.amvl.presets import demo
from data_prep import filters, intake, listing
from data_prep.shards import ShardRow
from data_prep.units import Work
from tests.data_prep.pictures import png
from tests.data_prep.test_units import Counter
from tests.shards import row, write


def report(read: int, split: str = "train", source: str = "own", **dropped: int) -> SourceReport:
    kept = read - sum(dropped.values())
    fields = {"source": source, "split": split, "read": read, "kept": kept, "dropped": dropped, "examples": {}}
    return SourceReport.model_validate(fields)


def dataset(*reports: SourceReport) -> DatasetRecord:
    kept = sum(one.kept for one in reports)
    return DatasetRecord(
        uri="u", fingerprint="d", schema_version=1, shards=[], kept=kept, dropped={}, reports=list(reports)
    )


def prepared(folder: Path, max_tokens: int) -> list[SourceReport]:
    """40 rows each: 10 good ones, 10 of 120 words, 12 without their image, 8 without messages; 40 good ones test."""

    def row(number: int, answer: str, image: str = "images/1.png") -> dict[str, object]:
        said = [("user", f"<image>What is it, number {number}?"), ("assistant", answer)]
        return {"messages": [{"role": role, "content": text} for role, text in said], "images": [image]}

    rows = [row(i, "a cup") for i in range(10)] + [row(i, "word " * 120) for i in range(10)]
    rows += [row(i, "a cup", "images/1.PNG") for i in range(12)] + [{"text": "a"}] * 8
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.png").write_bytes(png())
    tests = [row(i, "a cup") for i in range(40)]
    for name, given in (("train", rows), ("test", tests)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, given)))
    source = ChatJsonlSource(uri=str(folder))
    data = DataConfig(sources=(source,), min_pixels=64, max_pixels=10**5, max_tokens=max_tokens)
    work = Work(data, Counter(), (str(folder / "out"),))
    return [work.run(unit).report for unit in listing.units(data, 0, ())]


def test_a_method_whose_latents_have_nothing_to_train_on_is_refused_before_training(tmp_path: Path) -> None:
    config = PRESETS["monet-demo"]()
    plain = [row(number) for number in range(3)]
    message = "stages.monet_1 .monet. trains its latents on an image that a step shows, or a region, and none of the 3"
    with pytest.raises(DataError, match=message):
        intake.check_trainable(config, write(str(tmp_path / "plain"), [plain]))
    shown = replace(plain[2].sample, steps=("<image>",), step_images=(1,), images=plain[2].sample.images * 2)
    some = [*plain[:2], ShardRow(shown, [(32, 32)] * 2, 40)]
    intake.check_trainable(config, write(str(tmp_path / "some"), [some]))
    intake.check_trainable(demo(), write(str(tmp_path / "other"), [plain]))


def test_what_is_lost_of_ones_own_rows_is_told_with_an_example_and_stops_the_run(tmp_path: Path) -> None:
    train, test = prepared(tmp_path / "own", max_tokens=50)
    assert train.dropped == {filters.MISSING_IMAGE: 12, filters.TOO_LONG: 10, filters.MALFORMED_ROW: 8}
    assert train.too_long == {128: 10}
    assert train.target_tokens == {3: 10}
    said = "\n".join(intake.lines(dataset(train, test)))
    assert "chat, train: 10 of 40 rows kept\n  12 dropped: missing_image, such as chat/train/line-0000021: " in said
    assert "images/1.png exists" in said
    assert "  10 dropped: too_long, such as chat/train/line-0000011: 12" in said
    assert "chat, test: 40 of 40 rows kept" in said
    assert said.endswith("u/report.html")
    (warning,) = intake.warnings([train, test])
    assert "30 of 40 rows are dropped (75%), most as missing_image (12): put the images where" in warning
    with pytest.raises(DataError, match=r"stops before training:\n.*30 of 40 rows.*\nmend .* data.accept_losses=true"):
        intake.check(dataset(train, test))


def test_the_remedy_of_long_rows_is_the_budget_that_keeps_most() -> None:
    long = {"too_long": {512: 40, 576: 5, 4096: 1}, "target_tokens": {9: 54}}
    found = report(100, too_long=46).model_copy(update=long)
    assert intake.fitting_tokens(found) == (576, 0.99)
    (warning,) = intake.warnings([found])
    assert warning.endswith("46 of 100 rows are dropped (46%), most as too_long (46): data.max_tokens=576 keeps 99%")
    assert intake.fitting_tokens(report(3)) is None


@pytest.mark.parametrize(
    ("reports", "warned", "refused"),
    [
        ([report(100, missing_image=10), report(30, "test")], 0, 0),
        ([report(100, missing_image=11), report(30, "test")], 1, 0),
        ([report(100, missing_image=50), report(30, "test")], 1, 0),
        ([report(100, missing_image=51), report(30, "test")], 1, 1),
        ([report(100), report(29, "test")], 0, 1),
        ([report(100), report(62, "test", missing_image=33)], 1, 2),
        # What was left out on purpose is no loss, but a split that is no split is told of.
        ([report(100, duplicate=60, contaminated=10), report(30, "test")], 0, 0),
        ([report(100, contaminated=80), report(30, "test")], 1, 0),
        ([report(100, contaminated=20, missing_image=20), report(30, "test")], 2, 0),
        # Of several sources each must be sound: a large one must not hide what a small one lost.
        ([report(10, missing_image=6), report(10_000), report(30, "test")], 1, 1),
    ],
)
def test_the_limits(reports: list[SourceReport], warned: int, refused: int) -> None:
    assert len(intake.warnings(reports)) == warned
    assert len(list(intake.refusals(reports))) == refused


def test_rows_that_show_test_images_are_told_of_with_what_to_do() -> None:
    found = "image 1 is image 1 of the test sample own/test/9"
    example = {"contaminated": [{"sample_id": "own/train/3", "detail": found}]}
    fields = report(200, contaminated=90, duplicate=10).model_dump() | {"examples": example}
    (warning,) = intake.warnings([SourceReport.model_validate(fields), report(30, "test")])
    assert warning == (
        "own, train: 90 of 200 rows are dropped (45%) as contaminated: they show or ask what a test split or a "
        f"benchmark does, such as own/train/3: {found}; split the data by image, or set data.drop_contaminated=false "
        "to train on them"
    )


def test_a_source_without_a_training_row_is_reported_and_warned_of(tmp_path: Path) -> None:
    full, empty = (ChatJsonlSource(name=name, uri=str(tmp_path)) for name in ("full", "empty"))
    tests = ChatJsonlSource(name="tests", uri=str(tmp_path), train_limit=0)
    sources = (full, empty, tests, MicroworldSource(train=0))
    reports = [report(9, source="full"), report(30, "test", source="tests")]
    found = listing.complete(DataConfig(sources=sources), reports)
    assert found[:2] == reports and [(one.source, one.split, one.read) for one in found[2:]] == [("empty", "train", 0)]
    assert intake.warnings(found) == [
        "empty, train: no row was read; write rows into it, or set train_limit=0 where it is only to test"
    ]
    assert "empty, train: 0 of 0 rows kept" in intake.report_lines(found)


def test_a_length_that_cuts_right_answers_is_warned_of_and_refused_where_it_cuts_most() -> None:
    tested = report(100, "test").model_copy(update={"target_tokens": {119: 40, 200: 30, 253: 30}})
    data = dataset(report(9).model_copy(update={"target_tokens": {300: 9}}), tested)
    assert intake.cut_targets(demo(), data) == []
    given = [override(demo(), {"evaluation": {"max_new_tokens": most}}) for most in (64, 119, 200, 253)]
    for config, share in zip(given[:2], (100, 60), strict=True):
        with pytest.raises(ConfigError, match=rf"less than {share} of the 100 test targets take \(the longest 253\)"):
            intake.cut_targets(config, data)
    (warning,) = intake.cut_targets(given[2], data)
    assert "(200) is less than 30 of the 100 test targets" in warning
    assert warning.endswith("leave it out, it is 375 then")  # 1.25 x 300
    assert intake.cut_targets(given[3], data) == []
