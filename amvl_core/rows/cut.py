"""A graph in two parts, so that no weight that both use has a gradient waiting for its other part.

In one backward call autograd holds the gradient of a weight's later use until that of its first use arrives: a copy of
all weights. Cut between the two, the later part runs backward first, and its weights have their gradients. What it
leaves at the cut goes on through the first part. The sums are the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from amvl_core.rows.attention import Context, KeyValues


class _Onward(Function):
    """Zero, with gradients that are given."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *before: Tensor) -> Tensor:
        ctx.gradients = gradients
        return before[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, ()  # each is let go where it is used
        return None, *(gradient.mul_(factor) for gradient in gradients)


class Cut:
    """Tensors that the later part of a graph takes from the first one."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, before: Tensor) -> Tensor:
        """The same values as a leaf of the later part."""
        behind = before.detach().requires_grad_(before.requires_grad)
        self._pairs.append((before, behind))
        return behind

    def context(self, row: Context) -> Context:
        """A row with its keys and values as leaves."""
        return Context(row.spans, [KeyValues(self(own.keys), self(own.values)) for own in row.layers], row.tapped)

    def onward(self) -> Tensor:
        """A scalar, 0, that differentiated gives the first part the gradients of the later part, which has run."""
        found = [(before, behind.grad) for before, behind in self._pairs if behind.grad is not None]
        self._pairs.clear()
        scalar: Tensor = _Onward.apply([grad for _, grad in found], *(before for before, _ in found))
        return scalar
