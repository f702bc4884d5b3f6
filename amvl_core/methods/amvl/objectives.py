"""The terms of the objective (Eq. 3, 4, 10, 11) as pure functions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from amvl_core.methods.amvl.gaussian import Gaussian, kl_divergence, widen

Reduction = Literal["sum", "mean"]


def token_losses(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """-log p of each label token, [N], in float32 or wider (Eq. 11).

    A micro-batch's loss is their sum divided by the number of label tokens of the global batch, so that the sum over
    micro-batches is the mean over all tokens wherever they were placed.
    """
    return functional.cross_entropy(widen(logits_NV), labels_N, reduction="none")


def forward_kl(posterior: Gaussian, prior: Gaussian, reduction: Reduction, stop_gradient: bool = True) -> Tensor:
    """KL(sg[q] || p) per slot, [..., K] (Eq. 3): moves the prior only. The objective takes its mean (B.4)."""
    return kl_divergence(posterior.detach() if stop_gradient else posterior, prior, reduction)


def reverse_kl(posterior: Gaussian, prior: Gaussian, reduction: Reduction, stop_gradient: bool = True) -> Tensor:
    """KL(sg[p] || q) per slot, [..., K] (Eq. 4): moves the posterior only. The objective takes its mean (B.4)."""
    return kl_divergence(prior.detach() if stop_gradient else prior, posterior, reduction)
