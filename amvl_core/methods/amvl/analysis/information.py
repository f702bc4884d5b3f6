"""I_q(Z; Y | X): how much the posterior's latents say about the answer beyond the question (Prop. C.5).

    E KL(q(z|x,y) || p(z|x)) = I_q(Z; Y | X) + E KL(q(z|x) || p(z|x))

The first part of the KL is leakage that no prior can follow; the second is what a better prior would take away.

Shape suffixes: B questions, M candidate answers, S draws, K slots, Z latent dimensions, E = K x Z.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amvl_core.backbones.backbone import backbone_of
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.prefix import ContextRow, PosteriorPositions, Rows, first_rows, joined
from amvl_core.rows.bottleneck import token_kinds
from amvl_core.rows.packed import run_row
from amvl_core.rows.spans import Span, bottleneck_spans


class Bounds(NamedTuple):
    """Of each question, in nats, [B]: the mean over answers and draws that falls below I_q, and the one above it."""

    lower: Tensor
    upper: Tensor


def information_bounds(posterior: Gaussian, draws: int, generator: torch.Generator) -> Bounds:
    """Bounds of I(Z; Y) for Gaussians [B, M, E], one for each of M >= 2 candidate answers of a question.

    Lower: q(z) is replaced by the mean of the M densities (Oord et al. 2018, with the true densities; Poole et al.
    2019, Eq. 10). It is exactly the information about which of the M answers was given, at most log M, and in
    expectation below I(Z; Y) where the answers are drawn from p(y|x). Upper: the mean of the other M - 1 densities
    (leave one out, Poole et al. 2019, Eq. 13). Draws are in float64 on the CPU.
    """
    mean_BME, logvar_BME = (part.detach().cpu().double() for part in posterior)
    answers = mean_BME.shape[1]
    if answers < 2:
        raise ValueError(f"{answers} candidate answer per question; information about the answer needs at least 2")
    noise_SBME = torch.randn(draws, *mean_BME.shape, generator=generator, dtype=torch.float64)
    z_SBME = mean_BME + torch.exp(0.5 * logvar_BME) * noise_SBME
    # log q(z of answer m | answer n); the constant of the Gaussian cancels.
    squares = (z_SBME[:, :, :, None] - mean_BME[:, None]).square() * torch.exp(-logvar_BME)[:, None]
    density_SBMN = -0.5 * (squares + logvar_BME[:, None]).sum(-1)
    own_SBM = density_SBMN.diagonal(dim1=-2, dim2=-1)
    others = density_SBMN.masked_fill(torch.eye(answers, dtype=torch.bool), -torch.inf)
    lower = own_SBM - (density_SBMN.logsumexp(-1) - math.log(answers))
    upper = own_SBM - (others.logsumexp(-1) - math.log(answers - 1))
    return Bounds(lower.mean((0, 2)), upper.mean((0, 2)))


def cross_posteriors(model: Any, reading: ContextRow, positions: PosteriorPositions) -> Gaussian:
    """q(Z | x of sample i, y of sample j) for all pairs of a batch, [B, B, K, Z]; hidden steps are part of y.

    Every answer continues every question's keys and values, which are those of `reading`: no question is run again.
    """
    slots = model.config.num_slots
    kinds_K = token_kinds(model, torch.tensor(model.config.slot_token_ids))
    rows: list[Rows] = []
    spans: list[Span] = []
    for i, asked in enumerate(reading.samples):
        for j, answering in enumerate(reading.samples):
            # y stands behind x and the start marker, wherever x ends.
            shift_31 = asked.x.positions_3N[:, -1:] - answering.x.positions_3N[:, -1:]
            y_3N = answering.reply.positions_3N - slots - 1 + shift_31
            slots_3K = asked.slots.positions_3N
            if positions == "natural":
                slots_3K = (y_3N.max() + 1 + torch.arange(slots, device=y_3N.device)).expand(3, -1)
            rows += [Rows(answering.reply.embeds_ND, y_3N), Rows(asked.slots.embeds_ND, slots_3K)]
            x, reply = first_rows(reading.runs[i], reading.blocks[i].prefix), reading.blocks[j].reply
            spans += bottleneck_spans([*reading.kinds[j], *kinds_K], x, 1, len(spans), reply)
    hidden_RD, _ = run_row(backbone_of(model).text(model), *joined(rows), spans, [reading.context])
    size = len(reading.samples)
    posterior: Gaussian = model.posterior(hidden_RD.unflatten(0, (size, size, slots)))
    return posterior
