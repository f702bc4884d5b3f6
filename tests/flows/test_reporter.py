import logging

import pytest

from amvl_core.contracts.progress import Advice, Progress
from amvl_core.methods.amvl.presets import demo
from flows.reporter import Reporter
from infra.tracking import Tracker


@pytest.fixture
def reporter(caplog: pytest.LogCaptureFixture) -> tuple[Reporter, Tracker, list[tuple[float, str]]]:
    """A tracker that no run was opened for keeps what it is given."""
    caplog.set_level(logging.INFO)
    tracker, pages = Tracker(demo()), []
    return Reporter(tracker, logging.getLogger("stage"), lambda *shown: pages.append(shown)), tracker, pages


def event(done: int, **fields: object) -> Progress:
    return Progress("amvl", done, 100, "steps", 60.0, columns={"loss": ("loss",)}, **fields)  # type: ignore[arg-type]


def test_every_metric_is_tracked_and_the_line_is_shown_now_and_then(reporter, caplog) -> None:
    report, tracker, pages = reporter
    for done in range(1, 51):
        report(event(done, metrics={"loss": 1.0}))
    assert tracker.history["amvl/loss"] == [(done, 1.0) for done in range(1, 51)]
    assert caplog.messages == ["amvl:   1/100  loss 1.000  1:00 left"]
    assert pages == [(1.0, "`amvl:   1/100  loss 1.000  1:00 left`")]
    report(event(100, metrics={"loss": 0.5}))
    assert caplog.messages[1:] == ["amvl: 100/100  loss 0.500  1:00 left"]


def test_a_warning_goes_to_log_page_and_tracker_at_once(reporter, caplog) -> None:
    report, tracker, pages = reporter
    report(event(1, metrics={"loss": 1.0}))
    report(event(2, warnings=(Advice("kl_leak", "the KL grows"),)))
    report(event(3, metrics={"loss": 1.0}))
    assert [(r.levelname, r.message) for r in caplog.records][1:] == [("WARNING", "amvl: the KL grows")]
    assert pages[-1][1].endswith("- step 2: the KL grows")
    assert tracker.history["amvl/warning_kl_leak"] == [(2, 1.0)]
    assert [call[:2] for call in tracker._calls] == [("tag amvl.warning.amvl.kl_leak", "set_tag")]


def test_the_samples_in_question_are_all_in_a_file_of_the_run(reporter, caplog) -> None:
    report, tracker, _ = reporter
    report(event(7, warnings=(Advice("nonfinite", "step 7: a and 1 more", ("a", "b")),)))
    [(*_, arguments)] = [call for call in tracker._calls if call[1] == "log_text"]
    assert arguments == {"text": "a\nb\n", "artifact_file": "warnings/amvl-7-nonfinite.txt"}
