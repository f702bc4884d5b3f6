"""The patch embedding of the 7B vision encoder by itself, forward and backward: as it is used, and as a convolution."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amvl_core.backbones.patches import project_patches
from benchmarks.attention import relative
from benchmarks.measure import Step, interleaved

WIDTH, PATCH = 1280, (2, 14, 14)


def compare(patches: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Milliseconds of the matrix product and of the stock convolution on so many patches.

    `difference` is that of outputs and of weight gradients, relative to the norm of the convolution's in float64.
    """
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Conv3d(3, WIDTH, PATCH, PATCH, bias=False, device=where, dtype=dtype))
    ours = nn.Sequential(nn.Conv3d(3, WIDTH, PATCH, PATCH, bias=False, device=where, dtype=dtype))
    ours.load_state_dict(stock.state_dict())
    project_patches(ours)
    given = torch.randn(patches, 3, *PATCH).to(where, dtype)
    towards = torch.randn(patches, WIDTH, 1, 1, 1).to(where, dtype)

    def results(module: nn.Sequential, given: Tensor, towards: Tensor) -> list[Tensor]:
        output = module(given)
        return [output.detach(), *torch.autograd.grad(output, list(module.parameters()), towards)]

    ways = {"matrix product": ours, "convolution": stock}
    steps: dict[str, Step] = {name: partial(results, way, given, towards) for name, way in ways.items()}
    seconds = interleaved(steps, repeats)
    outputs = results(ours, given, towards)
    expected = results(stock.double(), given.double(), towards.double())
    return {
        "difference": max(relative(*pair) for pair in zip(outputs, expected, strict=True)),
        **{name: {"milliseconds": round(1000 * value, 3)} for name, value in seconds.items()},
    }
