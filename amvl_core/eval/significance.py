"""What a score may claim: intervals, and paired tests between two checkpoints on the same items. Needs no model.

A metric is a weighted mean of units. Units of one group (the four rotations of a question) are not independent: they
are resampled and flipped together, within their stratum (a task of a macro average).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from amvl_core.contracts.errors import DataError

Z_95 = statistics.NormalDist().inv_cdf(0.975)
RESAMPLES = 10_000


class Unit(NamedTuple):
    """One value, in 0 to 1, of a metric: usually whether an item is right."""

    key: str
    value: float
    weight: float = 1.0
    group: str = ""
    """Units that are not independent share a group. A unit with an empty one stands alone."""
    stratum: str = ""

    @property
    def cluster(self) -> str:
        """What is resampled: the group, or the unit itself."""
        return self.group or f"\0{self.key}"


class Estimate(NamedTuple):
    """A metric with its 95 % interval over `n` units; all shares of 1."""

    n: int
    value: float
    low: float
    high: float
    method: Literal["wilson", "bootstrap"]


class Comparison(NamedTuple):
    """Two checkpoints on the same units: the difference second - first with its 95 % interval and p-value."""

    n: int
    first: Estimate
    second: Estimate
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float
    test: Literal["McNemar exact", "sign flips"]


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion; (0, 1) where there is no item."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, Z_95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 or n correct the bound is the proportion itself; rounding must not push it past.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


def weighted_mean(units: Sequence[Unit]) -> float:
    """Sum of weight x value over the sum of weights. Needs at least one unit."""
    return sum(unit.weight * unit.value for unit in units) / sum(unit.weight for unit in units)


def estimate(units: Sequence[Unit], seed: int = 0) -> Estimate:
    """The weighted mean with its interval: Wilson's for a plain share of independent items, else the bootstrap's.

    The bootstrap is the percentile one over groups within strata. If all groups score alike (all right, say), it has no
    width. Then the interval is Wilson's for as many items as there are groups. Without units it is 0, from 0 to 1.
    """
    if not units:
        return Estimate(0, 0.0, 0.0, 1.0, "wilson")
    value = weighted_mean(units)
    if _plain(units) and all(unit.value in (0, 1) for unit in units):
        return Estimate(len(units), value, *wilson(sum(unit.value == 1 for unit in units), len(units)), "wilson")
    low, high = _bootstrap(units, [unit.value for unit in units], seed)
    if high - low < 1e-9:  # equal on paper; sums differ in the last bits
        groups = len({unit.cluster for unit in units})
        return Estimate(len(units), value, *wilson(round(value * groups, 6), groups), "wilson")
    return Estimate(len(units), value, low, high, "bootstrap")


def bootstrap_mean(units: Sequence[Unit], seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the weighted mean, of values on any scale; needs at least one unit."""
    return _bootstrap(units, [unit.value for unit in units], seed)


def compare(first: Sequence[Unit], second: Sequence[Unit], seed: int = 0) -> Comparison:
    """A paired comparison. Raises DataError where the two were not scored on the same items.

    The test is McNemar's exact one if the units are right-or-wrong, independent and of equal weight. Else it is random
    sign flips of each group's difference, which is the same test without that structure. If all groups change alike
    (not at all, say), the bootstrap has no width. Another difference may then be as frequent as Wilson's bound on 0 of
    so many groups.
    """
    before, after = ({unit.key: unit for unit in units} for units in (first, second))
    if len(before) != len(first) or len(after) != len(second):
        raise DataError("an item was scored twice; a paired test needs one prediction per item and checkpoint")
    if not before or before.keys() != after.keys():
        raise DataError(
            f"a paired test needs the same items: {len(before.keys() - after.keys())} are only in the first, "
            f"{len(after.keys() - before.keys())} only in the second, {len(before.keys() & after.keys())} in both; "
            "evaluate both checkpoints on the same data"
        )
    paired = [before[key] for key in sorted(before)]
    changes = [after[unit.key].value - unit.value for unit in paired]
    total = sum(unit.weight for unit in paired)
    gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    exact = _plain(paired) and all(change in (-1, 0, 1) for change in changes)
    difference = sum(unit.weight * change for unit, change in zip(paired, changes, strict=True)) / total
    low, high = _bootstrap(paired, changes, seed)
    if high - low < 1e-9:
        unseen = wilson(0, len({unit.cluster for unit in paired}))[1]
        low, high = max(-1.0, low - unseen), min(1.0, high + unseen)
    return Comparison(
        n=len(paired),
        first=estimate(paired, seed),
        second=estimate([after[unit.key] for unit in paired], seed),
        difference=difference,
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p=mcnemar(gained, lost) if exact else _sign_flips(paired, changes, seed),
        test="McNemar exact" if exact else "sign flips",
    )


def sign_flip_p(changes: Sequence[Unit], seed: int = 0) -> float:
    """Two-sided p of paired differences on any scale: each group's sign is flipped at random."""
    return _sign_flips(changes, [unit.value for unit in changes], seed)


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p: how likely a fair coin divides the changed items at least this unevenly."""
    from scipy import stats  # takes a second to load

    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def table(rows: Iterable[tuple[str, Comparison]], first: str, second: str, seed: str) -> str:
    """Markdown: name, n, both scores with intervals, the difference with its interval, changed items, p and test.

    There is no row without all of them. Scores and differences are in per cent. `seed` is that of the evaluations.
    """
    head = ["", "n", first, second, "difference (95 % interval)", "gained / lost", "p", "test", "evaluation seed"]
    lines = [head, ["---"] * len(head)]
    for name, c in rows:
        change = f"{100 * c.difference:+.2f} ({100 * c.low:+.2f} to {100 * c.high:+.2f})"
        counts = f"{c.gained} / {c.lost}"
        lines.append([name, f"{c.n:,}", percent(c.first), percent(c.second), change, counts, p_text(c.p), c.test, seed])
    return markdown(lines)


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table: a bar or line end in a cell begins no other one."""
    cells = ([" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def p_text(p: float) -> str:
    """`0.0312`, or `< 0.0001`."""
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def percent(score: Estimate) -> str:
    """`84.29 (78.44-88.78)`: the score and its 95 % interval in per cent."""
    return f"{100 * score.value:.2f} ({100 * score.low:.2f}-{100 * score.high:.2f})"


def _plain(units: Sequence[Unit]) -> bool:
    """Whether the units are independent and count alike."""
    groups = [unit.group for unit in units if unit.group]
    alike = len({unit.stratum for unit in units}) == 1 and len({unit.weight for unit in units}) == 1
    return alike and len(groups) == len(set(groups))


def _group_sums(units: Sequence[Unit], values: Sequence[float]) -> dict[str, np.ndarray]:
    """Per stratum the weighted sum and the weight of each group, [groups, 2], in order of first appearance."""
    sums: dict[str, dict[str, list[float]]] = {}
    for unit, value in zip(units, values, strict=True):
        group = sums.setdefault(unit.stratum, {}).setdefault(unit.cluster, [0.0, 0.0])
        group[0] += unit.weight * value
        group[1] += unit.weight
    return {stratum: np.array(list(groups.values())) for stratum, groups in sums.items()}


def _bootstrap(units: Sequence[Unit], values: Sequence[float], seed: int) -> tuple[float, float]:
    """The central 95 % of the weighted mean of `values` over resamples of the groups within each stratum."""
    sums = _group_sums(units, values)
    rng = np.random.default_rng(seed)
    total = np.zeros((RESAMPLES, 2))
    for groups in sums.values():
        # Groups with the same sums are drawn as one kind: a handful of kinds, however many groups.
        kinds, counts = np.unique(groups.round(12), axis=0, return_counts=True)
        total += rng.multinomial(len(groups), counts / len(groups), size=RESAMPLES) @ kinds
    low, high = np.quantile(total[:, 0] / total[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _sign_flips(units: Sequence[Unit], changes: Sequence[float], seed: int) -> float:
    """Two-sided p: how often random signs of the groups' differences give a sum at least as far from zero."""
    sums = np.concatenate([groups[:, 0] for groups in _group_sums(units, changes).values()])
    sizes, counts = np.unique(np.abs(sums[sums != 0]).round(12), return_counts=True)
    flipped = np.random.default_rng(seed).binomial(counts, 0.5, size=(RESAMPLES, len(sizes)))
    # Sums that are equal on paper may differ in the last bits.
    as_far = np.abs((counts - 2 * flipped) @ sizes) >= abs(sums.sum()) - 1e-9
    return float((1 + as_far.sum()) / (1 + RESAMPLES))
