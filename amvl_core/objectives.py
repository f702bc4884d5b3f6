"""The terms of the objective (Eq. 3, 4, 10, 11) as pure functions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from amvl_core.gaussian import Gaussian, kl_divergence

Reduction = Literal["sum", "mean"]


def next_token_loss(logits_NV: Tensor, labels_N: Tensor, num_tokens: float) -> Tensor:
    """Sum over label tokens of -log p, divided by `num_tokens` (Eq. 11).

    `num_tokens` is the number of label tokens of the global batch over the number of micro-batches in it, so that
    averaging micro-batches gives the mean over all tokens wherever they were placed.
    """
    return functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum") / num_tokens


def forward_kl(posterior: Gaussian, prior: Gaussian, reduction: Reduction, stop_gradient: bool = True) -> Tensor:
    """KL(sg[q] || p), mean over samples and slots (Eq. 3, B.4): moves the prior only."""
    return kl_divergence(posterior.detach() if stop_gradient else posterior, prior, reduction).mean()


def reverse_kl(posterior: Gaussian, prior: Gaussian, reduction: Reduction, stop_gradient: bool = True) -> Tensor:
    """KL(sg[p] || q), mean over samples and slots (Eq. 4, B.4): moves the posterior only."""
    return kl_divergence(prior.detach() if stop_gradient else prior, posterior, reduction).mean()
