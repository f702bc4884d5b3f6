"""Rows and verdict from stored outputs, against hand counts and the normal approximation."""

import math

import numpy as np
import pytest

from amvl_core.contracts.errors import DataError
from amvl_core.eval.faithfulness import score_variants, verdict
from amvl_core.eval.significance import mcnemar, wilson

N = 400


def outputs(variant: str, right: np.ndarray, likelihood: np.ndarray) -> list[dict]:
    return [
        {
            "sample_id": f"s{i:04d}",
            "variant": variant,
            "group": f"g{i}",
            "score": float(correct),
            "log_likelihood": float(value),
        }
        for i, (correct, value) in enumerate(zip(right, likelihood, strict=True))
    ]


def data(lost: int, gained: int, shift: float, noise: float) -> list[dict]:
    """The unchanged model right on the first 300 of 400; the swap loses and gains some, and moves the likelihood."""
    rng = np.random.default_rng(0)
    before = np.arange(N) < 300
    after = before.copy()
    after[:lost] = False
    after[300 : 300 + gained] = True
    likelihood = rng.normal(-5, 2, N)
    changed = likelihood + shift + noise * rng.normal(size=N)
    return outputs("swapped", after, changed) + outputs("unchanged", before, likelihood)


def test_rows_hold_the_counts_and_intervals_of_the_items() -> None:
    items = data(lost=40, gained=10, shift=-0.5, noise=1.0)
    prior, swapped = score_variants(items)
    assert (prior.variant, swapped.variant) == ("unchanged", "swapped")
    assert (prior.n, prior.accuracy, prior.difference, prior.p_value) == (N, 0.75, 0.0, 1.0)
    assert prior.log_likelihood_difference == prior.log_likelihood_difference_low == 0.0
    assert (swapped.low, swapped.high) == wilson(270, N)
    assert swapped.difference == pytest.approx(-30 / N)
    assert swapped.p_value == mcnemar(10, 40)
    assert swapped.test == "McNemar exact"
    # The bootstrap's interval is the normal one of a mean of 400 differences, to 5 % of its width.
    changes = np.array([i["log_likelihood"] for i in items[:N]]) - np.array([i["log_likelihood"] for i in items[N:]])
    assert prior.log_likelihood_p == 1.0
    assert swapped.log_likelihood_p == pytest.approx(1 / 10_001)  # no draw is as far out: t = 9
    half = 1.96 * changes.std() / math.sqrt(N)
    assert swapped.log_likelihood_difference == pytest.approx(changes.mean())
    assert swapped.log_likelihood_difference_low == pytest.approx(changes.mean() - half, abs=0.1 * half)
    assert swapped.log_likelihood_difference_high == pytest.approx(changes.mean() + half, abs=0.1 * half)


def test_a_likelihood_that_is_no_number_is_refused() -> None:
    items = data(lost=4, gained=1, shift=0.0, noise=1.0)
    items[7]["log_likelihood"] = math.nan
    with pytest.raises(DataError, match=r"s0007: the log-likelihood of its answer is nan \(swapped\)"):
        score_variants(items)


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        ({"lost": 40, "gained": 10, "shift": -0.5, "noise": 1.0}, "the latents matter."),
        ({"lost": 10, "gained": 40, "shift": 0.5, "noise": 1.0}, "other items' latents serve better than their own."),
        ({"lost": 5, "gained": 5, "shift": -0.5, "noise": 1.0}, "the latents are read, but no effect on accuracy"),
        ({"lost": 5, "gained": 5, "shift": 0.0, "noise": 1.0}, "no effect of the latents is shown."),
        ({"lost": 0, "gained": 0, "shift": 0.0, "noise": 0.0}, "no effect of the latents is shown."),
    ],
)
def test_the_verdict_follows_the_intervals(effect: dict, said: str) -> None:
    assert said in verdict(score_variants(data(**effect)))


def test_the_verdict_gives_its_numbers() -> None:
    sentence = verdict(score_variants(data(lost=40, gained=10, shift=-0.5, noise=1.0)))
    assert "changes accuracy by -7.5 (-10.8 to -4.0) points" in sentence
    assert "(p < 0.001, n = 400)" in sentence
    assert sentence.count("p < 0.001") == 2


def test_where_no_item_changed_the_interval_is_not_a_point() -> None:
    """Nothing changed among 400: up to about 1 % may, by Wilson's bound of a share of which none was seen."""
    swapped = score_variants(data(lost=0, gained=0, shift=0.0, noise=0.0))[1]
    assert swapped.difference == 0
    assert (swapped.difference_low, swapped.difference_high) == (-wilson(0, N)[1], wilson(0, N)[1])


def test_items_of_one_image_are_not_counted_as_independent() -> None:
    items = [item | {"group": f"g{int(item['sample_id'][1:]) // 4}"} for item in data(40, 10, -0.5, 1.0)]
    swapped = score_variants(items)[1]
    assert swapped.test == "sign flips"


def test_a_variant_with_other_items_is_refused() -> None:
    items = data(lost=40, gained=10, shift=-0.5, noise=1.0)
    with pytest.raises(DataError, match="needs the same items"):
        score_variants(items[1:])
    with pytest.raises(DataError, match="no item of the unchanged model"):
        score_variants(items[:N])
