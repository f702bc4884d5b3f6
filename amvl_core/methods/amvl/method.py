"""Asymmetric mutual variational learning (Eq. 10): L = L_NTP + beta L_fwd + gamma L_rev."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.data.batch import Batch
from amvl_core.methods.amvl.analysis.geometry import ACTIVE_VARIANCE
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.modeling import AMVLForConditionalGeneration, load_amvl
from amvl_core.methods.amvl.objectives import forward_kl, reverse_kl
from amvl_core.methods.amvl.prefix import Passes, find_blocks, run_passes
from amvl_core.methods.amvl.schedules import ramp
from amvl_core.methods.draws import keyed_generator
from amvl_core.methods.loading import block_ids
from amvl_core.methods.losses import token_losses
from amvl_core.methods.method import Clock, Method, StepOutput
from amvl_core.methods.probing import AnalysingProber
from amvl_core.rows.cut import Cut


class Amvl(Method):
    """Prior, posterior and decoder on a shared prefix; the prior learns from the forward KL, the posterior from NTP
    and the reverse KL. With a shared head the stop-gradient blocks a branch, not the parameters.
    """

    model: AMVLForConditionalGeneration
    config: AmvlMethod

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """An AMVL model, from a checkpoint of its own or a stock Qwen2.5-VL one."""
        return load_amvl(folder, processor, latent, **kwargs)

    @staticmethod
    def drawn(model: AMVLForConditionalGeneration, keys: Sequence[int], tau: float) -> dict[str, Any]:
        """What a prompt's pass takes so that its latents are drawn; one key a prompt seeds its noise."""
        shape = (model.config.num_slots, int((model.config.latent or {})["dim"]))
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(key)) for key in keys]
        return {"tau": tau, "latent_noise": torch.stack(noise)}

    @staticmethod
    def prober(model: AMVLForConditionalGeneration, processor: Any, method: AmvlMethod) -> AnalysingProber:
        """Its model under every change of its latents."""
        from amvl_core.methods.amvl import probes

        return probes.Prober(model, processor, method)

    def new_token_rows(self) -> list[int]:
        """The slots and both markers."""
        return block_ids(self.model)

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
            return posterior.sample(latent_noise(clock, batch.sample_ids, c.posterior_samples, posterior.mean))

        passes = run_passes(self.model, batch, self.embed(batch), self.positions(batch), draw, c.posterior_positions)
        losses_MN = torch.stack([token_losses(logits_NV, passes.labels_N) for logits_NV in passes.logits_MNV])
        ntp = losses_MN.mean(0).sum() / clock.num_tokens
        forward_BK = forward_kl(passes.posterior, passes.prior, c.kl_reduction, c.stop_gradient_forward)
        reverse_BK = reverse_kl(passes.posterior, passes.prior, c.kl_reduction, c.stop_gradient_reverse)
        beta, gamma = self.weights(clock.step)
        share = len(batch.lengths) / clock.num_samples
        kl, kl_reverse = share * forward_BK.mean(), share * reverse_BK.mean()
        further = {name: share * value for name, value in self.further_terms(passes).items()}
        first, others = c.ntp_weight * ntp, beta * kl + gamma * kl_reverse + sum(further.values())
        means = {
            "kl_slots": forward_BK.detach().mean(0),
            "beta": torch.tensor(beta),
            "gamma": torch.tensor(gamma),
            **_latent_terms(passes),
        }
        if c.posterior_samples > 1:
            means["ntp_variance"] = _variance_over_draws(losses_MN.detach(), passes.sample_N, len(batch.lengths))
        terms = {"loss": first + others, "ntp": ntp, "kl_forward": kl, "kl_reverse": kl_reverse, **further}
        return StepOutput(
            first if passes.cut else first + others,
            {name: value.detach() for name, value in terms.items()}
            | {name: share * value for name, value in means.items()},
            partial(_finite, losses_MN.detach(), passes.sample_N, forward_BK.detach(), reverse_BK.detach()),
            partial(_rest, passes.cut, others) if passes.cut else None,
        )

    def further_terms(self, passes: Passes) -> dict[str, Tensor]:
        """Terms that are added to the objective and logged by their names: each a mean over the batch's samples.

        The paper has none. A new term is a weight in `AmvlMethod` and an entry here (docs/extending.md).
        """
        return {}

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """Three whole passes for each sample."""
        from amvl_core.methods.amvl.reference import three_pass

        return three_pass(self.model, batch, self.config, clock)[0]

    def rows(self, batch: Batch) -> int:
        """Those of the context row, and of the decoder row once for each draw of Z."""
        slots, draws = self.model.config.slot_token_ids or [], self.config.posterior_samples
        blocks = find_blocks(batch, slots)
        context = sum(block.prefix + block.reply + 2 * len(slots) for block in blocks)
        return context + draws * sum(block.answer + len(slots) for block in blocks)

    def scalars(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """As the base's; the KL of each slot by its number, and the share of latent dimensions that are active."""
        terms = dict(terms)
        variance_KZ = terms.pop("mean_square") - terms.pop("mean").square()
        slots = {f"kl_slot_{number}": float(kl) for number, kl in enumerate(terms.pop("kl_slots"), 1)}
        active = float((variance_KZ > ACTIVE_VARIANCE).double().mean())
        return {**super().scalars(terms), **slots, "active_units": active}


def _rest(cut: Cut, others: Tensor, factor: Tensor | float) -> Tensor:
    """What is left to differentiate when the decoder row has been."""
    return cut.onward() + factor * others


def _finite(losses_MN: Tensor, sample_N: Tensor, forward_BK: Tensor, reverse_BK: Tensor) -> list[bool]:
    """Of each sample, whether the losses of its label tokens under every draw and its KLs are finite."""
    finite_B = (forward_BK.isfinite() & reverse_BK.isfinite()).all(1)
    finite_B[sample_N[~losses_MN.isfinite().all(0)]] = False
    return [bool(finite) for finite in finite_B]


@torch.no_grad()
def _latent_terms(passes: Passes) -> dict[str, Tensor]:
    """Norms, widths and the agreement of prior and posterior; moments of the posterior mean, [K, Z]."""
    prior, posterior = passes.prior, passes.posterior
    return {
        "cosine": functional.cosine_similarity(prior.mean, posterior.mean, dim=-1).mean(),
        "prior_norm": prior.mean.norm(dim=-1).mean(),
        "posterior_norm": posterior.mean.norm(dim=-1).mean(),
        "latent_norm": passes.latent_MBKZ.norm(dim=-1).mean(),
        "prior_sigma": torch.exp(0.5 * prior.logvar).mean(),
        "posterior_sigma": torch.exp(0.5 * posterior.logvar).mean(),
        "mean": posterior.mean.mean(0),
        "mean_square": posterior.mean.square().mean(0),
    }


def _variance_over_draws(losses_MN: Tensor, sample_N: Tensor, num_samples: int) -> Tensor:
    """Variance over draws of a sample's mean loss per token, averaged over samples: 0 without labels."""
    samples, index_N, counts_B = sample_N.unique(return_inverse=True, return_counts=True)
    sums_MB = losses_MN.new_zeros(len(losses_MN), len(samples)).index_add(1, index_N, losses_MN)
    return (sums_MB / counts_B).var(0).sum() / num_samples


def latent_noise(clock: Clock, sample_ids: list[str], draws: int, like_BKZ: Tensor) -> Tensor:
    """Standard normal noise [M, B, K, Z], keyed by (seed, step, sample): the same wherever a sample is placed.

    The first draw does not depend on how many follow.
    """
    rows = []
    for sample_id in sample_ids:
        generator = keyed_generator(clock.seed, clock.step, sample_id)
        rows.append(torch.stack([torch.randn(like_BKZ.shape[1:], generator=generator) for _ in range(draws)]))
    return torch.stack(rows, 1).to(like_BKZ)


METHOD = Amvl
