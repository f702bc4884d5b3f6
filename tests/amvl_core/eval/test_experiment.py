"""The rule that says whether latents matter."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.comparisons import SeedScores, TrainedArm
from amvl_core.contracts.records import (
    CheckpointRecord,
    EvalRecord,
    ReadingScore,
    TaskScore,
    VariantScore,
)
from amvl_core.eval.experiment import matters, trained_arm

INTERVALS = ("low", "high", "log_likelihood", "log_likelihood_low", "log_likelihood_high")


def variant(name: str, low: float, high: float, p: float = 0.01) -> VariantScore:
    zeros = dict.fromkeys((*INTERVALS, "log_likelihood_difference", "log_likelihood_p"), 0.0)
    zeros |= dict.fromkeys(("log_likelihood_difference_low", "log_likelihood_difference_high"), 0.0)
    own = {"accuracy": 0.5, "difference": (low + high) / 2, "difference_low": low, "difference_high": high}
    return VariantScore(variant=name, n=9, test="McNemar exact", p_value=p, **zeros, **own)


def training(swapped: float, constant: float) -> TrainedArm:
    """The highest that each change may do, by its interval."""
    rows = [variant("unchanged", 0, 0), variant("swapped", -0.9, swapped), variant("constant", -0.9, constant)]
    return TrainedArm(checkpoint="c", accuracies={"chain_1": 0.5}, tokens=2, slots=8, variants=rows, probes=[])


def beaten(low: float | None) -> SeedScores:
    if low is None:
        return beaten(0.0).model_copy(update={"difference": None, "difference_interval": None})
    return SeedScores(
        accuracies={0: 0.5}, n=9, mean=0.5, over_seeds=None, over_items=(0.4, 0.6), difference=low + 0.1,
        difference_interval=(low, low + 0.2), p_value=0.01, test="McNemar exact",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trained", "against", "said"),
    [
        ([(-0.1, -0.1), (-0.2, -0.1)], [0.1, 0.2], True),
        ([(-0.1, -0.1), (0.01, -0.1)], [0.1, 0.2], False),  # the swap costs nothing in one seed
        ([(-0.1, -0.1), (-0.2, 0.01)], [0.1, 0.2], False),  # nor the constant
        ([(-0.1, -0.1), (-0.2, -0.1)], [0.1, -0.01], False),  # a control is not beaten
        ([(-0.1, -0.1)], [0.1, None], None),  # of a control nothing is known
        ([(-0.1, 0.01)], [0.1, None], False),  # and it does not matter
        ([], [0.1], None),
    ],
)
def test_the_rule(trained: list[tuple[float, float]], against: list[float | None], said: bool | None) -> None:
    arms = {seed: training(*one) for seed, one in enumerate(trained)}
    assert matters(arms, {str(number): beaten(low) for number, low in enumerate(against)}, whole=True) is said


def test_an_interval_alone_is_not_enough() -> None:
    """With few changed items it is too narrow, and the test says so."""
    sure = training(-0.1, -0.1)
    unsure = sure.model_copy(update={"variants": [*sure.variants[:2], variant("constant", -0.2, -0.1, p=0.125)]})
    assert matters({0: sure}, {"a": beaten(0.1)}, whole=True) is True
    assert matters({0: sure, 1: unsure}, {"a": beaten(0.1)}, whole=True) is False
    assert matters({0: sure}, {"a": beaten(0.1).model_copy(update={"p_value": 0.06})}, whole=True) is False


def test_a_seed_that_failed_leaves_open_what_the_others_do_not_refuse() -> None:
    assert matters({0: training(-0.1, -0.1)}, {"a": beaten(0.1)}, whole=False) is None
    assert matters({0: training(-0.1, 0.01)}, {"a": beaten(0.1)}, whole=False) is False
    # A control that is not beaten by these seeds may be beaten by all.
    assert matters({0: training(-0.1, -0.1)}, {"a": beaten(-0.1)}, whole=False) is None
    assert matters({0: training(-0.1, -0.1)}, {"a": beaten(-0.1)}, whole=True) is False


def test_without_a_control_the_verdict_is_open() -> None:
    assert matters({0: training(-0.1, -0.1)}, {}, whole=True) is None
    assert matters({0: training(-0.1, 0.01)}, {}, whole=True) is False


def test_without_latents_there_is_nothing_to_say() -> None:
    assert matters({0: training(-0.1, -0.1).model_copy(update={"variants": []})}, {}, whole=True) is None


def test_tokens_and_slots_are_means_over_replies(tmp_path: Path) -> None:
    table = pa.table({"tokens": [2, 4, 6], "latent_steps": [8, 8, 5]})
    pq.write_table(table, tmp_path / "predictions.parquet")
    score = TaskScore(task="chain_2", n=3, accuracy=0.25, low=0, high=1, majority=0.1)
    scores = EvalRecord(
        uri=str(tmp_path), fingerprint="e", checkpoint="c", stage="s", dataset="d", scores=[score], overall=score,
        readings=[ReadingScore(reading="exact match", scores=[], unanswered=0, drawn=0)],
    )  # fmt: skip
    model = CheckpointRecord(
        uri="/m", fingerprint="c", stage="s", method="sft", step=1, config={}, dataset="d", parent=None,
        num_parameters=1, metrics={},
    )  # fmt: skip
    found = trained_arm(model, scores, None, None)
    assert (found.tokens, found.slots, found.accuracies, found.variants, found.probes) == (
        4.0, 7.0, {"chain_2": 0.25}, [], []
    )  # fmt: skip
