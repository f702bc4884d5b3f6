"""Whether the latents matter: from stored outputs under changed latents to rows with intervals. Needs no model.

A method's `Prober` makes the outputs (`amvl_core/methods/probing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.records import SWAPPED, UNCHANGED, VariantScore
from amvl_core.eval.significance import Unit, bootstrap_mean, compare, sign_flip_p, weighted_mean


def score_variants(items: Iterable[Mapping[str, Any]], seed: int = 0) -> list[VariantScore]:
    """One row per variant in order of first appearance, the unchanged model first.

    An item has `sample_id`, `variant`, `group` (items of one group are not independent), `score` (0 to 1)
    and `log_likelihood`. Raises DataError where a variant was not asked what the unchanged model was, or where a
    log-likelihood is no finite number.
    """
    by_variant: dict[str, list[Mapping[str, Any]]] = {UNCHANGED: []}
    for item in items:
        if not math.isfinite(item["log_likelihood"]):
            raise DataError(
                f"{item['sample_id']}: the log-likelihood of its answer is {item['log_likelihood']} "
                f"({item['variant']}); the model's weights or its precision are at fault"
            )
        by_variant.setdefault(item["variant"], []).append(item)
    if not (unchanged := by_variant[UNCHANGED]):
        raise DataError("there is no item of the unchanged model to compare with; run the faithfulness stage again")
    return [_row(name, unchanged, changed, seed) for name, changed in by_variant.items()]


def _row(
    name: str, unchanged: Sequence[Mapping[str, Any]], changed: Sequence[Mapping[str, Any]], seed: int
) -> VariantScore:
    right = compare(_units(unchanged, "score"), _units(changed, "score"), seed)
    likelihoods = _units(changed, "log_likelihood")
    before = {unit.key: unit.value for unit in _units(unchanged, "log_likelihood")}
    changes = [unit._replace(value=unit.value - before[unit.key]) for unit in likelihoods]
    low, high = bootstrap_mean(likelihoods, seed)
    change_low, change_high = bootstrap_mean(changes, seed)
    return VariantScore(
        variant=name,
        n=right.n,
        accuracy=right.second.value,
        low=right.second.low,
        high=right.second.high,
        difference=right.difference,
        difference_low=right.low,
        difference_high=right.high,
        p_value=right.p,
        test=right.test,
        log_likelihood=weighted_mean(likelihoods),
        log_likelihood_low=low,
        log_likelihood_high=high,
        log_likelihood_difference=weighted_mean(changes),
        log_likelihood_difference_low=change_low,
        log_likelihood_difference_high=change_high,
        log_likelihood_p=sign_flip_p(changes, seed),
    )


def _units(items: Sequence[Mapping[str, Any]], value: str) -> list[Unit]:
    return [Unit(item["sample_id"], float(item[value]), group=item["group"]) for item in items]


def verdict(rows: Sequence[VariantScore]) -> str:
    """One sentence on what swapping the latents between items does, from intervals and p alone.

    Swapped latents are still such as the model was trained on. They only lose what they hold about their own item. A
    model that ignores them does not notice.
    """
    row = next(row for row in rows if row.variant == SWAPPED)
    accuracy, likelihood = (f"p = {p:.3f}" if p >= 0.001 else "p < 0.001" for p in (row.p_value, row.log_likelihood_p))
    return (
        f"Swapping the latents between items changes accuracy by {points(row)} points ({accuracy}, n = {row.n:,}) and "
        f"the answer's log-likelihood by {nats(row)} nats ({likelihood}): on these items {effect(row)}."
    )


def effect(row: VariantScore) -> str:
    """What follows from the swap's intervals, in a few words."""
    if shown(row):
        return "the latents matter" if row.difference < 0 else "other items' latents serve better than their own"
    if read(row):
        return "the latents are read, but no effect on accuracy is shown"
    return "no effect of the latents is shown"


def shown(row: VariantScore) -> bool:
    """Whether an effect on accuracy is: the interval lies on one side of 0 and p is below 0.05.

    Where few items changed, the bootstrap's interval is too narrow: with 4 lost of 512 and none gained it lies below 0,
    and p is 0.125.
    """
    return excludes_zero(row.difference_low, row.difference_high) and row.p_value < 0.05


def read(row: VariantScore) -> bool:
    """Whether an effect on the log-likelihood is shown, by the same two signs."""
    low, high = row.log_likelihood_difference_low, row.log_likelihood_difference_high
    return excludes_zero(low, high) and row.log_likelihood_p < 0.05


def excludes_zero(low: float, high: float) -> bool:
    """Whether an interval lies on one side of 0."""
    return low > 0 or high < 0


def points(row: VariantScore) -> str:
    """`-0.1 (-1.2 to +1.0)`: the paired difference in accuracy, in points, with its 95 % interval."""
    return f"{100 * row.difference:+.1f} ({100 * row.difference_low:+.1f} to {100 * row.difference_high:+.1f})"


def nats(row: VariantScore) -> str:
    """The same for the log-likelihood, in nats."""
    low, high = row.log_likelihood_difference_low, row.log_likelihood_difference_high
    return f"{row.log_likelihood_difference:+.3f} ({low:+.3f} to {high:+.3f})"
