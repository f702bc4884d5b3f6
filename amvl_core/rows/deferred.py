"""Weight gradients of many short passes, as one matrix product each at the end of backward.

A pass of a few rows reads every weight, and in backward it writes a gradient as large as the weight and adds it to what
is there. For a chain of such passes that costs more than the passes. Here a pass keeps the inputs and the output
gradients of its linear layers, which are small; what is computed from them at the end is the same sum.

Shape suffixes: N rows, D inputs, E outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _Kept:
    """Of one weight: the inputs [N, D] and output gradients [N, E] of its passes, in the order of backward."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []


class _Collected(Function):
    """The weight as the passes use it. Its backward runs when all of theirs have, and gives the gradient of all."""

    @staticmethod
    def forward(ctx: Any, weight_ED: Tensor, kept: _Kept) -> Tensor:
        ctx.kept = kept
        ctx.set_materialize_grads(False)
        return weight_ED.view_as(weight_ED)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, None]:
        kept: _Kept = ctx.kept
        if not kept.inputs:
            return None, None
        gradient_ED = torch.cat(kept.gradients).T @ torch.cat(kept.inputs)
        kept.inputs.clear()
        kept.gradients.clear()
        return gradient_ED, None


class _Linear(Function):
    """`functional.linear` that keeps what the weight's gradient needs instead of computing it."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, weight_ED: Tensor, bias_E: Tensor | None, kept: _Kept) -> Tensor:
        ctx.kept, ctx.has_bias = kept, bias_E is not None
        ctx.save_for_backward(rows_ND, weight_ED)
        return functional.linear(rows_ND, weight_ED, bias_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NE: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        rows_ND, weight_ED = ctx.saved_tensors
        ctx.kept.inputs.append(rows_ND)
        ctx.kept.gradients.append(gradient_NE)
        return gradient_NE @ weight_ED, None, gradient_NE.sum(0) if ctx.has_bias else None, None


class DeferredWeightGradients(TorchFunctionMode):
    """While it is entered, linear layers over rows [N, D] with a trained weight leave that weight's gradient for later.

    One object serves all passes of a step. A layer that is run again in backward has to enter it again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, tuple[Tensor, _Kept]] = {}

    def forget(self) -> None:
        """Drops what a backward pass has kept that asked for no weight's gradient (`torch.autograd.grad`)."""
        for _, kept in self._weights.values():
            kept.inputs.clear()
            kept.gradients.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replaces `functional.linear` alone."""
        if func is not functional.linear or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not weight.requires_grad or input.ndim != 2:
            return functional.linear(input, weight, bias)
        if id(weight) not in self._weights:
            kept = _Kept()
            self._weights[id(weight)] = (_Collected.apply(weight, kept), kept)
        return _Linear.apply(input, self._weights[id(weight)][0], bias, self._weights[id(weight)][1])
