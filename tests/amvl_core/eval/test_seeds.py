from typing import Any

import numpy as np
import pytest
from scipy import stats

from amvl_core.contracts.errors import DataError
from amvl_core.eval import seeds
from amvl_core.eval.faithfulness import score_variants
from amvl_core.eval.significance import Unit, wilson


def answers(rights: list[int], items: int = 40, per_image: int = 1) -> dict[int, list[Unit]]:
    """Per seed, the first `right` of the items answered rightly, `per_image` neighbours on one image."""
    return {
        seed: [Unit(f"i{i}", float(i < right), group=f"g{i // per_image}") for i in range(items)]
        for seed, right in enumerate(rights)
    }


@pytest.mark.parametrize("values", [[0.5, 0.6], [0.61, 0.58, 0.6], [0.4, 0.41, 0.39, 0.4]])
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    clipped = (max(0.0, expected[0]), min(1.0, expected[1]))
    # Quantiles have four digits: at most 5e-6 of a share here.
    assert seeds.over_seeds(values) == pytest.approx(clipped, abs=1e-5)


def test_one_seed_has_no_interval_over_seeds_and_wilsons_over_items() -> None:
    row = seeds.score_row(answers([30]), None)
    assert row.over_seeds is None
    assert row.over_items == pytest.approx(wilson(30, 40))
    assert row.accuracies == {0: 0.75}


def test_seeds_that_answer_alike_do_not_make_the_items_more() -> None:
    """Three identical seeds know no more of other items than one: the interval may not shrink by the root of three."""
    one, three = (seeds.score_row(answers([24] * count), None).over_items for count in (1, 3))
    widths = [high - low for low, high in (one, three)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_equal_seeds_show_no_spread_and_have_no_interval() -> None:
    """One of no width would say that another training is sure to score the same."""
    assert seeds.score_row(answers([24, 24, 24]), None).over_seeds is None


def test_questions_about_one_image_count_as_one() -> None:
    """Four questions to an image that are right or wrong together: ten units, not forty, and twice the width."""
    alone, together = (seeds.score_row(answers([24, 24], per_image=count), None).over_items for count in (1, 4))
    assert together[1] - together[0] == pytest.approx(2 * (alone[1] - alone[0]), rel=0.1)


def test_a_row_is_paired_with_the_headline_on_the_seeds_that_both_have() -> None:
    headline = answers([30, 31, 32])
    row = seeds.score_row({0: answers([10])[0], 2: answers([12])[0]}, headline)
    assert row.difference == pytest.approx((10 + 12 - 30 - 32) / 80)
    assert row.difference_interval is not None
    assert row.difference_interval[1] < 0
    assert row.p_value == pytest.approx(0, abs=0.001)
    assert row.test == "sign flips"
    assert seeds.score_row({7: answers([10])[0]}, headline).p_value is None
    with pytest.raises(DataError, match="same items"):
        seeds.score_row(answers([10], items=39), headline)


def test_the_base_is_one_model_compared_at_every_seed() -> None:
    row = seeds.base_scores(answers([20])[0], answers([20, 20]))
    assert (row.mean, row.difference, row.p_value) == (0.5, 0.0, 1.0)
    assert (row.accuracies, row.over_seeds, row.n) == ({}, None, 40)
    alone = seeds.base_scores(answers([20])[0], {})
    assert (alone.mean, alone.difference, alone.test) == (0.5, None, None)


def suite(right: int, swapped: int, items: int = 40) -> list[dict[str, Any]]:
    """The first `right` items answered rightly with their own latents, the first `swapped` with another's."""
    return [
        {
            "sample_id": f"i{i}",
            "variant": variant,
            "group": "",
            "score": float(i < (swapped if variant == "swapped" else right)),
            "log_likelihood": -2.0 - (0.5 + i / 40) * (variant == "swapped"),
        }
        for variant in ("unchanged", "swapped", "zeroed")
        for i in range(items)
    ]


def test_a_swap_of_one_seed_is_that_of_its_suite() -> None:
    items = suite(30, 22)
    assert seeds.swap_row({0: items}) == score_variants(items)[1]
    assert seeds.swap_row({}) is None


def test_swaps_of_all_seeds_are_paired_within_a_seed_and_resampled_by_item() -> None:
    """Three seeds that answer alike know no more of other items than one; seeds need not share their items."""
    one, three = seeds.swap_row({0: suite(30, 22)}), seeds.swap_row(dict.fromkeys(range(3), suite(30, 22)))
    assert one is not None
    assert three is not None
    assert (one.n, three.n, three.test) == (40, 120, "sign flips")
    assert three.difference == pytest.approx(one.difference) == pytest.approx(-0.2)
    widths = [row.difference_high - row.difference_low for row in (one, three)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    nats = [row.log_likelihood_difference_high - row.log_likelihood_difference_low for row in (one, three)]
    assert nats[1] == pytest.approx(nats[0], rel=0.1)
    unlike = seeds.swap_row({0: suite(30, 22), 1: suite(15, 15, items=20)})
    assert unlike is not None
    assert (unlike.n, unlike.difference) == (60, pytest.approx(-8 / 60))
