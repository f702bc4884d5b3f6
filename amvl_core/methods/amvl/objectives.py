"""The terms of the objective (Eq. 3, 4, 10, 11) as pure functions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from amvl_core.methods.amvl.gaussian import Gaussian, kl_divergence

Reduction = Literal["sum", "mean"]


def forward_kl(posterior: Gaussian, prior: Gaussian, reduction: Reduction, stop_gradient: bool = True) -> Tensor:
    """KL(sg[q] || p) per slot, [..., K] (Eq. 3): moves the prior only. The objective takes its mean (B.4)."""
    return kl_divergence(posterior.detach() if stop_gradient else posterior, prior, reduction)


def reverse_kl(posterior: Gaussian, prior: Gaussian, reduction: Reduction, stop_gradient: bool = True) -> Tensor:
    """KL(sg[p] || q) per slot, [..., K] (Eq. 4): moves the posterior only. The objective takes its mean (B.4)."""
    return kl_divergence(prior.detach() if stop_gradient else prior, posterior, reduction)
