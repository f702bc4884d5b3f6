"""Where the latents lie: Table 7, the similarity of slots (Figure 4, left), active units and KL per slot.

Arrays are float64. Shape suffixes: N samples, K slots, Z latent dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TABLE_7 = {
    "NTP": {"S_p": 1.9243, "S_q": 2.2326, "D_L2": 16.9488, "cos": -0.0190, "D_shift": 16.6418},
    "NTP+Rev": {"S_p": 0.4453, "S_q": 0.5177, "D_L2": 3.6960, "cos": 0.9594, "D_shift": 3.6294},
    "NTP+Fwd": {"S_p": 0.6359, "S_q": 0.8707, "D_L2": 5.6528, "cos": 0.8697, "D_shift": 5.5484},
    "AMVL": {"S_p": 0.6786, "S_q": 0.8257, "D_L2": 5.4317, "cos": 0.8883, "D_shift": 5.3240},
}
"""The paper's values, of a 7B model with k = 8 and d = 512."""

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active where the variance of its posterior mean over samples is larger (Burda et al. 2016)."""


class Latents(NamedTuple):
    """Prior and posterior of N samples, each [N, K, Z]."""

    prior_mean: np.ndarray
    prior_logvar: np.ndarray
    posterior_mean: np.ndarray
    posterior_logvar: np.ndarray


def geometry(latents: Latents) -> dict[str, float]:
    """Table 7's quantities of the slot-means of the means, and the same with each cloud's centre taken off.

    S: mean distance to the own centre. D_L2, cos: mean distance and cosine of a sample's prior and posterior. D_shift:
    distance of the centres. In the paper D_L2 is almost D_shift in every row: one constant offset makes nearly all of
    the distance, so `D_L2_centred` and `cos_centred` say how alike the two are apart from it.
    """
    p_NZ, q_NZ = latents.prior_mean.mean(1), latents.posterior_mean.mean(1)
    c_p, c_q = p_NZ.mean(0), q_NZ.mean(0)
    return {
        "S_p": _length(p_NZ - c_p),
        "S_q": _length(q_NZ - c_q),
        "D_L2": _length(p_NZ - q_NZ),
        "cos": _cosine(p_NZ, q_NZ),
        "D_shift": float(np.linalg.norm(c_p - c_q)),
        "D_L2_centred": _length((p_NZ - c_p) - (q_NZ - c_q)),
        "cos_centred": _cosine(p_NZ - c_p, q_NZ - c_q),
    }


def slot_similarity(mean_NKZ: np.ndarray) -> np.ndarray:
    """Mean over samples of the cosine between slots, [K, K] (Figure 4, left)."""
    unit_NKZ = mean_NKZ / np.maximum(np.linalg.norm(mean_NKZ, axis=-1, keepdims=True), 1e-12)
    similarity: np.ndarray = np.einsum("nkz,nlz->kl", unit_NKZ, unit_NKZ) / len(mean_NKZ)
    return similarity


def kl_per_slot(latents: Latents) -> np.ndarray:
    """KL(q || p) of each slot in nats, summed over dimensions (Eq. 28), mean over samples, [K]."""
    difference = latents.posterior_logvar - latents.prior_logvar
    squares = (latents.posterior_mean - latents.prior_mean) ** 2
    terms = 0.5 * (np.exp(difference) + squares * np.exp(-latents.prior_logvar) - 1.0 - difference)
    return np.asarray(terms.sum(-1).mean(0))


def active_units(latents: Latents) -> int:
    """Latent dimensions (of K x Z) whose posterior mean varies over samples by more than 0.01 (Burda et al. 2016)."""
    return int((latents.posterior_mean.var(0) > ACTIVE_VARIANCE).sum())


def spread(mean_NKZ: np.ndarray) -> np.ndarray:
    """Mean distance of a slot's latent to its centre over samples, [K]: the unit in which shifts are given."""
    return np.asarray(np.linalg.norm(mean_NKZ - mean_NKZ.mean(0), axis=-1).mean(0))


def _length(difference_NZ: np.ndarray) -> float:
    return float(np.linalg.norm(difference_NZ, axis=-1).mean())


def _cosine(first_NZ: np.ndarray, second_NZ: np.ndarray) -> float:
    """Mean cosine; a vector of length 0 has cosine 0."""
    lengths = np.linalg.norm(first_NZ, axis=-1) * np.linalg.norm(second_NZ, axis=-1)
    return float(((first_NZ * second_NZ).sum(-1) / np.maximum(lengths, 1e-12)).mean())
