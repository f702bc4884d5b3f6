"""Variational heads (Eq. 8, Table 8) and the latent injector (Eq. 9).

Shape suffixes: K slots, D hidden size, Z latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from amvl_core.methods.amvl.gaussian import Gaussian, soft_clamp
from amvl_core.methods.exact import exact_linear, exact_rms
from amvl_core.methods.losses import widen

LOGVAR_OFFSET = -1.0
"""Added to the head's log-variance, so that a fresh head starts with sigma below 1 and no early KL explodes."""


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]; the statistics are in float32 or wider."""
        wide = widen(x)
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class SwiGLU(nn.Module):
    """silu(x W_gate) * (x W_up), [..., D] -> [..., H]."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(size, hidden, bias=False)
        self.up = nn.Linear(size, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The gated hidden features."""
        return functional.silu(self.gate(x)) * self.up(x)


class ResidualBlock(nn.Module):
    """x + W_down SwiGLU(RMSNorm(x)): the extra depth of the `deeper` head."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm(size)
        self.glu = SwiGLU(size, hidden)
        self.down = nn.Linear(hidden, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x + self.down(self.glu(self.norm(x)))


def _trunk(kind: str, size: int, hidden: int) -> tuple[nn.Module, int]:
    if kind == "linear":
        return RMSNorm(size), size
    if kind == "mlp":
        return nn.Sequential(RMSNorm(size), nn.Linear(size, hidden), nn.GELU()), hidden
    native = nn.Sequential(RMSNorm(size), SwiGLU(size, hidden))
    if kind == "native":
        return native, hidden
    return nn.Sequential(ResidualBlock(size, hidden), native), hidden


class VariationalHead(nn.Module):
    """[mu, log sigma^2] = W_out SwiGLU(RMSNorm(H)) (Eq. 8); `kind` picks a row of Table 8."""

    def __init__(self, kind: str, size: int, hidden: int, dim: int, logvar_min: float, logvar_max: float) -> None:
        super().__init__()
        self.trunk, width = _trunk(kind, size, hidden)
        self.out = nn.Linear(width, 2 * dim)
        self.bounds = (logvar_min, logvar_max)

    def forward(self, hidden_KD: Tensor) -> Gaussian:
        """Final hidden states at the slots, [..., K, D] -> mean and log-variance, [..., K, Z], in float32 or wider."""
        mean, logvar = widen(self.out(self.trunk(hidden_KD))).chunk(2, dim=-1)
        return Gaussian(mean, soft_clamp(logvar + LOGVAR_OFFSET, *self.bounds))


class LatentInjector(nn.Module):
    """R^Z -> R^D: what stands in for the slot's embedding in the decoding pass.

    `scale` is set so that a sample of unit RMS comes out at the RMS of the token embeddings.
    """

    def __init__(self, kind: str, dim: int, size: int) -> None:
        super().__init__()
        if kind == "mlp":
            self.body: nn.Module = nn.Sequential(nn.Linear(dim, size), nn.GELU(), nn.Linear(size, size))
        else:
            self.body = nn.Linear(dim, size)
        self.scale = nn.Parameter(torch.ones(1))

    @torch.no_grad()
    def calibrate(self, embedding_rms: float, dim: int) -> None:
        """Sets `scale` from the RMS that unit Gaussian latents come out at; keeps the random state.

        Every process finds the same bits. (After a GELU that is next to certain: its own last bit is rounded away.)
        """
        values_NC = torch.randn(256, dim, generator=torch.Generator().manual_seed(0)).to(self.scale.device)
        for layer in self.body if isinstance(self.body, nn.Sequential) else [self.body]:
            values_NC = exact_linear(layer, values_NC) if isinstance(layer, nn.Linear) else layer(values_NC)
        self.scale.fill_(embedding_rms / exact_rms(values_NC))

    def forward(self, latent_KZ: Tensor) -> Tensor:
        """[..., K, Z] -> [..., K, D]."""
        return self.scale * self.body(latent_KZ)
