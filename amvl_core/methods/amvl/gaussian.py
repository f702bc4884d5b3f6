"""Diagonal Gaussians in mean and log-variance.

Shape suffixes: B samples, K slots, Z latent dimensions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from amvl_core.methods.losses import widen


class Gaussian(NamedTuple):
    """Mean and log-variance, both [..., Z]."""

    mean: Tensor
    logvar: Tensor

    def detach(self) -> Gaussian:
        """The same distribution, cut from the graph: the paper's sg[.]."""
        return Gaussian(self.mean.detach(), self.logvar.detach())

    def sample(self, noise: Tensor, tau: float = 1.0) -> Tensor:
        """z = mu + tau sigma eps (Eq. 9; App. I for tau other than 1). `noise` is eps, [..., Z]."""
        return self.mean + tau * torch.exp(0.5 * self.logvar) * noise


def kl_divergence(q: Gaussian, p: Gaussian, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """KL(q || p) in closed form (Eq. 12; log-variance form Eq. 28), in float32 or wider.

    `reduction` is over the latent dimensions; the result [...] is left per slot.
    """
    mean_q, logvar_q, mean_p, logvar_p = (widen(t) for t in (*q, *p))
    difference = logvar_q - logvar_p
    terms = 0.5 * (torch.exp(difference) + (mean_q - mean_p).square() * torch.exp(-logvar_p) - 1.0 - difference)
    return terms.sum(-1) if reduction == "sum" else terms.mean(-1)


def soft_clamp(value: Tensor, low: float, high: float) -> Tensor:
    """A smooth map onto (low, high) by tanh that is close to the identity in the middle."""
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    return middle + half * torch.tanh((value - middle) / half)
