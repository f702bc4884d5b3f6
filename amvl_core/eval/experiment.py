"""What the trainings of an experiment's arms gave, and the rule that says whether latents matter. Needs no model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from amvl_core.contracts.comparisons import ArmRecord, SeedScores, TrainedArm
from amvl_core.contracts.records import (
    CONSTANT,
    SWAPPED,
    CheckpointRecord,
    EvalRecord,
    FaithfulnessRecord,
    LinearProbeRecord,
    StepProbe,
)
from amvl_core.eval.faithfulness import shown
from amvl_core.eval.stored import read_table


def trained_arm(
    model: CheckpointRecord, scores: EvalRecord, suite: FaithfulnessRecord | None, probe: LinearProbeRecord | None
) -> TrainedArm:
    """One training: its accuracies, the tokens and slots of its replies, what changed latents do, what slots hold."""
    written = read_table(scores.predictions_uri, ["tokens", "latent_steps"]).to_pydict()
    return TrainedArm(
        checkpoint=model.uri,
        accuracies={score.task: score.accuracy for score in scores.scores},
        tokens=statistics.fmean(written["tokens"]),
        slots=statistics.fmean(written["latent_steps"]),
        variants=suite.rows if suite else [],
        probes=probe.steps if probe else [],
    )


def mean_probes(arm: ArmRecord) -> list[StepProbe]:
    """The probes of each step with the mean of their accuracies over the arm's seeds."""
    by_step: dict[int, list[StepProbe]] = {}
    for one in arm.trained.values():
        for probe in one.probes:
            by_step.setdefault(probe.step, []).append(probe)
    return [
        found[0].model_copy(
            update={
                "prompt": statistics.fmean(one.prompt for one in found),
                "slots": [statistics.fmean(each) for each in zip(*(one.slots for one in found), strict=True)],
            }
        )
        for _, found in sorted(by_step.items())
    ]


def matters(trained: Mapping[int, TrainedArm], against: Mapping[str, SeedScores], whole: bool) -> bool | None:
    """Whether the latents of an arm matter: two things must hold.

    None: it has no latents, no training finished, or what decides is missing. That is a control to compare with, or,
    where the comparison is not `whole`, a seed of the arm or of a control.

    - In every seed both the swap and the constant cost accuracy: the 95 % interval of the difference is below 0, and p
      is below 0.05.
    - It beats every control in `against`: the 95 % interval of the difference, seeds pooled, is above 0, and p is below
      0.05.
    """
    changed = [{row.variant: row for row in one.variants} for one in trained.values()]
    if not changed or not all(changed):
        return None
    if not all(shown(rows[name]) and rows[name].difference < 0 for rows in changed for name in (SWAPPED, CONSTANT)):
        return False
    if not whole:  # the seed that is missing may turn any comparison
        return None
    figures = [(one.difference_interval, one.p_value) for one in against.values()]
    compared = [(interval, p) for interval, p in figures if interval is not None and p is not None]
    if not all(interval[0] > 0 and p < 0.05 for interval, p in compared):
        return False
    return True if compared and len(compared) == len(against) else None
