"""A stage is finished, or it is made."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts.config import override
from amvl_core.contracts.records import Place, ReportRecord, save_record
from amvl_core.methods.amvl.presets import demo
from flows import stage
from flows.stage import all_finished_or, finished_or, place


@pytest.fixture()
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(stage, "get_run_logger", lambda: logging.getLogger("run"))
    caplog.set_level(logging.INFO, logger="run")
    return caplog


class Pages:
    """Records below one folder, and what was made and found."""

    def __init__(self, folder: Path) -> None:
        self.config = override(demo(), {"storage": str(folder)})
        self.made: list[str] = []
        self.found: list[str] = []

    def make(self, missing: list[Place]) -> Iterator[ReportRecord]:
        for number, where in enumerate(missing):
            record = ReportRecord(**where._asdict(), run_id=f"run {number}")
            save_record(record)
            yield record
        self.made.append(" ".join(where.fingerprint for where in missing))

    def ask(self, names: str, **how: Any) -> str:
        places = [place(self.config, "report", name) for name in names]
        found = lambda record: self.found.append(record.fingerprint)  # noqa: E731
        records = all_finished_or("page", places, ReportRecord, self.make, found, **how)
        return "".join(record.fingerprint for record in records)


def test_what_is_missing_is_made_at_once_and_what_is_there_is_found(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    pages = Pages(tmp_path)
    assert pages.ask("bd") == "bd"
    assert (pages.made, pages.found, said.messages) == (["b d"], [], [])
    assert pages.ask("abcd") == "abcd"
    assert (pages.made, pages.found) == (["b d", "a c"], ["b", "d"])
    assert said.messages == ["page: reused b", "page: reused d"]
    assert pages.ask("ca") == "ca"
    assert pages.made == ["b d", "a c"]


def test_one_that_is_not_valid_is_made_again_and_the_line_may_be_its_own(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    pages = Pages(tmp_path)
    assert pages.ask("ab") == "ab"
    assert pages.ask("ab", valid=lambda record: record.run_id == "run 0") == "ab"
    assert (pages.made, pages.found) == (["a b", "b"], ["a"])
    said.clear()
    pages.ask("b", about=lambda record: f"page of {record.run_id}")
    assert said.messages == ["page of run 0"]


def test_a_stage_that_fails_is_asked_again(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    pages = Pages(tmp_path)
    where = place(pages.config, "report", "a")

    def fail() -> ReportRecord:
        raise LookupError("half")

    for _ in range(2):
        with pytest.raises(LookupError, match="half"):
            finished_or("page", where, ReportRecord, fail)
    assert finished_or("page", where, ReportRecord, lambda: next(pages.make([where]))).run_id == "run 0"
    assert finished_or("page", where, ReportRecord, fail).run_id == "run 0"
