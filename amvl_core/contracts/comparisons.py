"""The records of several trainings that are held against each other: ablation tables and experiments."""

from __future__ import annotations

from typing import Literal

from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.records import Record, StepProbe, VariantScore


class SeedScores(Frozen):
    """What the seeds of one row score on one benchmark of `n` items; shares of 1, intervals 95 %.

    `accuracies` has one entry per seed that finished (none for the base model, which is one). `mean` is over seeds and
    items, `over_seeds` Student's interval of the seeds' means (None where no two differ), `over_items` the
    bootstrap's over items with the seeds of an item together. `difference` is to the headline row on the same items and
    seeds (None where there is nothing to compare), `p_value` that of `test`, paired by item.
    """

    accuracies: dict[int, float]
    n: int
    mean: float
    over_seeds: tuple[float, float] | None
    over_items: tuple[float, float]
    difference: float | None
    difference_interval: tuple[float, float] | None
    p_value: float | None
    test: str | None


class AblationRow(SeedScores):
    """One line of an ablation table: its scores on the test split, and on each published benchmark of the run.

    `checkpoints` has one entry per seed that finished, `failed` maps the others to the reason. `paper` holds the
    paper's scores in per cent; `measured` the seeds' means of what the method's analysis compares. `swaps` says for
    each seed of a latent row what swapping the latents between items does, `swap` the same over the items of all seeds
    (`n` of each seed added up); no entries and None where the suite was not run.
    """

    label: str
    changes: str
    paper: dict[str, float]
    checkpoints: dict[int, str]
    failed: dict[int, str]
    benchmarks: dict[str, SeedScores]
    swaps: dict[int, VariantScore]
    swap: VariantScore | None
    measured: dict[str, float]


class AblationRecord(Record):
    """A whole ablation table: every row on the same dataset, from the same base checkpoint."""

    kind: Literal["ablation"] = "ablation"
    table: str
    headline: str
    dataset: str
    rows: list[AblationRow]
    run_id: str


class TrainedArm(Frozen):
    """What one training of an arm gave: accuracy by task and the mean of tokens and slots that its replies have.

    `variants` are the rows of the suite, the unchanged model first; `probes` are those of each step; none without
    latents.
    """

    checkpoint: str
    accuracies: dict[str, float]
    tokens: float
    slots: float
    variants: list[VariantScore]
    probes: list[StepProbe]


class ArmRecord(Frozen):
    """One arm of an experiment: `rate` is its learning rate, the best of `validated` where there are several.

    `validated` maps a rate to its accuracy on the validation questions; empty where nothing was chosen. `flops` are
    those of its own training on matrix products. `trained` has an entry for each seed that finished, `failed` maps
    the others to the reason. `against` compares it with each control that writes as much, on the same questions and
    seeds; none in a control. `matters` is what the rule says of its latents; None: there is nothing to say.
    """

    label: str
    role: str
    writes: bool
    rate: float
    validated: dict[str, float]
    flops: float
    trained: dict[int, TrainedArm]
    failed: dict[int, str]
    scores: SeedScores
    against: dict[str, SeedScores]
    matters: bool | None


class ExperimentRecord(Record):
    """An experiment: all arms on one dataset, from one checkpoint; `chance` is the commonest answer's, by task."""

    kind: Literal["experiment"] = "experiment"
    name: str
    dataset: str
    chance: dict[str, float]
    arms: list[ArmRecord]
    run_id: str
