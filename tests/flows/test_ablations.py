"""A table from stored predictions; the flow itself runs in `test_full_pipeline.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.comparisons import AblationRecord
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.fingerprints import ablation_fingerprint, train_fingerprint
from amvl_core.contracts.method import configurations
from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    ReadingScore,
    SourceReport,
    TaskScore,
)
from amvl_core.eval.faithfulness import score_variants, verdict
from amvl_core.methods.amvl.presets import ablation, demo
from amvl_core.methods.amvl.tables import TABLES
from flows import ablation_report, ablations, outbox
from flows.ablations import AblationError, Found, Result
from infra.tracking import Tracker

DATASET = DatasetRecord(
    uri="u",
    fingerprint="d1",
    schema_version=1,
    shards=[],
    kept=1,
    dropped={},
    reports=[SourceReport(source="microworld", split="test", read=1, kept=1, dropped={}, examples={})],
)
HEADLINE = TABLES["3"].headline


def checkpoint(stage: str = "amvl") -> CheckpointRecord:
    return CheckpointRecord(
        uri=f"/train/{stage}",
        fingerprint=stage,
        stage=stage,
        method="amvl",
        step=1,
        config={},
        dataset="d1",
        parent=None,
        num_parameters=1,
        metrics={},
    )


def evaluation(folder: Path, name: str, right: int, benchmark: str = TEST_SPLIT) -> EvalRecord:
    """40 questions of which the first `right` are answered rightly; of a published benchmark four are one group."""
    name = f"{name}-{benchmark}"
    (folder / name).mkdir()
    published = benchmark != TEST_SPLIT
    rows = [
        {
            "sample_id": f"s{i}",
            "task": "single",
            "part": str(i % 4),
            "group": f"g{i // 4}" if published else "",
            "score": float(i < right),
        }
        for i in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / name / "predictions.parquet")
    overall = TaskScore(task="all", n=40, accuracy=right / 40, low=0, high=1, majority=0.3)
    return EvalRecord(
        uri=str(folder / name),
        fingerprint=name,
        benchmark=benchmark,
        checkpoint="c",
        stage="amvl",
        dataset="d1",
        scores=[],
        overall=overall,
        readings=[ReadingScore(reading="exact match", scores=[], unanswered=0, drawn=0)],
    )


def suite(folder: Path, name: str, swapped: int) -> FaithfulnessRecord:
    """40 questions, 30 answered rightly with their own latents and the first `swapped` with those of another."""
    (folder / f"suite-{name}").mkdir()
    items = [
        {
            "sample_id": f"s{i}",
            "variant": variant,
            "group": "",
            "score": float(i < right),
            "log_likelihood": -1.0 - 0.25 * (variant == "swapped"),
        }
        for variant, right in (("unchanged", 30), ("swapped", swapped), ("zeroed", 3))
        for i in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(items), folder / f"suite-{name}" / "items.parquet")
    rows = score_variants(items)
    return FaithfulnessRecord(
        uri=str(folder / f"suite-{name}"),
        fingerprint=name,
        benchmark=TEST_SPLIT,
        checkpoint="c",
        stage="amvl",
        dataset="d1",
        rows=rows,
        verdict=verdict(rows),
    )


def analysis(cosine: float) -> AnalysisRecord:
    numbers = {
        "n": 9,
        "geometry": {"D_L2": 2.0, "cos": cosine},
        "kl_per_slot": [],
        "active_units": 1,
        "mutual_information": 0.1,
        "mutual_information_upper": 0.2,
        "candidates": 8.0,
        "similarity": [],
        "sensitivity": {},
    }
    about = {"uri": "u", "fingerprint": "a", "checkpoint": "c", "stage": "amvl", "dataset": "d1"}
    return AnalysisRecord(**about, numbers=numbers, files=[])


@pytest.fixture()
def found(tmp_path: Path) -> Found:
    """Table 3 with two seeds: 20 + seed right in each row, 30 in the headline; one training failed.

    Of HR-Bench 4K each row answers 8 less rightly. Two rows have the suite: swapping costs the headline 10 + seed of
    its answers, and `NTP` none.
    """
    rows: Found = {row.label: {} for row in TABLES["3"].rows}
    for label, by_seed in rows.items():
        for seed in (0, 1):
            right = (30 if label == HEADLINE else 20) + seed
            name = f"{label}-{seed}"
            measured = analysis(0.25 + 0.5 * seed) if label == "NTP" else None
            evaluations = [evaluation(tmp_path, name, right), evaluation(tmp_path, name, right - 8, "hrbench_4k")]
            swapped = {HEADLINE: 20 - seed, "NTP": 30}.get(label)
            faithfulness = None if swapped is None else suite(tmp_path, name, swapped)
            by_seed[seed] = Result(checkpoint(), evaluations, faithfulness, measured)
    rows["Rev only"][1] = "ClusterError: the workers failed once too often"
    return rows


def record(config: RunConfig, found: Found, base: list[EvalRecord]) -> AblationRecord:
    lines = [ablations.line(config, row, found, TABLES["3"]) for row in TABLES["3"].rows]
    return AblationRecord(
        uri="u",
        fingerprint="t1",
        table="3",
        headline=HEADLINE,
        dataset="d1",
        rows=[ablations.base_line(base, found, TABLES["3"]), *lines],
        run_id="r",
    )


TABLES_OF = {
    f"{kind} {name}": (name, table)
    for kind, method in configurations().items()
    for name, table in method.tables().items()
}


@pytest.mark.parametrize("named", TABLES_OF)
def test_every_table_can_be_shown(named: str, found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, table = TABLES_OF[named]
    config = override(ablation(), {"evaluation": {"benchmarks": [{"name": "hrbench_4k", "uri": "h"}]}})
    base = [evaluation(tmp_path, "base", 15), evaluation(tmp_path, "base", 20, "hrbench_4k")]
    shown = record(config, found, base).model_copy(update={"table": name})
    calls: list[Any] = []
    monkeypatch.setattr(outbox.OUTBOX, "call", calls.append)
    monkeypatch.setattr(ablation_report, "mlflow_page", lambda *_: "http://x")
    assert ablation_report.show(config, table, shown, DATASET, Tracker(config)) == "http://x"
    assert len(calls) == 6  # scores, benchmarks, latents, measured, text, link


def test_a_line_is_paired_with_the_headline_and_keeps_what_failed(found: Found) -> None:
    rows = {row.label: ablations.line(demo(), row, found, TABLES["3"]) for row in TABLES["3"].rows}
    ntp, broken, headline = rows["NTP"], rows["Rev only"], rows[HEADLINE]
    assert ntp.accuracies == {0: 0.5, 1: 0.525}
    assert ntp.difference == pytest.approx(-0.25)
    assert ntp.p_value is not None
    assert ntp.p_value < 0.01
    assert ntp.measured == {"D_L2": 2.0, "cos": 0.5}
    assert ntp.changes == "beta_max 1.0 -> 0.0, gamma_max 0.5 -> 0.0"
    assert (broken.accuracies, broken.difference, broken.over_seeds) == ({0: 0.5}, -0.25, None)
    assert broken.failed == {1: "ClusterError: the workers failed once too often"}
    assert (headline.difference, headline.p_value, headline.mean) == (None, None, 30.5 / 40)


def test_the_text_says_how_to_read_it_and_what_failed(found: Found, tmp_path: Path) -> None:
    config = demo()
    whole = record(config, found, [evaluation(tmp_path, "base", 15)])
    text = ablation_report.markdown(config, TABLES["3"], whole, DATASET)
    for expected in (
        "on the 40 test questions of microworld, model `tiny`, 2 seeds (0, 1)",
        "not comparable with these, only the order of the rows is.\n",
        "| before (amvl) | before the stages that rows change | 76.44 | 68.00 | 63.75 | 40 | 37.5 |",
        "| NTP | beta_max 1.0 -> 0.0, gamma_max 0.5 -> 0.0 | 81.15 | 70.50 | 67.38 | 40 | 51.2 | 35.4 to 67.1 |",
        "| 50.0 (1 failed) | -25.0 (",
        f"| {HEADLINE} (headline) | as configured | 84.29 | 72.12 | 68.50 | 40 | 76.2 |",
        "| NTP | 2 (16.95) | 0.5 (-0.019) |",
        "- Rev only, seed 1: ClusterError: the workers failed once too often",
    ):
        assert expected in text
    assert "Published benchmarks" not in text
    columns = [set(row) for row in ablation_report.score_rows(whole)]
    assert all(column == columns[0] for column in columns)
    tests = {row["row"]: row["test"] for row in ablation_report.score_rows(whole)}
    assert (tests["NTP"], tests["Rev only"], tests[f"{HEADLINE} (headline)"]) == ("sign flips", "McNemar exact", "-")
    with pytest.raises(AblationError, match=r"1 trainings of table 3 failed: Rev only, seed 1 \(ClusterError"):
        ablations.refuse_failures(whole)


def test_a_row_of_which_every_training_failed_has_no_figures(found: Found) -> None:
    found["NTP"] = {0: "MemoryError: ", 1: "MemoryError: "}
    row = next(row for row in TABLES["3"].rows if row.label == "NTP")
    line = ablations.line(demo(), row, found, TABLES["3"])
    whole = AblationRecord(uri="u", fingerprint="t", table="3", headline=HEADLINE, dataset="d", rows=[line], run_id="r")
    shown = ablation_report.score_rows(whole)[0]
    assert (shown["ours, mean"], shown["over items"], shown["p"]) == ("failed", "-", "-")


def test_every_latent_row_says_whether_its_latents_matter(found: Found, tmp_path: Path) -> None:
    whole = record(demo(), found, [evaluation(tmp_path, "base", 15)])
    ntp, headline = ablation_report.swap_rows(whole)
    assert (headline["row"], headline["n"], headline["test"]) == (f"{HEADLINE} (headline)", "80", "sign flips")
    assert headline["accuracy, points"].startswith("-26.2 (-")
    assert headline["each seed, points"] == "-25.0 -27.5"
    assert headline["log-likelihood, nats"] == "-0.250 (-0.250 to -0.250)"
    assert headline["each seed, nats"] == "-0.250 -0.250"
    assert headline["on these items"] == "the latents matter"
    assert (ntp["row"], ntp["on these items"]) == ("NTP", "the latents are read, but no effect on accuracy is shown")
    stored = AblationRecord.model_validate_json(whole.model_dump_json())
    assert stored == whole
    assert {row.label: (len(row.swaps), row.swap is None) for row in stored.rows if row.swaps} == {
        "NTP": (2, False),
        HEADLINE: (2, False),
    }
    text = ablation_report.markdown(demo(), TABLES["3"], whole, DATASET)
    assert f"| {HEADLINE} (headline) | 80 | -26.2 (" in text


def test_the_benchmarks_of_the_run_stand_beside_the_papers(found: Found, tmp_path: Path) -> None:
    """Whole rotations count: four questions of a group are one, so intervals are those of ten and not of forty."""
    config = override(demo(), {"evaluation": {"benchmarks": [{"name": "hrbench_4k", "uri": "h"}]}})
    base = [evaluation(tmp_path, "base", 15), evaluation(tmp_path, "base", 20, "hrbench_4k")]
    whole = record(config, found, base)
    first, ntp, *_ = ablation_report.score_rows(whole)
    assert list(first)[2:5] == ["paper V*", "HR-4K: paper / ours", "paper HR-8K"]
    assert first["HR-4K: paper / ours"].startswith("68.00 / 50.0 (")
    assert ntp["HR-4K: paper / ours"].startswith("70.50 / 31.")
    rows = {row["row"]: row for row in ablation_report.benchmark_rows(whole)}
    assert len(rows) == len(whole.rows)
    assert {row["benchmark"] for row in rows.values()} == {"hrbench_4k"}
    shown = rows["NTP"]
    assert (shown["paper"], shown["n"], shown["seeds"]) == ("70.50", "40", "30.0 32.5")
    assert shown["against headline"].startswith("-25.0 (")
    assert rows["Rev only"]["test"] == "sign flips"  # one seed, but the rotations of a question are one group
    ours = next(row for row in whole.rows if row.label == "NTP")
    assert ours.benchmarks["hrbench_4k"].mean == pytest.approx(0.3125)
    wide, narrow = ours.benchmarks["hrbench_4k"].over_items, ours.over_items
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])
    assert "`paper / ours`: the same benchmark, asked of this model" in ablation_report.markdown(
        config, TABLES["3"], whole, DATASET
    )


def test_every_row_has_every_seed_and_an_impossible_table_is_refused_first() -> None:
    plan = ablations.planned(demo().model_copy(update={"seed": 5}), TABLES["controls"], 3)
    assert {label: list(by_seed) for label, by_seed in plan.items()} == {
        "SFT, equal steps": [5, 6, 7],
        "pause tokens": [5, 6, 7],
        "AMVL": [5, 6, 7],
    }
    assert all(config.seed == config.evaluation.seed == seed for row in plan.values() for seed, config in row.items())
    with pytest.raises(ConfigError, match="\n  seed: Input should be less than 4294967296"):
        ablations.planned(demo().model_copy(update={"seed": 2**32 - 1}), TABLES["controls"], 2)


@pytest.mark.parametrize("table", TABLES)
def test_rows_share_the_base_and_differ_in_what_they_train(table: str) -> None:
    """The base is trained once; two rows are one training only in Table 11, which trains nothing of its own."""
    config, base = ablation(), checkpoint("sft")
    prints = set()
    for row in ablations.planned(config, TABLES[table], 2).values():
        for seed_config in row.values():
            first, *own = seed_config.stages
            assert first == "sft"
            assert own
            prints.add(train_fingerprint(seed_config, own[-1], DATASET, base))
    rows = 1 if table == "11" else len(TABLES[table].rows)
    assert len(prints) == 2 * rows


def test_a_table_is_named_by_what_its_rows_compute_and_not_by_the_machines() -> None:
    def name(config: RunConfig, seeds: int = 2, asked: tuple[DatasetRecord, ...] = ()) -> str:
        plan = ablations.planned(config, TABLES["3"], seeds)
        rows = {label: list(by_seed.values()) for label, by_seed in plan.items()}
        return ablation_fingerprint("3", rows, DATASET, checkpoint("sft"), asked)

    config = ablation()
    wide = config.model_copy(update={"cluster": config.cluster.model_copy(update={"num_workers": 2})})
    moved = config.model_copy(update={"storage": "/elsewhere"})
    assert name(config) == name(wide) == name(moved)
    others = [override(config, {"evaluation": {field: 65}}) for field in ("max_new_tokens", "faithfulness_items")]
    assert len({name(config), name(config, 3), name(config, asked=(DATASET,)), *map(name, others)}) == 5


def test_the_base_of_the_tables_is_the_demos() -> None:
    """So that `make demo` and the tables share its checkpoint, the longest training of both."""
    stages = [train_fingerprint(config, "sft", DATASET, None) for config in (demo(), ablation())]
    assert stages[0] == stages[1]
