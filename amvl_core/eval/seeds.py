"""One row of an ablation table from what each seed answered: two intervals, a paired test, and what a swap of the
latents does. Needs no model.

Two things vary: the seed of the training and the items asked. With three seeds no single interval covers both well. So
there are two. Student's interval over the seeds' means tells what another training would score on these items. The
bootstrap's over items, with the seeds of an item together, tells what these trainings would score on other items.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amvl_core.contracts.comparisons import SeedScores
from amvl_core.contracts.records import SWAPPED, UNCHANGED, VariantScore
from amvl_core.eval.faithfulness import score_variants
from amvl_core.eval.significance import Unit, compare, estimate, weighted_mean

Answers = Sequence[Unit]
"""Each item of one evaluation with its score."""


def over_seeds(values: list[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of `values`, cut to 0 to 1.

    None for fewer than two, or where all are equal: they show no spread, which does not say that there is none.
    """
    if len(set(values)) < 2:
        return None
    from scipy import stats  # takes a second to load

    mean = statistics.fmean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return max(0.0, mean - float(half)), min(1.0, mean + float(half))


def units(answers: Mapping[int, Answers]) -> list[Unit]:
    """Every answer of every seed; what is about one item, or about items of one group, is resampled together."""
    return [
        unit._replace(key=f"{seed}/{unit.key}", group=unit.group or unit.key)
        for seed, found in answers.items()
        for unit in found
    ]


def score_row(answers: Mapping[int, Answers], headline: Mapping[int, Answers] | None) -> SeedScores:
    """The figures of a row: seed -> answers, against those of the headline row (None: it is that row).

    The comparison takes the seeds that both have. Raises DataError where their items differ.
    """
    accuracies = {seed: weighted_mean(found) for seed, found in answers.items()}
    found = estimate(units(answers))
    seeds = answers.keys() & (headline or {}).keys()
    paired = None
    if headline is not None and seeds:
        first, second = ({seed: side[seed] for seed in sorted(seeds)} for side in (headline, answers))
        paired = compare(units(first), units(second))
    return SeedScores(
        accuracies=accuracies,
        n=len(next(iter(answers.values()), [])),
        mean=found.value,
        over_seeds=over_seeds(list(accuracies.values())),
        over_items=(found.low, found.high),
        difference=paired.difference if paired else None,
        difference_interval=(paired.low, paired.high) if paired else None,
        p_value=paired.p if paired else None,
        test=paired.test if paired else None,
    )


def base_scores(answers: Answers, headline: Mapping[int, Answers]) -> SeedScores:
    """The model that all rows start from: one checkpoint, compared with the headline row at each of its seeds."""
    figures = score_row(dict.fromkeys(headline, answers) or {0: answers}, headline)
    return figures.model_copy(update={"accuracies": {}, "over_seeds": None})


def swap_row(items: Mapping[int, Iterable[Mapping[str, Any]]]) -> VariantScore | None:
    """What swapping the latents between items does, over all seeds; None without seeds.

    `items` maps a seed to the items of its suite (`score_variants`). What is about one item, or about items of one
    group, is resampled and flipped together; seeds need not have asked the same items.
    """
    pooled = [
        {**item, "sample_id": f"{seed}/{item['sample_id']}", "group": item["group"] or item["sample_id"]}
        for seed, found in items.items()
        for item in found
        if item["variant"] in (UNCHANGED, SWAPPED)
    ]
    return next(row for row in score_variants(pooled) if row.variant == SWAPPED) if pooled else None
