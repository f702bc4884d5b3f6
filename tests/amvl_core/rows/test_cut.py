"""A graph in two parts against the same graph in one backward call."""

import torch
from torch import Tensor

from amvl_core.rows.cut import Cut


def graph(weight_DD: Tensor, cut: Cut | None) -> tuple[Tensor, Tensor]:
    """Loss of the later part and of the first one. Both use the weight; the later takes two tensors of the first."""
    torch.manual_seed(0)
    first_ND = torch.tanh(torch.randn(5, 4, dtype=torch.float64) @ weight_DD)
    other_ND = first_ND.square()
    seen = [cut(tensor) for tensor in (first_ND, other_ND)] if cut else [first_ND, other_ND]
    return ((seen[0] + seen[1]) @ weight_DD).exp().mean(), other_ND.sin().sum()


def test_two_calls_give_the_gradient_of_one_and_the_later_parts_waits_for_nothing() -> None:
    """Float64. The sums are taken in another order: worst seen 1.5e-16 of the largest element."""
    whole = torch.eye(4, dtype=torch.float64).requires_grad_()
    sum(graph(whole, None), torch.zeros(())).mul(3.0).backward()
    weight, cut = torch.eye(4, dtype=torch.float64).requires_grad_(), Cut()
    later, first = graph(weight, cut)
    (3.0 * later).backward()
    assert weight.grad is not None and whole.grad is not None
    of_later = weight.grad.clone()
    assert of_later.abs().min() > 0
    (cut.onward() + 3.0 * first).backward()
    torch.testing.assert_close(weight.grad, whole.grad, rtol=1e-14, atol=1e-14)
    assert not torch.allclose(of_later, whole.grad)


def test_what_needs_no_gradient_gets_none() -> None:
    """A frozen tensor behind the cut stays frozen, and a tensor that the later part does not use gets nothing."""
    used, unused = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    cut = Cut()
    frozen, behind, _ = cut(torch.ones(3, dtype=torch.float64)), cut(used), cut(unused)
    assert not frozen.requires_grad
    (frozen * behind).sum().backward()
    cut.onward().backward()
    assert used.grad is not None and used.grad.tolist() == [1.0, 1.0, 1.0] and unused.grad is None
