"""Asymmetric mutual variational learning (Eq. 10): L = L_NTP + beta L_fwd + gamma L_rev."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.config import AmvlMethod, LatentConfig
from amvl_core.data.batch import Batch
from amvl_core.gaussian import Gaussian
from amvl_core.methods.base import Clock, Method, StepOutput
from amvl_core.modeling import AMVLForConditionalGeneration, load_amvl
from amvl_core.objectives import forward_kl, next_token_loss, reverse_kl
from amvl_core.passes import run_passes
from amvl_core.processor import AMVLProcessor
from amvl_core.schedules import ramp


class Amvl(Method):
    """Prior, posterior and decoder passes; the prior learns from the forward KL, the posterior from NTP and the
    reverse KL. With a shared head the stop-gradient blocks a branch, not the parameters.
    """

    model: AMVLForConditionalGeneration

    def __init__(self, model: Any, config: AmvlMethod) -> None:
        super().__init__(model)
        self.config = config

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """An AMVL model, from a checkpoint of its own or a stock Qwen2.5-VL one."""
        return load_amvl(folder, processor, latent, **kwargs)

    @classmethod
    def num_slots(cls, latent: LatentConfig) -> int:
        """K."""
        return latent.num_slots

    def new_token_rows(self) -> list[int]:
        """The slots and both markers."""
        config = self.model.config
        assert config.block_start_token_id is not None and config.block_end_token_id is not None
        return [config.block_start_token_id, *(config.slot_token_ids or []), config.block_end_token_id]

    def weights(self, step: int) -> tuple[float, float]:
        """beta_t and gamma_t after `step` optimiser steps (App. E)."""
        c = self.config
        return (
            ramp(step, c.beta_start, c.beta_warmup, c.beta_max),
            ramp(step, c.gamma_start, c.gamma_warmup, c.gamma_max),
        )

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """The objective and its terms."""
        c = self.config

        def draw(posterior: Gaussian) -> Tensor:
            return posterior.sample(latent_noise(clock, batch.sample_ids, posterior.mean))

        passes = run_passes(self.model, batch, self.embed(batch), draw, c.posterior_positions)
        ntp = next_token_loss(passes.logits_NV, passes.labels_N, clock.num_tokens)
        forward = forward_kl(passes.posterior, passes.prior, c.kl_reduction, c.stop_gradient_forward)
        reverse = reverse_kl(passes.posterior, passes.prior, c.kl_reduction, c.stop_gradient_reverse)
        beta, gamma = self.weights(clock.step)
        loss = ntp + beta * forward + gamma * reverse
        mean_p, mean_q = passes.prior.mean.detach().float(), passes.posterior.mean.detach().float()
        terms: dict[str, Tensor | float] = {
            "loss": loss.detach(),
            "ntp": ntp.detach(),
            "kl_forward": forward.detach(),
            "kl_reverse": reverse.detach(),
            "beta": beta,
            "gamma": gamma,
            "cosine": functional.cosine_similarity(mean_p, mean_q, dim=-1).mean(),
            "prior_norm": mean_p.norm(dim=-1).mean(),
            "posterior_norm": mean_q.norm(dim=-1).mean(),
            "posterior_sigma": torch.exp(0.5 * passes.posterior.logvar.detach().float()).mean(),
        }
        return StepOutput(loss, terms)


def latent_noise(clock: Clock, sample_ids: list[str], like_BKZ: Tensor) -> Tensor:
    """Standard normal noise [B, K, Z], keyed by (seed, step, sample): the same wherever a sample is placed."""
    rows = []
    for sample_id in sample_ids:
        key = hashlib.sha256(f"{clock.seed}/{clock.step}/{sample_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        rows.append(torch.randn(like_BKZ.shape[1:], generator=generator))
    return torch.stack(rows).to(like_BKZ)
