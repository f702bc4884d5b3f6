from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from amvl_core.contracts.errors import DataError
from amvl_core.eval.significance import Unit, compare, estimate, mcnemar, percent, table, wilson


def units(values: str) -> list[Unit]:
    return [Unit(str(i), float(value)) for i, value in enumerate(values)]


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (84, 100), (1, 3), (146, 191)])
def test_wilson_interval_is_scipys(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(0.95, "wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_items_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert estimate([])[:4] == (0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (10, 2), (3, 17), (700, 600)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, abs=1e-12)


def test_a_share_of_independent_items_has_wilsons_interval() -> None:
    found = estimate(units("1" * 146 + "0" * 45))
    assert (found.n, found.method) == (191, "wilson")
    assert (found.low, found.high) == wilson(146, 191)
    assert percent(found) == "76.44 (69.94-81.90)"


def test_bootstrap_of_independent_items_is_as_wide_as_theory_says() -> None:
    # Two strata force the bootstrap. Half width 1.96 sqrt(.25 / 400) = 4.9 points; measured within 0.15 of it.
    half = [Unit(str(i), float(i % 2), stratum=str(i // 200)) for i in range(400)]
    found = estimate(half)
    assert found.method == "bootstrap"
    assert (found.high - found.low) / 2 == pytest.approx(0.049, abs=0.002)
    assert estimate(half) == found
    assert estimate(half, seed=1) != found


def test_items_of_one_group_are_not_independent() -> None:
    values = np.random.default_rng(0).integers(0, 2, 100).repeat(4)
    alone = estimate([Unit(str(i), float(v), stratum=str(i % 2)) for i, v in enumerate(values)])
    together = estimate([Unit(str(i), float(v), group=str(i // 4)) for i, v in enumerate(values)])
    # Four equal answers carry the information of one: twice the width, up to the bootstrap's noise (measured 2.02).
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(2, abs=0.1)


def test_groups_that_all_score_alike_still_leave_doubt() -> None:
    right = [Unit(str(i), 1.0, weight=1 / 3, group=str(i // 4)) for i in range(40)]
    found = estimate(right)
    assert (found.n, found.value, found.method) == (40, pytest.approx(1), "wilson")
    assert (found.low, found.high) == wilson(10, 10)


def test_weights_make_macro_averages() -> None:
    macro = [Unit("a", 1, 1.0, stratum="a"), Unit("b", 0, 0.5, stratum="b"), Unit("c", 1, 0.5, stratum="b")]
    assert estimate(macro).value == 0.75


def test_paired_test_of_two_checkpoints() -> None:
    first, second = units("1100110011" * 10), units("1110110011" * 10)
    found = compare(first, second)
    assert (found.n, found.gained, found.lost, found.test) == (100, 10, 0, "McNemar exact")
    assert found.difference == pytest.approx(0.1)
    assert found.p == mcnemar(10, 0) == 2 / 1024
    assert 0 < found.low < 0.1 < found.high
    back = compare(second, first)
    assert (back.gained, back.lost, back.p) == (0, 10, found.p)


def test_sign_flips_agree_with_mcnemar_on_independent_items() -> None:
    first, second = units("0" * 30 + "1" * 30), units("1" * 12 + "0" * 18 + "1" * 26 + "0" * 4)
    exact = compare(first, second)
    flipped = compare([u._replace(stratum=u.key) for u in first], [u._replace(stratum=u.key) for u in second])
    assert (exact.test, flipped.test) == ("McNemar exact", "sign flips")
    # 12 gained, 4 lost: exact p = .0768; 10,000 flips have a standard error of .0027.
    assert flipped.p == pytest.approx(exact.p, abs=0.01)


def test_rotations_of_one_question_count_once() -> None:
    first, second = units("0000" * 5), units("1111" * 5)
    grouped = ([u._replace(group=str(int(u.key) // 4)) for u in side] for side in (first, second))
    # Five questions, not twenty items: the smallest two-sided p is 2 / 2^5; 10,000 flips have an error of .0024.
    assert compare(next(grouped), next(grouped)).p == pytest.approx(2 / 32, abs=0.01)


def test_no_change_is_no_evidence() -> None:
    found = compare(units("1010"), units("1010"))
    assert (found.difference, found.p) == (0, 1)
    assert found.low < 0 < found.high


def test_other_items_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="1 are only in the first, 0 only in the second, 3 in both"):
        compare(units("1010"), units("101"))
    with pytest.raises(DataError, match="scored twice"):
        compare(units("10") + units("1"), units("10"))


def test_a_table_has_n_interval_p_test_and_seed_beside_every_difference() -> None:
    shown = table([("V*", compare(units("10" * 50), units("11" * 50)))], "SFT", "AMVL", "3").splitlines()
    assert shown[0] == "|  | n | SFT | AMVL | difference (95 % interval) | gained / lost | p | test | evaluation seed |"
    assert shown[2].startswith("| V* | 100 | 50.00 (40.38-59.62) | 100.00 (96.30-100.00) | +50.00 (+40.00 to +60.00) |")
    assert shown[2].endswith("| 50 / 0 | < 0.0001 | McNemar exact | 3 |")


def test_a_difference_that_is_the_same_for_all_items_still_has_an_interval() -> None:
    """Nothing changed in 20 items: up to one in six might (Wilson's bound on 0 of 20 is 0.161)."""
    same = [Unit(str(i), float(i % 2)) for i in range(20)]
    none = compare(same, same)
    assert (none.difference, none.p) == (0.0, 1.0)
    assert (-none.low, none.high) == pytest.approx((0.1611, 0.1611), abs=1e-4)
    all_gained = compare([Unit(str(i), 0.0) for i in range(20)], [Unit(str(i), 1.0) for i in range(20)])
    assert (all_gained.low, all_gained.high) == (pytest.approx(0.8389, abs=1e-4), 1.0)
    # Pairs that answer alike are ten observations, not twenty.
    pairs = [Unit(str(i), 1.0, group=str(i // 2)) for i in range(20)]
    assert compare(pairs, pairs).high == pytest.approx(0.2775, abs=1e-4)
