"""A table from stored predictions; the flow itself runs in `test_full_pipeline.py`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.ablations import TABLES
from amvl_core.config import RunConfig
from amvl_core.presets import ablation, demo
from amvl_core.records import (
    AblationRecord,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    ReadingScore,
    SourceReport,
    TaskScore,
)
from flows import ablation_report, ablations
from flows.ablations import AblationError, Found, Result
from infra.fingerprints import ablation_fingerprint, train_fingerprint

DATASET = DatasetRecord(
    uri="u",
    fingerprint="d1",
    schema_version=1,
    shards=[],
    kept=1,
    dropped={},
    reports=[SourceReport(source="microworld", split="test", read=1, kept=1, dropped={}, examples={})],
)
HEADLINE = TABLES[3].headline


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


def evaluation(folder: Path, name: str, right: int) -> EvalRecord:
    """40 questions of which the first `right` are answered rightly."""
    (folder / name).mkdir()
    columns = {"sample_id": [f"s{i}" for i in range(40)], "group": [""] * 40, "correct": [i < right for i in range(40)]}
    pq.write_table(pa.table(columns), folder / name / "predictions.parquet")
    overall = TaskScore(task="all", n=40, correct=right, accuracy=right / 40, low=0, high=1, majority=0.3)
    return EvalRecord(
        uri=str(folder / name),
        fingerprint=name,
        checkpoint="c",
        stage="amvl",
        dataset="d1",
        scores=[],
        overall=overall,
        readings=[ReadingScore(reading="exact match", scores=[], unanswered=0, drawn=0)],
    )


def analysis(cosine: float) -> AnalysisRecord:
    return AnalysisRecord(
        uri="u",
        fingerprint="a",
        checkpoint="c",
        stage="amvl",
        dataset="d1",
        n=9,
        geometry={"D_L2": 2.0, "cos": cosine},
        kl_per_slot=[],
        active_units=1,
        mutual_information=0.1,
        mutual_information_upper=0.2,
        candidates=8.0,
        similarity=[],
        sensitivity={},
        files=[],
    )


@pytest.fixture()
def found(tmp_path: Path) -> Found:
    """Table 3 with two seeds: 20 + seed right in each row, 30 in the headline; one training failed."""
    rows: Found = {row.label: {} for row in TABLES[3].rows}
    for label, by_seed in rows.items():
        for seed in (0, 1):
            right = (30 if label == HEADLINE else 20) + seed
            name = f"{label}-{seed}"
            measured = analysis(0.25 + 0.5 * seed) if label == "NTP" else None
            by_seed[seed] = Result(checkpoint(), evaluation(tmp_path, name, right), measured)
    rows["Rev only"][1] = "ClusterError: the workers failed once too often"
    return rows


def record(config: RunConfig, found: Found, base: EvalRecord) -> AblationRecord:
    lines = [ablations.line(config, row, found, 3) for row in TABLES[3].rows]
    return AblationRecord(
        uri="u",
        fingerprint="t1",
        table="3",
        headline=HEADLINE,
        dataset="d1",
        rows=[ablations.base_line(base, found, 3), *lines],
        run_id="r",
    )


def test_a_line_is_paired_with_the_headline_and_keeps_what_failed(found: Found) -> None:
    rows = {row.label: ablations.line(demo(), row, found, 3) for row in TABLES[3].rows}
    ntp, broken, headline = rows["NTP"], rows["Rev only"], rows[HEADLINE]
    assert ntp.accuracies == {0: 0.5, 1: 0.525}
    assert ntp.difference == pytest.approx(-0.25)
    assert ntp.p_value is not None
    assert ntp.p_value < 0.01
    assert ntp.geometry == {"D_L2": 2.0, "cos": 0.5}
    assert ntp.changes == "beta_max 1.0 -> 0.0, gamma_max 0.5 -> 0.0"
    assert (broken.accuracies, broken.difference, broken.over_seeds) == ({0: 0.5}, -0.25, None)
    assert broken.failed == {1: "ClusterError: the workers failed once too often"}
    assert (headline.difference, headline.p_value, headline.mean) == (None, None, 30.5 / 40)


def test_the_text_says_how_to_read_it_and_what_failed(found: Found, tmp_path: Path) -> None:
    config = demo()
    whole = record(config, found, evaluation(tmp_path, "base", 15))
    text = ablation_report.markdown(config, TABLES[3], whole, DATASET)
    for expected in (
        "on the 40 test questions of microworld, model `tiny`, 2 seeds (0, 1)",
        "not comparable with ours, only the order of the rows is",
        "| before (amvl) | before the stages that rows change | 76.44 | 68.00 | 63.75 | 37.5 |",
        "| NTP | beta_max 1.0 -> 0.0, gamma_max 0.5 -> 0.0 | 81.15 | 70.50 | 67.38 | 51.2 | 35.4 to 67.1 |",
        "| 50.0 (1 failed) | -25.0 (",
        f"| {HEADLINE} (headline) | as configured | 84.29 | 72.12 | 68.50 | 76.2 |",
        "| NTP | 2 (16.95) | 0.5 (-0.019) |",
        "- Rev only, seed 1: ClusterError: the workers failed once too often",
    ):
        assert expected in text
    columns = [set(row) for row in ablation_report.score_rows(whole)]
    assert all(column == columns[0] for column in columns)
    with pytest.raises(AblationError, match=r"1 trainings of table 3 failed: Rev only, seed 1 \(ClusterError"):
        ablations.refuse_failures(whole)


def test_a_row_of_which_every_training_failed_has_no_figures(found: Found) -> None:
    found["NTP"] = {0: "MemoryError: ", 1: "MemoryError: "}
    row = next(row for row in TABLES[3].rows if row.label == "NTP")
    line = ablations.line(demo(), row, found, 3)
    whole = AblationRecord(uri="u", fingerprint="t", table="3", headline=HEADLINE, dataset="d", rows=[line], run_id="r")
    shown = ablation_report.score_rows(whole)[0]
    assert (shown["ours, mean"], shown["over items"], shown["p"]) == ("failed", "-", "-")


def test_every_row_has_every_seed_and_an_impossible_table_is_refused_first() -> None:
    plan = ablations.planned(demo().model_copy(update={"seed": 5}), "controls", 3)
    assert {label: list(by_seed) for label, by_seed in plan.items()} == {
        "SFT, equal steps": [5, 6, 7],
        "pause tokens": [5, 6, 7],
        "AMVL": [5, 6, 7],
    }
    assert all(config.seed == config.evaluation.seed == seed for row in plan.values() for seed, config in row.items())


@pytest.mark.parametrize("table", TABLES)
def test_rows_share_the_base_and_differ_in_what_they_train(table: ablations.TableName) -> None:
    """The base is trained once; two rows are one training only in Table 11, which trains nothing of its own."""
    config, base = ablation(), checkpoint("sft")
    prints = set()
    for row in ablations.planned(config, table, 2).values():
        for seed_config in row.values():
            own = ablations.own_stages(seed_config, base)
            assert "sft" not in own
            assert own
            prints.add(train_fingerprint(seed_config, own[-1], DATASET, base))
    rows = 1 if table == 11 else len(TABLES[table].rows)
    assert len(prints) == 2 * rows


def test_a_table_is_named_by_what_its_rows_compute_and_not_by_the_machines() -> None:
    def name(config: RunConfig, seeds: int = 2) -> str:
        plan = ablations.planned(config, 3, seeds)
        rows = {label: list(by_seed.values()) for label, by_seed in plan.items()}
        return ablation_fingerprint("3", rows, DATASET, checkpoint("sft"))

    config = ablation()
    wide = config.model_copy(update={"cluster": config.cluster.model_copy(update={"num_workers": 2})})
    moved = config.model_copy(update={"storage": "/elsewhere"})
    assert name(config) == name(wide) == name(moved)
    longer = config.evaluation.model_copy(update={"max_new_tokens": 65})
    assert len({name(config), name(config, 3), name(config.model_copy(update={"evaluation": longer}))}) == 3


def test_the_base_of_the_tables_is_the_demos() -> None:
    """So that `make demo` and the tables share its checkpoint, the longest training of both."""
    stages = [train_fingerprint(config, "sft", DATASET, None) for config in (demo(), ablation())]
    assert stages[0] == stages[1]
