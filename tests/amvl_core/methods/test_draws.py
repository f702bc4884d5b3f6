"""Draws that depend on their key alone."""

import pytest
import torch

from amvl_core.methods.draws import mean_of_others, moved, normal


def test_noise_depends_on_its_key_and_on_nothing_else() -> None:
    like = torch.zeros(3, 2, dtype=torch.float64)
    first = normal(like, 1, "a")
    torch.randn(5)
    assert torch.equal(normal(like, 1, "a"), first) and first.dtype == like.dtype
    assert not torch.equal(normal(like, 1, "b"), first) and not torch.equal(normal(like, 2, "a"), first)


@pytest.mark.parametrize("size", [2, 3, 16])
def test_nothing_stays_in_its_place(size: int) -> None:
    order = moved(size, 0, "a")
    assert sorted(order) == list(range(size)) and all(there != here for here, there in enumerate(order))
    assert moved(size, 0, "a") == order


@pytest.mark.parametrize(("asked", "expected"), [(True, [55.0, 50.5, 5.5]), (False, [37.0, 34.0, 4.0])])
def test_no_item_is_in_its_own_mean_and_none_counts_twice(asked: bool, expected: list[float]) -> None:
    """The donor is the first of the three items, or another one that has the same values."""
    own = torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)
    assert mean_of_others(own, own[:1], asked).flatten().tolist() == expected
