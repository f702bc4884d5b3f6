"""Random draws that depend on a key alone: the same wherever, and beside whatever, something is placed."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def keyed_generator(*key: object) -> torch.Generator:
    """A generator on the CPU that depends on the key alone: the same draws wherever and beside whatever it is asked."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def normal(like: Tensor, *key: object) -> Tensor:
    """Standard normal noise in the shape, precision and place of `like`."""
    return torch.randn(like.shape, generator=keyed_generator(*key)).to(like)


def moved(size: int, *key: object) -> list[int]:
    """A random order of `size` things in which none stays: each goes to the next place of one random cycle."""
    cycle = torch.randperm(size, generator=keyed_generator(*key)).tolist()
    order = [0] * size
    for here, there in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        order[here] = there
    return order


def mean_of_others(own_BKD: Tensor, donor_1KD: Tensor, asked: bool) -> Tensor:
    """For each of B items the mean over the other ones and `donor_1KD`, [B, K, D].

    Where the donor is `asked` it is one of the B items, and counts once.
    """
    if asked:
        return (own_BKD.sum(0, keepdim=True) - own_BKD) / (len(own_BKD) - 1)
    return (own_BKD.sum(0, keepdim=True) + donor_1KD - own_BKD) / len(own_BKD)
