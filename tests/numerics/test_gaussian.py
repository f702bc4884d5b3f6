"""Gaussians against torch.distributions and finite differences."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from amvl_core.methods.amvl import gaussian
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.objectives import forward_kl, reverse_kl


def random_gaussian(seed: int, dtype: torch.dtype = torch.float64) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 3, 16)
    return Gaussian(
        torch.randn(shape, generator=generator, dtype=dtype), 2 * torch.randn(shape, generator=generator, dtype=dtype)
    )


def reference(q: Gaussian, p: Gaussian) -> torch.Tensor:
    return kl_divergence(
        Independent(Normal(q.mean, torch.exp(0.5 * q.logvar)), 1),
        Independent(Normal(p.mean, torch.exp(0.5 * p.logvar)), 1),
    )


@pytest.mark.parametrize("seed", range(5))
def test_kl_is_that_of_torch_distributions(seed: int) -> None:
    q, p = random_gaussian(seed), random_gaussian(seed + 100)
    # Measured worst case over the seeds: 6e-16 relative in float64.
    torch.testing.assert_close(gaussian.kl_divergence(q, p), reference(q, p), rtol=1e-13, atol=0)
    torch.testing.assert_close(gaussian.kl_divergence(q, p, "mean"), reference(q, p) / 16, rtol=1e-12, atol=0)


def test_kl_of_low_precision_is_taken_in_float32() -> None:
    q, p = random_gaussian(0, torch.bfloat16), random_gaussian(1, torch.bfloat16)
    result = gaussian.kl_divergence(q, p)
    assert result.dtype == torch.float32
    expected = reference(Gaussian(q.mean.double(), q.logvar.double()), Gaussian(p.mean.double(), p.logvar.double()))
    # Measured worst case: 9e-8 relative.
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=0)


def test_sample_has_the_moments_of_the_distribution() -> None:
    q = Gaussian(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 2.0 * torch.log(torch.tensor(3.0)).item()))
    noise = torch.randn(200_000, 1, 1, generator=torch.Generator().manual_seed(0))
    full, half = q.sample(noise), q.sample(noise, tau=0.5)
    # Standard errors of mean and deviation at 200,000 draws: 0.007 and 0.005; five of them.
    assert abs(full.mean().item() - 2) < 0.035 and abs(full.std().item() - 3) < 0.025
    assert abs(half.std().item() - 1.5) < 0.013
    assert torch.equal(q.sample(noise, tau=0.0), q.mean.expand_as(noise))


@pytest.mark.parametrize("value", [-1e6, -8.0, -2.0, 0.0, 4.0, 1e6])
def test_soft_clamp_stays_inside_and_has_a_gradient_in_the_middle(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    y = gaussian.soft_clamp(x, -8.0, 4.0)
    y.backward()
    assert -8.0 <= y.item() <= 4.0
    assert x.grad is not None and torch.isfinite(x.grad)
    if value == -2.0:
        assert y.item() == -2.0 and x.grad.item() == 1.0


def gradients(term, stop_gradient: bool) -> list[bool]:
    leaves = [t.clone().requires_grad_() for t in (*random_gaussian(0), *random_gaussian(1))]
    term(Gaussian(*leaves[:2]), Gaussian(*leaves[2:]), "sum", stop_gradient).mean().backward()
    return [leaf.grad is not None and bool(leaf.grad.abs().sum() > 0) for leaf in leaves]


def test_each_kl_term_moves_one_side_and_each_switch_frees_the_other() -> None:
    posterior, prior = [True, True, False, False], [False, False, True, True]
    assert gradients(forward_kl, True) == prior
    assert gradients(reverse_kl, True) == posterior
    assert gradients(forward_kl, False) == [True] * 4
    assert gradients(reverse_kl, False) == [True] * 4


def test_reverse_kl_gradient_is_that_of_proposition_1() -> None:
    q, p = random_gaussian(0), random_gaussian(1)
    mean = q.mean.clone().requires_grad_()
    reverse_kl(Gaussian(mean, q.logvar), p, "sum").mean().backward()
    expected = (q.mean - p.mean) * torch.exp(-q.logvar) / (4 * 3)  # the mean over 4 samples and 3 slots
    torch.testing.assert_close(mean.grad, expected, rtol=1e-12, atol=1e-15)
