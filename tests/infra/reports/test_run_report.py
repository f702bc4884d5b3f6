"""A page of records made by hand: what it shows, that it needs nothing else, and that no text of a model is markup."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    ModelRecord,
    SampledScore,
    SamplingRecord,
    Shard,
    VariantScore,
)
from flows import pages, report, stage
from infra.mlflow_client import client
from infra.reports import run_report
from infra.reports.run_result import RunResult
from infra.tracking import Tracker
from tests.data_prep.pictures import png
from tests.shards import sample_of, table

NASTY = "<script>alert('a & b')</script><img src=http://evil.example/x>"
TASKS = ("colour", "count", "odd_one_out")
LINKS = {name: f"http://127.0.0.1:5000/#/{name}" for name in ("run", "data", "model")}


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture()
def asked(tmp_path: Path, dataset: DatasetRecord) -> DatasetRecord:
    """A dataset with 18 test questions; one has two images, one none."""
    images = [[] if i == 1 else [png(80, 60, seed=i)] * (2 if i == 0 else 1) for i in range(18)]
    samples = [
        sample_of(f"s{i:02d}", f"<image>Which {i}? {NASTY}", "red", images[i], source="microworld", task=TASKS[i % 3])
        for i in range(18)
    ]
    pq.write_table(table(samples), tmp_path / "test.parquet")
    shard = Shard(file="test.parquet", split="test", rows=18, sha256="")
    return dataset.model_copy(update={"uri": str(tmp_path), "shards": [*dataset.shards, shard]})


@pytest.fixture()
def evaluated(tmp_path: Path, evaluation: Callable[..., EvalRecord]) -> Callable[[str, set[int]], EvalRecord]:
    """An evaluation of the 18 questions, those in `right` answered rightly."""

    def make(stage: str, right: set[int]) -> EvalRecord:
        rows = [
            {
                "sample_id": f"s{i:02d}",
                "group": "",
                "part": "",
                "task": f"microworld/{TASKS[i % 3]}",
                "prompt": f"<image>Which {i}? {NASTY}",
                "answer": "red",
                "prediction": "red" if i in right else NASTY,
                "raw_output": "It is there.\n" + "and more " * 60 + ("red" if i in right else NASTY),
                "score": float(i in right),
            }
            for i in range(18)
        ]
        (tmp_path / stage).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / stage / "predictions.parquet")
        return evaluation(stage, len(right) // 2).model_copy(update={"uri": str(tmp_path / stage)})

    return make


def model_record() -> ModelRecord:
    reason = "not worse than the former champion, version 1: +1.0 points (-3.0 to +5.0)"
    return ModelRecord(
        uri="u", fingerprint="m1", name="amvl", version=2, alias="champion", reason=reason, run_id="r", tracking_uri="t"
    )


def variant(name: str, accuracy: float, p: float) -> VariantScore:
    around = {"accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03}
    change = {"difference": accuracy - 0.6, "difference_low": accuracy - 0.62, "difference_high": accuracy - 0.58}
    likelihood = {"log_likelihood": -1.2, "log_likelihood_low": -1.3, "log_likelihood_high": -1.1}
    changes = {f"log_likelihood_difference{end}": v for end, v in (("", -0.25), ("_low", -0.5), ("_high", -0.125))}
    return VariantScore(
        variant=name,
        n=800,
        p_value=p,
        log_likelihood_p=0.375,
        test="McNemar exact",
        **around,
        **change,
        **likelihood,
        **changes,
    )


def faithfulness_record(benchmark: str = TEST_SPLIT) -> FaithfulnessRecord:
    names = ("unchanged", "zero", "noise", "swap", "shuffle", "no slot 1", "posterior", "tau = 1", "no block", NASTY)
    rows = [variant(name, 0.6 - 0.01 * i, 1.0 if i < 3 else 0.01) for i, name in enumerate(names)]
    return FaithfulnessRecord(
        uri="u",
        fingerprint=f"f-{benchmark}",
        benchmark=benchmark,
        checkpoint="c",
        stage="amvl",
        dataset="d",
        rows=rows,
        verdict=f"They matter. {NASTY}",
    )


def analysis_record(folder: Path) -> AnalysisRecord:
    (folder / "occlusion_1.png").write_bytes(png(320, 240, seed=3))
    (folder / "similarity.png").write_bytes(png(320, 240, seed=4))
    (folder / "items.parquet").write_bytes(b"")
    names = ("S_p", "S_q", "D_L2", "cos", "D_shift", "D_L2_centred", "cos_centred")
    return AnalysisRecord(
        uri=str(folder),
        fingerprint="a1",
        checkpoint="c",
        stage="amvl",
        dataset="d",
        numbers={
            "n": 200,
            "geometry": {name: 0.5 + i for i, name in enumerate(names)},
            "kl_per_slot": [0.1, 0.2, 0.3, 0.4],
            "active_units": 17,
            "mutual_information": 0.25,
            "mutual_information_upper": 0.75,
            "candidates": 8.0,
            "similarity": [[1.0 if i == j else 0.9 - 0.3 * abs(i - j) for j in range(4)] for i in range(4)],
            "sensitivity": {"image": 0.4, "text": 0.6},
        },
        files=["occlusion_1.png", "similarity.png", "items.parquet"],
    )


def sampled() -> SamplingRecord:
    """One greedy answer, and up to two of each other source."""
    scores = [
        SampledScore(
            source=source, scale=scale, answers=answers, n=20, passed=0.5 + answers / 40, voted=0.5,
            passed_interval=(0.4 + answers / 40, 0.6 + answers / 40), voted_interval=(0.4, 0.6),
        )
        for source, scale in (("greedy", 0.0), ("latents", 0.5), ("latents", 1.0), ("tokens", 0.6))
        for answers in ((1,) if source == "greedy" else (1, 2))
    ]  # fmt: skip
    return SamplingRecord(uri="u", fingerprint="p1", checkpoint="c", stage="amvl", dataset="d", scores=scores)


@pytest.fixture()
def result(
    tracked: RunConfig,
    asked: DatasetRecord,
    checkpoint: Callable[..., CheckpointRecord],
    evaluated: Callable[[str, set[int]], EvalRecord],
) -> Callable[..., RunResult]:
    def make(method: str = "amvl", **records: Any) -> RunResult:
        before, after = evaluated("sft", set(range(6))), evaluated("amvl", set(range(4, 12)))
        first, second = report.labels(before, after)
        return RunResult(
            config=tracked,
            dataset=asked,
            checkpoint=checkpoint(method=method),
            before=before,
            after=after,
            labels=(first, second),
            scores=report.score_rows(before, after, {}, tracked.seed),
            model=model_record(),
            **records,
        )

    return make


@pytest.fixture()
def build(result: Callable[..., RunResult]) -> Callable[..., str]:
    def make(method: str = "amvl", history: Any = None, **records: Any) -> str:
        return run_report.build(result(method, **records), history or {}, LINKS)

    return make


def test_the_page_shows_every_part(build: Callable[..., str], tmp_path: Path) -> None:
    history = {"amvl/loss": [(1, 2.0), (2, 1.0)]}
    tables = {"MMVP": [{"metric": "pair", "n": "150", "AMVL": "40.0%"}]}
    page = build(
        history=history,
        suites=[faithfulness_record(), faithfulness_record("vstar")],
        analysis=analysis_record(tmp_path),
        tables=tables,
    )
    for text in (
        "<a href='http://127.0.0.1:5000/#/model'><code>models:/amvl/2</code></a>",
        "<a href='http://127.0.0.1:5000/#/data'>Its own report</a>",
        "<a href='http://127.0.0.1:5000/#/run'>the run in MLflow</a>",
        "<figcaption>Figure 4, left: cosine between slots</figcaption>",
        "not worse than the former champion, version 1",
        # Paired on the 18 questions: 8 against 6 right, 2 in common.
        "+11.1 points (",
        "6 gained, 4 lost, McNemar exact p = 0.7539",
        "<h3>MMVP</h3>",
        "They matter.",
        "Accuracy on the test split with the latents changed",
        "Accuracy on vstar with the latents changed",
        "<th class='right'>difference, nats</th>",
        "<td class='right'>-0.250 (-0.500 to -0.125)</td>",
        "<td class='right'>0.3750</td>",
        "on the same questions, with 95 % intervals. Seed of the trainings: 0.",
        "odd one out",
        "paper, AMVL (7B)",
        "active units",
        "0.25 to 0.75",
        "stages.amvl.method.beta_max",
        "version.torch",
        "2 no answer",
    ):
        assert text in page
    images = [attributes["src"] or "" for tag, attributes in tags(page) if tag == "img"]
    # Scores, a curve a stage, two figures of the analysis, and 12 answers of which one has two images and one none.
    assert len(images) == 1 + 3 + 2 + 12
    assert page.count("cosine between slots") == 1 and "0.60" not in page  # they stand in their figure alone
    assert page.count("<circle") == 2 * 10
    assert len(page) < 2_000_000


def test_several_answers_have_a_part_where_they_were_given(build: Callable[..., str]) -> None:
    page = build(sampling=sampled())
    for text in (
        "<a href='#sampling'>Sampling</a>",
        "<td>latents, tau 0.5</td><td class='right'>2</td><td class='right'>20</td>",
        "<td class='right'>55.0 (45.0 to 65.0)</td>",
        "alt='sampling'>",
        "one of the answers is right",
    ):
        assert text in page


def test_the_scores_of_many_tasks_are_all_on_the_page(build: Callable[..., str]) -> None:
    rows = [{"metric": f"task {i}", "AMVL": f"{i}.5%", "p": "1.0000", "seed": "0"} for i in range(60)]
    page = build(tables={"blink": rows})
    assert all(f"<td>task {i}</td><td class='right'>{i}.5%</td>" in page for i in range(60))
    assert page.count("alt='scores'>") == 1


def test_nothing_is_loaded_and_no_text_is_markup(build: Callable[..., str], tmp_path: Path) -> None:
    page = build(suites=[faithfulness_record()], analysis=analysis_record(tmp_path))
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    for tag, attributes in tags(page):
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith(("data:image/", "#")) or (tag == "a" and value in LINKS.values())


def test_a_part_that_is_not_there_says_why(build: Callable[..., str]) -> None:
    assert "trained with sft: it reads no latents, so there is nothing to take away" in build(method="sft")


def test_a_method_whose_latents_have_no_analysis_has_no_such_part(build: Callable[..., str]) -> None:
    page = build(method="valr", suites=[faithfulness_record()])
    assert "id='faithfulness'" in page and "id='latents'" not in page and "id='sampling'" not in page


def test_a_latent_model_without_its_suite_names_the_setting(build: Callable[..., str]) -> None:
    page = build()
    assert "Not computed in this run; see evaluation.faithfulness_items" in page


def test_nothing_is_wider_than_a_telephone(build: Callable[..., str]) -> None:
    """Of 390 pixels a card's content has 334. Checked in Chromium: with every part the page is 390 wide, none scrolls.

    What holds it there is that no rule gives a screen more, and that the columns of wide tables become lines.
    """
    page = build(suites=[faithfulness_record()])
    style = re.sub(r"@media print .*", "", page.split("</style>")[0], flags=re.DOTALL)
    wide = re.findall(r"(?:(?<!max-)width:|minmax\(|grid-template-columns:[^;]*?)\s*(\d+)px", style)
    assert wide and max(map(int, wide)) <= 334
    assert "max-width: none" not in style and page.count("viewBox") == 0
    assert all(
        "wide" in card for card in re.findall(r"<div class='card([^']*)'[^>]*>(?:<h3>[^<]*</h3>)?\s*<style>", page)
    )


def test_of_a_long_answer_the_end_is_shown_where_the_answer_stands(build: Callable[..., str]) -> None:
    shown = [text.split("</span></pre>")[0] for text in build().split("<pre><span>")[1:]]
    assert len(shown) == 12
    assert all(text.startswith("It is there.\nand more ") and " ... " in text for text in shown)
    assert sum(text.endswith(" and more red") for text in shown) == 6


def test_half_of_the_answers_are_wrong_and_all_tasks_are_there(
    asked: DatasetRecord, evaluated: Callable[[str, set[int]], EvalRecord]
) -> None:
    base = evaluated("sft", set())
    found = run_report.answers(asked, base, evaluated("amvl", set(range(4, 12))))
    assert [sample.score for sample in found] == [0.0] * 6 + [1.0] * 6
    assert {sample.task for sample in found[:3]} == {sample.task for sample in found[6:9]}
    assert len({sample.task for sample in found}) == 3
    assert len(next(sample for sample in found if sample.sample_id == "s00").images) == 2
    assert all(sample.before == NASTY for sample in found)
    few = run_report.answers(asked, base, evaluated("nearly", set(range(1, 18))))
    assert [sample.score for sample in few] == [0.0] + [1.0] * 11


def test_pictures_beyond_the_bound_are_named_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = analysis_record(tmp_path)
    assert list(run_report._pictures(record)[0]) == ["occlusion_1.png", "similarity.png"]
    monkeypatch.setattr(run_report, "PICTURE_BYTES", 10)
    assert run_report._pictures(record) == ({}, ["occlusion_1.png", "similarity.png"])


def test_a_page_is_named_by_what_it_shows(
    result: Callable[..., RunResult], tmp_path: Path, evaluation: Callable[..., EvalRecord]
) -> None:
    plain, analysis = result(), analysis_record(tmp_path)
    shown = [
        {},
        {"analysis": analysis},
        {"suites": [faithfulness_record()], "analysis": analysis},
        {"model": model_record().model_copy(update={"fingerprint": "m2"})},
        {"published": [evaluation("amvl", 3, "blink")]},
        {"published": [evaluation("amvl", 3, "mmvp")]},
    ]
    assert len({replace(plain, **records).fingerprint for records in shown}) == 6


def test_a_benchmark_that_is_added_later_is_in_the_report_that_is_linked(
    tracked: RunConfig,
    result: Callable[..., RunResult],
    evaluation: Callable[..., EvalRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page is made anew, lies with the run that made it, and a later run links that one or has a copy."""
    links: list[str] = []
    monkeypatch.setattr(pages, "create_link_artifact", lambda link, **_: links.append(link))
    for module in (stage, pages):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("report"))
    run = result()

    def show(*benchmarks: str, working: bool = False) -> tuple[str, str | None]:
        tables = {name: [{"metric": "overall", "AMVL": "40.0%"}] for name in benchmarks}
        published = [evaluation("amvl", 3, name) for name in benchmarks]
        with Tracker(tracked) as tracker:
            if working:
                tracker.start()
            shown = replace(run, tables=tables, published=published)
            return pages.show_report.fn(shown, tracker), tracker.run_id

    plain, first = show(working=True)
    made, second = show("mmvp")
    assert "<h3>mmvp</h3>" in Path(made).read_text()
    assert "<h3>mmvp</h3>" not in Path(plain).read_text()
    again, none = show("mmvp")
    last, third = show("mmvp", working=True)
    assert (again, last, none) == (made, made, None)
    assert len({first, second, third, None}) == 4
    linked = [link.split("/runs/")[1] for link in links]
    shown = "/artifacts/report.html?workflowType=machine_learning"
    assert linked == [f"{run}{shown}" for run in (first, second, second, third)]
    for run in (first, second, third):
        assert "report.html" in [artifact.path for artifact in client(tracked).list_artifacts(run)]


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.found
