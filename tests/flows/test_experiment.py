"""What an experiment shows, from a record; and a tiny one from nothing to its chart."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.text import Text

from amvl_core.contracts.comparisons import ArmRecord, ExperimentRecord, SeedScores, TrainedArm
from amvl_core.contracts.records import (
    EvalRecord,
    ReadingScore,
    StepProbe,
    TaskScore,
    VariantScore,
    load_record,
)
from amvl_core.experiments import experiment as named
from flows import experiment as flow
from flows import experiment_report, tasks
from flows.ablations import AblationError, Result
from flows.experiment import best, refuse_failures, refuse_unlearned
from infra.reports.experiment import chart, slots_chart
from tests.amvl_core.eval.test_experiment import beaten, variant
from tests.flows.test_ablations import DATASET, checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]


def scores(*each: float) -> SeedScores:
    return SeedScores(
        accuracies=dict(enumerate(each)), n=200, mean=sum(each) / max(1, len(each)), over_seeds=(0.1, 0.9),
        over_items=(0.2, 0.8), difference=None, difference_interval=None, p_value=None, test=None,
    )  # fmt: skip


def step(number: int, second: float) -> StepProbe:
    """Of three slots the second holds more than the others."""
    return StepProbe(step=number, n=200, texts=12, majority=0.1, prompt=0.125, slots=[0.25, second, 0.1])


def arm(label: str, role: str, one: float, three: float, writes: bool = False, **fields: object) -> ArmRecord:
    """Two seeds, the second a point better than the first."""
    rows: list[VariantScore] = []
    probes: list[list[StepProbe]] = [[], []]
    if role == "latent":
        probes = [[step(1, 0.5), step(3, 0.2)], [step(1, 0.7), step(3, 0.2)]]
        rows = [variant("unchanged", 0, 0), variant("swapped", -0.3, -0.1), variant("constant", -0.2, -0.1)]
    trained = {
        seed: TrainedArm(
            checkpoint=f"/train/{label}",
            accuracies={"microworld/chain_3": three + seed / 100, "microworld/chain_1": one},
            tokens=12.0 if writes else 2.0, slots=8.0 * (role == "latent"), variants=rows,
            probes=probes[seed],
        )
        for seed in (0, 1)
    }  # fmt: skip
    plain = {"rate": 1e-3, "validated": {"0.001": 0.5}, "flops": 2e9 if writes else 1e9, "failed": {}, "against": {}}
    plain |= {"scores": scores(one, three), "matters": None, "trained": trained}
    return ArmRecord(label=label, role=role, writes=writes, **{**plain, **fields})


@pytest.fixture()
def record(tmp_path: Path) -> ExperimentRecord:
    return ExperimentRecord(
        uri=str(tmp_path / "experiment"), fingerprint="e1", name="latents", dataset="d1",
        chance={"microworld/chain_3": 0.08, "microworld/chain_1": 0.1}, run_id="r",
        arms=[
            arm("SFT, steps in words", "ceiling", 1.0, 0.98, writes=True),
            arm("pause tokens", "control", 0.9, 0.1),
            arm("Coconut", "latent", 0.95, 0.6, against={"pause tokens": beaten(0.2)}, matters=True),
            arm("broken", "latent", 0.5, 0.5, trained={}, failed={0: "ClusterError: died", 1: "ClusterError: died"},
                scores=scores()),
        ],
    )  # fmt: skip


def test_the_text_has_every_figure_and_what_failed(record: ExperimentRecord) -> None:
    text = experiment_report.markdown(named("latents"), record)
    for expected in (
        "## Where latents are needed",
        "Experiment `latents`, record `e1`, dataset `d1`, seeds 0, 1.",
        "| arm | replies | lr | tried | 1 | 3 | all | each seed | over seeds | over items | tokens | slots | FLOPs |",
        "| SFT, steps in words | steps in words | 0.001 | 0.001: 50.0 | 100.0 | 98.5 | 99.0 | 100.0 98.0 | "
        "10.0 to 90.0 | 20.0 to 80.0 | 12.0 | 0.0 | 2.00 |",
        "| Coconut | bare answers | 0.001 | 0.001: 50.0 | 95.0 | 60.5 |",
        "| commonest answer | - | - | - | 10.0 | 8.0 | 9.0 |",
        "| arm | seed | 1 | 3 |",
        "| Coconut | 0 | 95.0 | 60.0 |",
        "| Coconut | 1 | 95.0 | 61.0 |",
        "| Coconut | -20.0 (-30.0 to -10.0); -20.0 (-30.0 to -10.0) | -15.0 (-20.0 to -10.0); ",
        "| +0.00 +0.00 | yes |",
        "| Coconut | +30.0 (+20.0 to +40.0) |",
        "| arm | step | n | commonest | prompt | best slot | all slots |",
        "| Coconut | 1 | 200 | 10.0 | 12.5 (9 to 18) | 2: 60.0 (53 to 67) | 25 60 10 |",
        "| Coconut | 3 | 200 | 10.0 | 12.5 (9 to 18) | 1: 25.0 (20 to 31) | 25 20 10 |",
        "| broken | bare answers | 0.001 | 0.001: 50.0 | - | - | failed |",
        "- broken, seed 1: ClusterError: died",
    ):
        assert expected in text
    with pytest.raises(AblationError, match=r"2 trainings of experiment latents failed: broken, seed 0 \(ClusterError"):
        refuse_failures(record)


def test_an_interval_that_its_p_does_not_bear_out_has_its_p(record: ExperimentRecord) -> None:
    arm = record.arms[2]
    trained = {
        seed: one.model_copy(update={"variants": [row.model_copy(update={"p_value": 0.0625}) for row in one.variants]})
        for seed, one in arm.trained.items()
    }
    against = {label: one.model_copy(update={"p_value": 0.06}) for label, one in arm.against.items()}
    unsure = record.model_copy(
        update={"arms": [arm.model_copy(update={"trained": trained, "against": against, "matters": False})]}
    )
    (row,), (beside,) = experiment_report.latent_rows(unsure), experiment_report.control_rows(unsure)
    assert row["swapped"] == "; ".join(["-20.0 (-30.0 to -10.0), p 0.0625"] * 2)
    assert beside["pause tokens"] == "+30.0 (+20.0 to +40.0), p 0.0600"


def test_the_chart_has_a_line_an_arm_and_every_arm_at_its_tokens(record: ExperimentRecord, tmp_path: Path) -> None:
    figure = chart(record, "Where latents are needed")
    left, right = figure.axes
    named = [line for line in left.lines if not line.get_label().startswith("_")]
    lines = {line.get_label(): list(line.get_ydata()) for line in named}
    assert lines["Coconut"] == [pytest.approx(95.0), pytest.approx(60.5)]
    assert lines["commonest answer"] == [10.0, 8.0]
    assert list(lines) == ["SFT, steps in words", "pause tokens", "Coconut", "commonest answer"]
    tokens = {line.get_label(): line.get_xdata()[0] for line in right.lines[:3]}
    assert tokens == {"SFT, steps in words": 12.0, "pause tokens": 2.0, "Coconut": 2.0}
    assert len(left.collections) == 3  # a band an arm
    trainings = [list(line.get_ydata()) for line in left.lines if line not in named]
    coconut = next(arm for arm in record.arms if arm.label == "Coconut")
    for one in coconut.trained.values():
        assert [100 * accuracy for _, accuracy in sorted(one.accuracies.items())] in trainings
    assert len(trainings) == sum(len(arm.trained) for arm in record.arms)
    assert not right.texts
    hidden = record.model_copy(update={"arms": [*record.arms, record.arms[1].model_copy(update={"label": "other"})]})
    assert [text.get_text() for text in chart(hidden, "twice").axes[1].texts] == ["2 arms"]
    figure.savefig(tmp_path / "chart.png")


def test_the_heat_map_has_the_means_of_every_slot_and_step(record: ExperimentRecord, tmp_path: Path) -> None:
    figure = slots_chart(record)
    assert figure is not None
    (panel,) = figure.axes
    assert panel.get_title(loc="left") == "Coconut"
    expected = [[10, 10], [12.5, 12.5], [25, 25], [60, 20], [10, 10]]
    assert panel.images[0].get_array().tolist() == [[pytest.approx(value) for value in row] for row in expected]
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "commonest", "prompt", "slot 1", "slot 2", "slot 3",
    ]  # fmt: skip
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "3"]
    figure.savefig(tmp_path / "slots.png")
    said = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text()]
    width, height = figure.get_size_inches() * figure.dpi
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in said)
    assert slots_chart(record.model_copy(update={"arms": record.arms[:2]})) is None


def test_of_equal_rates_the_smaller_is_taken() -> None:
    assert best(named("latents"), {"0.001": 0.5, "0.0003": 0.5, "0.01": 0.4}) == 0.0003
    assert best(named("latents"), {"0.001": 0.6, "0.0003": 0.5}) == 0.001
    assert best(named("latents"), {}) == named("latents").rates[0]


def answered(folder: Path, name: str, right: int) -> EvalRecord:
    """Four questions, of which the first `right` are answered rightly."""
    (folder / name).mkdir(exist_ok=True)
    rows = [
        {"sample_id": f"s{i}", "task": "chain_1", "part": "", "group": "", "score": float(i < right), "tokens": 2,
         "latent_steps": 8}
        for i in range(4)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / name / "predictions.parquet")
    score = TaskScore(task="chain_1", n=4, accuracy=right / 4, low=0, high=1, majority=0.25)
    return EvalRecord(
        uri=str(folder / name), fingerprint=name, checkpoint="c", stage="s", dataset="d", scores=[score], overall=score,
        readings=[ReadingScore(reading="exact match", scores=[], unanswered=0, drawn=0)],
    )  # fmt: skip


def test_no_arm_is_trained_where_the_start_was_not_learned(tmp_path: Path) -> None:
    refuse_unlearned(named("latents"), answered(tmp_path, "all", 4))
    refuse_unlearned(named("written-chain"), answered(tmp_path, "none", 0))
    with pytest.raises(AblationError, match=r"no arm .* answers 75\.0 % of chain_1, .* asks 90 % .* seed=1"):
        refuse_unlearned(named("latents"), answered(tmp_path, "three", 3))


def test_each_arm_takes_its_best_rate_and_is_compared_with_its_controls(tmp_path: Path, monkeypatch) -> None:
    """Rows that answer as told stand in for trainings; those of a rate are asked the validation questions alone."""
    found, base = named("latents"), checkpoint("steps")
    some = ("SFT, bare answers", "pause tokens", "CODI")
    chosen = found._replace(
        arms=tuple(arm for arm in found.arms if arm.label in some),
        tried=tuple(arm for arm in found.tried if arm.label in some),
    )
    arms = {arm.label: arm.of(found.shared) for arm in chosen.arms}
    right = {
        "SFT, bare answers, lr 0.0003": 2, "SFT, bare answers, lr 0.001": 1, "pause tokens, lr 0.0003": 1,
        "pause tokens, lr 0.001": "NonFiniteError: step 3", "CODI, lr 0.0003": 1, "CODI, lr 0.001": 3,
    }  # fmt: skip
    monkeypatch.setattr(tasks, "prepare", lambda config, tracker: DATASET.model_copy(update={"fingerprint": "valid"}))
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger())
    monkeypatch.setattr(flow, "training_flops", lambda *_: 1e9)
    tracker = SimpleNamespace(start=lambda: "run")
    monkeypatch.setattr(flow, "Tracker", lambda *_, parent: nullcontext(tracker))  # of the validation questions

    def rows(config: Any, plan: Any, dataset: Any, asked: Any, *_: Any) -> Any:
        assert [one.fingerprint for one in asked] == ["valid"]
        assert {row.evaluation.faithfulness_items for by_seed in plan.values() for row in by_seed.values()} == {0}
        assert {seed for by_seed in plan.values() for seed in by_seed} == {flow.CHOOSING_SEED}
        lengths = {row.stages["codi"].steps for row in plan["CODI, lr 0.001"].values()}
        assert lengths == {1080}  # the rates are tried in fewer steps
        return {
            label: {
                flow.CHOOSING_SEED: told
                if isinstance(told, str)
                else Result(base, [answered(tmp_path, label, told)], None, None)
            }
            for label, told in right.items()
        }

    monkeypatch.setattr(flow, "run_rows", rows)
    rates, validation = flow.chosen_rates(chosen, found.shared, DATASET, {"steps": base}, tracker, [])
    assert validation == "valid"
    assert {label: best(chosen, tried) for label, tried in rates.items()} == {
        "SFT, bare answers": 0.0003, "pause tokens": 0.0003, "CODI": 0.001,
    }  # fmt: skip
    right["CODI, lr 0.001"] = "ClusterError: died"
    with pytest.raises(
        AblationError, match=r"1 trainings .* failed: CODI, lr 0\.001 \(ClusterError: died\)\. The others"
    ):
        flow.chosen_rates(chosen, found.shared, DATASET, {"steps": base}, tracker, [])
    plan = flow.planned(chosen, found.shared, arms, rates, 2)
    assert {(row.stages["codi"].lr, row.stages["codi"].steps) for row in plan["CODI"].values()} == {(0.001, 5400)}
    assert list(plan["CODI"]) == [0, 1]
    scored = {"SFT, bare answers": 1, "pause tokens": 1, "CODI": 3}
    results = {
        label: {seed: Result(base, [answered(tmp_path, f"{label}-{seed}", number)], None, None) for seed in (0, 1)}
        for label, number in scored.items()
    }
    assert flow.chance(results) == {"chain_1": 0.25}
    with pytest.raises(AblationError, match=r"every training failed: CODI, seed 0 \(ClusterError: died\)"):
        flow.chance({"CODI": {0: "ClusterError: died"}})
    codi = flow.line(chosen.arms[-1], chosen, plan, rates, results, DATASET, base)
    assert {label: one.difference for label, one in codi.against.items()} == {
        "SFT, bare answers": 0.5,
        "pause tokens": 0.5,
    }
    assert (codi.rate, codi.validated, codi.matters) == (0.001, {"0.0003": 0.25, "0.001": 0.75}, None)
    assert codi.trained[1].slots == 8.0
    assert flow.line(chosen.arms[0], chosen, plan, rates, results, DATASET, base).against == {}


@pytest.mark.slow
def test_a_tiny_experiment_from_nothing_to_its_chart(tmp_path: Path) -> None:
    """Two arms, two rates, one seed; a second run finds the record."""
    command = [sys.executable, "-m", "tests.flows.tiny_experiment"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    environment = kept | {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = tmp_path.glob(".amvl/storage/experiment/*")
    record = load_record(str(found), ExperimentRecord)
    assert record is not None
    bare, coconut = record.arms
    assert (bare.matters, list(bare.trained), bare.failed) == (None, [0], {})
    assert coconut.matters is False
    assert list(coconut.against) == ["bare"]
    assert list(coconut.validated) == ["0.001", "0.002"]
    assert [row.variant for row in coconut.trained[0].variants][:5] == [
        "unchanged", "zeroed", "noise", "swapped", "constant",
    ]  # fmt: skip
    assert min(bare.flops, coconut.flops) > 0
    assert coconut.trained[0].slots == 2.0
    (probe,) = coconut.trained[0].probes  # four questions have a second step, and one fold none of them
    assert (probe.step, probe.n, len(probe.slots)) == (1, 8, 2)
    (vectors,) = tmp_path.glob(".amvl/storage/linear_probe/*/vectors.parquet")
    assert len(pq.read_table(vectors)) == 8
    assert (found / "chart.png").stat().st_size > 10_000 < (found / "slots.png").stat().st_size
    assert "| Coconut |" in (found / "tables.md").read_text()
    assert "reused" in done.stderr
