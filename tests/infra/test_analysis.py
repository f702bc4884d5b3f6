"""The command's own part: which checkpoints belong together, and the tables that it makes of finished records."""

from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts import fingerprints, storage
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    FaithfulnessRecord,
    VariantScore,
    save_record,
)
from amvl_core.methods.amvl.analysis.contamination import Contamination
from amvl_core.methods.amvl.presets import demo
from infra import analysis
from infra.mlflow_client import client


def checkpoint(name: str, gamma: float, stage: str = "amvl", dataset: str = "d1", **changes: Any) -> CheckpointRecord:
    """A checkpoint of the demo, trained with `gamma` in its AMVL stages."""
    sweep = {"stages": {stage: {"method": {"gamma_max": gamma}} for stage in ("embedding_adaptation", "amvl")}}
    config = override(override(demo(), sweep), changes)
    return CheckpointRecord(
        uri=name,
        fingerprint=name,
        stage=stage,
        method="amvl",
        step=4,
        config=config.model_dump(mode="json"),
        dataset=dataset,
        parent=None,
        num_parameters=1,
        metrics={},
    )


def variant(name: str, shift: float) -> VariantScore:
    return VariantScore(
        variant=name,
        n=200,
        accuracy=0.5,
        low=0.43,
        high=0.57,
        difference=0.0,
        difference_low=-0.02,
        difference_high=0.02,
        p_value=1.0,
        test="McNemar exact",
        log_likelihood=-3.0,
        log_likelihood_low=-3.1,
        log_likelihood_high=-2.9,
        log_likelihood_difference=shift,
        log_likelihood_difference_low=shift - 0.5,
        log_likelihood_difference_high=shift + 0.25,
        log_likelihood_p=0.25,
    )


def measured(swapped: float) -> tuple[FaithfulnessRecord, AnalysisRecord]:
    rows = [variant("unchanged", 0.0), variant("swapped", swapped), variant("posterior", 2.0)]
    about: dict[str, str] = {"uri": "u", "fingerprint": "f", "checkpoint": "c", "stage": "amvl", "dataset": "d"}
    numbers: dict[str, Any] = {
        "n": 16,
        "kl_per_slot": [0.25, 0.5],
        "mutual_information": 0.125,
        "mutual_information_upper": 1.0,
        "candidates": 8.0,
        "active_units": 3,
    }
    numbers |= {"geometry": {}, "similarity": [], "sensitivity": {}}
    suite = FaithfulnessRecord(benchmark=TEST_SPLIT, rows=rows, verdict="", **about)
    return suite, AnalysisRecord(**about, numbers=numbers, files=[])


def test_contamination_without_a_checkpoint_is_the_linear_gaussian_problem() -> None:
    figure, columns = Contamination().draw([])
    assert len(figure.axes[0].lines) == 3
    rows = list(zip(columns["kind"], columns["gamma"], columns["contamination"], strict=True))
    closed = {gamma: value for kind, gamma, value in rows if kind == "closed form"}
    for kind, gamma, value in rows:
        if kind == "optimised":
            assert value == pytest.approx(closed[gamma], abs=1e-6)


def test_contamination_against_gamma_has_n_seed_and_the_interval_of_every_difference() -> None:
    records = [(checkpoint("c2", 2.0), *measured(-1.0)), (checkpoint("c1", 0.5), *measured(-3.0))]
    figure, columns = Contamination().draw(records)
    assert columns["gamma"] == [0.5, 2.0]
    assert (columns["seed"], columns["n"], columns["n of KL and I_q"]) == ([0, 0], [200, 200], [16, 16])
    assert columns["KL(q || p), nats"] == [0.75, 0.75]
    swapped = "log-likelihood with swapped - with own latents, nats"
    assert (columns[swapped], columns[f"{swapped}_low"], columns[f"{swapped}_high"]) == (
        [-3.0, -1.0],
        [-3.5, -1.5],
        [-2.75, -0.75],
    )
    shown = [axis for axis in figure.axes if axis.lines]
    assert len(shown) == 6
    bars = [axis.collections[0].get_segments() for axis in shown if axis.collections]
    assert len(bars) == 4  # two differences and two accuracies; KL and I_q have no interval
    assert [[float(y) for _, y in bar] for bar in bars[1]] == [[-3.5, -2.75], [-1.5, -0.75]]
    assert figure.get_suptitle() == "n = 200 (KL and I_q: 16), 95 % intervals over questions, seed 0"


def test_checkpoints_of_one_sweep_differ_in_gamma_and_where_they_ran() -> None:
    elsewhere = {"storage": "/elsewhere", "cluster": {"num_workers": 1}, "evaluation": {"analysis_items": 7}}
    faster = {"stages": {"amvl": {"micro_tokens": 999}}}
    Contamination().check([checkpoint("a", 0.0), checkpoint("b", 0.5, **elsewhere), checkpoint("c", 1.0, **faster)])
    # What comes after the checkpoint's own stage is not what it was trained with.
    later = {"stages": {"amvl": {"lr": 1e-3}}}
    first = checkpoint("a", 0.0, stage="embedding_adaptation")
    Contamination().check([first, checkpoint("b", 0.5, stage="embedding_adaptation", **later)])
    # Another folder with the same samples in it is the same dataset.
    Contamination().check([checkpoint("a", 0.0), checkpoint("b", 0.5, data={"rows_per_shard": 512})])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, r"seed \(0, 1\)"),
        ({"stages": {"amvl": {"lr": 1e-3}}}, r"stages\.amvl\.lr \(0\.0005, 0\.001\)"),
        ({"stages": {"amvl": {"method": {"beta_max": 0.5}}}}, r"stages\.amvl\.method\.beta_max \(1\.0, 0\.5\)"),
        ({"latent": {"num_slots": 2}}, r"latent\.num_slots \(4, 2\)"),
        ({"trainer": {"precision": "bf16"}}, r"trainer\.precision \(fp32, bf16\)"),
        ({"dataset": "d2", "data": {"seed": 5}}, r"dataset \(d1, d2\), data\.seed \(0, 5\)"),
    ],
)
def test_what_differs_in_more_than_gamma_is_refused_and_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=rf"^a and b differ in more than gamma_max: {named}; give"):
        Contamination().check([checkpoint("a", 0.0), checkpoint("b", 0.5, **changes)])


def test_the_command_refuses_them_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uris = [str(tmp_path / "train" / name) for name in ("a", "b")]
    for uri, seed in zip(uris, (0, 1), strict=True):
        save_record(checkpoint(uri, 0.5, seed=seed))
    assert analysis.main(["contamination", "--checkpoint", *uris]) == 1
    assert "differ in more than gamma_max: seed (0, 1)" in capsys.readouterr().err


def test_a_row_has_the_seed_of_the_model_that_it_is_of(
    tracked: RunConfig, dataset: DatasetRecord, tmp_path: Path
) -> None:
    root = {"storage": tracked.storage, "tracking": tracked.tracking.model_dump()}
    model = checkpoint(storage.join(tracked.storage, "train", "m"), 0.5, seed=3, **root)
    control = checkpoint(str(tmp_path / "c"), 0.5, seed=4).model_copy(update={"method": "pause"})
    asked = dataset.model_copy(update={"uri": str(tmp_path / "d")})
    name = fingerprints.faithfulness_fingerprint(
        analysis.configuration(model, None), asked, model, [("pause", control)]
    )
    rows = [variant(row, 0.0) for row in ("unchanged", "swapped", "pause")]
    made = measured(0.0)[0].model_copy(
        update={"uri": storage.join(tracked.storage, "faithfulness", name), "rows": rows}
    )
    for record in (model, control, asked, made):
        save_record(record)
    run_id = analysis.run("faithfulness", [model.uri], asked.uri, None, [("pause", control.uri)])
    mlflow = client(tracked)
    table = Path(mlflow.download_artifacts(run_id, "tables/faithfulness.csv", str(tmp_path))).read_text().splitlines()
    assert [line.split(",")[-1] for line in table] == ["seed", "3", "3", "4"]
    assert [line.split(",")[:2] for line in table[1:]] == [["unchanged", "200"], ["swapped", "200"], ["pause", "200"]]
