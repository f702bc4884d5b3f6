"""Deferred weight gradients against those of plain backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amvl_core.rows.deferred import DeferredWeightGradients


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, 6, bias=False)).double()


def chain(model: nn.Module, rows_ND: Tensor, around: DeferredWeightGradients | None) -> Tensor:
    """Five passes, each on the output of the one before, and the first layer once more without deferring."""
    total = model(rows_ND).sum()
    for _ in range(5):
        if around is None:
            rows_ND = model(rows_ND)
        else:
            with around:
                rows_ND = model(rows_ND)
        total = total + (rows_ND**2).sum()
    return total


def test_gradients_are_those_of_plain_backward() -> None:
    """Float64. Worst seen: 2e-15 relative."""
    rows = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    found = []
    for around in (None, DeferredWeightGradients()):
        model = layers()
        rows.grad = None
        chain(model, rows, around).backward()
        found.append([rows.grad, *(parameter.grad for parameter in model.parameters())])
    for plain, deferred in zip(*found, strict=True):
        assert plain is not None and deferred is not None
        torch.testing.assert_close(deferred, plain, rtol=1e-12, atol=1e-12)


def test_a_backward_pass_for_inputs_alone_is_forgotten() -> None:
    """Without `forget` the weights would get its rows as well. Float64. Worst seen: 0."""
    rows = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for asked in (False, True):
        model, around = layers(), DeferredWeightGradients()
        loss = chain(model, rows, around)
        if asked:
            torch.autograd.grad(loss, rows, retain_graph=True)
            around.forget()
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for once, again in zip(*found, strict=True):
        torch.testing.assert_close(again, once, rtol=0, atol=0)


def test_each_weight_gets_one_product_for_all_passes() -> None:
    model, rows = layers(), torch.ones(4, 6, dtype=torch.float64)
    seen: list[int] = []
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: seen.append(grad.ndim))
    around = DeferredWeightGradients()
    with around:
        loss = model(model(rows)).sum()
    loss.backward()
    nodes = {type(kept).__name__ for _, kept in around._weights.values()}
    assert nodes == {"_Kept"} and len(around._weights) == 2
    assert all(not kept.inputs for _, kept in around._weights.values()), "kept rows are let go"
    assert sorted(seen) == [1, 2, 2]


def test_what_is_not_trained_or_has_no_gradient_is_left_alone() -> None:
    model, rows = layers().requires_grad_(False), torch.ones(4, 6, dtype=torch.float64)
    around = DeferredWeightGradients()
    with around:
        model(rows)
        with torch.no_grad():
            layers()(rows)
    assert not around._weights
