"""AMVL's objective written out with the stock model: each sample alone, three whole passes, nothing shared.

    prior      [x, <abs>, slots]
    posterior  [x, <abs>, y, slots]
    decoder    [x, <abs>, Z, </abs>, y without its hidden steps]

It is what the shared-prefix step is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.method import latent_noise
from amvl_core.methods.amvl.objectives import forward_kl, reverse_kl
from amvl_core.methods.method import Clock
from amvl_core.methods.written_mask import written_mask


def stock_hidden(model: Any, embeds: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
    """The stock text stack on one sample, causal, or under an additive mask [1, 1, T, T]."""
    return model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def samples(model: Any, data: Batch) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
    """Name, ids, labels, embeddings [1, T, D] and M-RoPE positions [3, 1, T] of each sample."""
    patches = images = start = 0
    for name, length, count in zip(data.sample_ids, data.lengths, data.num_images, strict=True):
        ids, labels = (part[start : start + length].to(model.device) for part in (data.input_ids_N, data.labels_N))
        start += length
        embeds = model.get_input_embeddings()(ids)[None]
        if count and data.image_grid_thw is not None and data.pixel_values is not None:
            grid = data.image_grid_thw[images : images + count]
            images += count
            pixels = data.pixel_values[patches : patches + int(grid.prod(-1).sum())]
            patches += len(pixels)
            with torch.no_grad():
                given = pixels.to(model.device), grid.to(model.device)
                features = torch.cat(model.model.get_image_features(*given).pooler_output).to(embeds.dtype)
            embeds = embeds.clone()
            embeds[0, ids == model.config.image_token_id] = features
            is_image = (ids == model.config.image_token_id).int()[None]
            positions, _ = model.model.get_rope_index(ids[None], is_image, image_grid_thw=given[1])
        else:
            positions = torch.arange(length, device=model.device).expand(3, 1, -1)
        yield name, ids, labels, embeds, positions


def three_pass(model: Any, data: Batch, config: AmvlMethod, clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole objective and its terms, as shares of those of the global batch."""
    k = model.config.num_slots
    nll, priors, posteriors = [], [], []
    hidden_tokens = data.hidden_tokens or [0] * len(data.lengths)
    for (name, ids, labels, embeds, positions), hidden in zip(samples(model, data), hidden_tokens, strict=True):
        start = ids.tolist().index(model.config.slot_token_ids[0])
        x, slots, end = embeds[:, :start], embeds[:, start : start + k], embeds[:, start + k : start + k + 1]
        y = embeds[:, start + k + 1 :]
        mask = written_mask(model, ids[: start + k])
        prior = model.prior(stock_hidden(model, torch.cat([x, slots], 1), positions[..., : start + k], mask)[:, -k:])
        # Without the block before it y stands k + 1 places earlier; the slots follow it.
        before, after = positions[..., :start], positions[..., start + k + 1 :] - k - 1
        behind = after.max() + 1 + torch.arange(k, device=model.device).expand(3, 1, -1)
        if config.posterior_positions == "aligned":
            behind = positions[..., start : start + k]
        placed = torch.cat([before, after, behind], -1)
        mask = written_mask(model, torch.cat([ids[:start], ids[start + k + 1 :], ids[start : start + k]]))
        posterior = model.posterior(stock_hidden(model, torch.cat([x, y, slots], 1), placed, mask)[:, -k:])
        # The decoder has no hidden steps: what is left of y stands where y began.
        behind_block, first = start + k + 1, start + k + 1 + hidden
        ahead, rest = positions[..., :behind_block], positions[..., first:]
        written = torch.cat([ahead, rest - rest[..., :1] + positions[..., behind_block : behind_block + 1]], -1)
        labels = torch.cat([labels[:behind_block], labels[first:]])
        keep = labels[1:] != IGNORED
        # Z sees no image, as if it were so many end markers.
        mask = written_mask(model, torch.cat([ids[:start], ids[start + k].repeat(k + 1), ids[first:]]))
        for noise in latent_noise(clock, [name], config.posterior_samples, posterior.mean):
            latent = model.injector(posterior.sample(noise).to(embeds.dtype))
            states = stock_hidden(model, torch.cat([x, latent, end, y[:, hidden:]], 1), written, mask)
            logits = model.lm_head(states[0, :-1][keep])
            logits = logits if logits.dtype == torch.float64 else logits.float()
            nll.append(functional.cross_entropy(logits, labels[1:][keep], reduction="sum"))
        priors.append(prior)
        posteriors.append(posterior)
    p = Gaussian(torch.cat([g.mean for g in priors]), torch.cat([g.logvar for g in priors]))
    q = Gaussian(torch.cat([g.mean for g in posteriors]), torch.cat([g.logvar for g in posteriors]))
    ntp = sum(nll) / clock.num_tokens / config.posterior_samples
    share = len(data.lengths) / clock.num_samples
    kl = share * forward_kl(q, p, config.kl_reduction, config.stop_gradient_forward).mean()
    back = share * reverse_kl(q, p, config.kl_reduction, config.stop_gradient_reverse).mean()
    beta = config.beta_max * min(1.0, max(0, clock.step - config.beta_start) / config.beta_warmup)
    gamma = config.gamma_max * min(1.0, max(0, clock.step - config.gamma_start) / config.gamma_warmup)
    loss = config.ntp_weight * ntp + beta * kl + gamma * back
    return loss, {"ntp": ntp, "kl_forward": kl, "kl_reverse": back}
