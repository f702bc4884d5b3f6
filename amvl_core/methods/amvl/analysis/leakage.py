"""Prior contamination against gamma on a problem that can be solved by hand (Prop. C.1, C.2, C.4).

    x ~ N(0, 1),  y = x + e,  e ~ N(b, s^2): what no prior can infer from x
    decoder     p(y | z)    = N(z, tau^2)
    posterior   q(z | x, y) = N(x + alpha e, sigma^2): alpha is the leakage, sigma is held fixed
    prior       p(z | x)    = N(m x + c, sigma^2)

NTP wants alpha = 1, for then z tells y. The reverse KL pulls alpha toward 0. The forward KL moves the prior only. Where
all gradients vanish:

    alpha = 1 / (1 + k gamma / sigma^2)  with k = tau^2 s^2 / (s^2 + b^2)        (Prop. C.4; alpha = 1 at gamma = 0)
    m = 1, c = alpha b: the prior's mean is that of the posterior over y          (Prop. C.1, Eq. 33)

Leakage falls as gamma rises, and faster for a sharp posterior, that is a small sigma (Cor. 1, 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.objectives import forward_kl, reverse_kl


@dataclass(frozen=True)
class Problem:
    """The linear-Gaussian problem; `sigma` is the posterior's (and the prior's) standard deviation."""

    bias: float = 0.7
    scatter: float = 1.0
    tau: float = 0.5
    sigma: float = 0.5


@dataclass(frozen=True)
class Leakage:
    """Where the objective settles at one gamma.

    `alpha` is the posterior's leakage, `contamination` the prior's: how far its mean is from the one that knows x
    alone.
    """

    gamma: float
    alpha: float
    contamination: float


def closed_form(problem: Problem, gamma: float) -> Leakage:
    """Prop. C.1 and C.4 on this problem."""
    second_moment = problem.scatter**2 + problem.bias**2
    k = problem.tau**2 * problem.scatter**2 / second_moment
    alpha = 1 / (1 + k * gamma / problem.sigma**2)
    return Leakage(gamma, alpha, alpha * problem.bias)


def optimised(
    problem: Problem, gamma: float, beta: float = 1.0, steps: int = 800, samples: int = 256, seed: int = 0
) -> Leakage:
    """What gradient descent on `methods/amvl/objectives.py` finds: L_NTP + beta L_fwd + gamma L_rev from alpha = 0.

    x and e are drawn once and scaled to the problem's exact moments, so that nothing but the optimiser's rest is
    between this and the closed form. E over z of -log p(y | z) is taken exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    x_N, e_N = _exact(torch.randn(2, samples, generator=generator, dtype=torch.float64))
    e_N = problem.bias + problem.scatter * e_N
    y_N = x_N + e_N
    alpha, slope, offset = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(3))
    logvar_N1 = torch.full((samples, 1), 2 * torch.log(torch.tensor(problem.sigma)).item(), dtype=torch.float64)
    # Plain descent: with stop-gradients the three gradients are those of no one function, and it has nothing to assume.
    optimiser = torch.optim.SGD([alpha, slope, offset], lr=0.01)
    for _ in range(steps):
        posterior = Gaussian((x_N + alpha * e_N)[:, None], logvar_N1)
        prior = Gaussian((slope * x_N + offset)[:, None], logvar_N1)
        ntp = ((y_N[:, None] - posterior.mean).square() + problem.sigma**2).mean() / (2 * problem.tau**2)
        loss = (
            ntp + beta * forward_kl(posterior, prior, "sum").mean() + gamma * reverse_kl(posterior, prior, "sum").mean()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Leakage(gamma, alpha.item(), offset.item())


def _exact(value_2N: Tensor) -> Tensor:
    """Two draws with mean 0, variance 1 and no correlation, exactly."""
    first, second = value_2N - value_2N.mean(1, keepdim=True)
    second = second - (second @ first) / (first @ first) * first
    return torch.stack([part / part.square().mean().sqrt() for part in (first, second)])
