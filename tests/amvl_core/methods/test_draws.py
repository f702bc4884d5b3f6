"""Draws that depend on their key alone."""

import pytest
import torch

from amvl_core.methods.draws import moved, normal


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
