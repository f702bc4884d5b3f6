"""What an analysis runs a model for: rows of its tables, a few samples at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amvl_core.contracts.sample import StoredSample
from amvl_core.methods.amvl.analysis.information import cross_posteriors, information_bounds
from amvl_core.methods.amvl.analysis.occlusion import occlusion_map
from amvl_core.methods.amvl.analysis.sensitivity import permutation_shifts
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.probes import Prober

DRAWS = 4
"""Of each posterior, for the bounds of the information."""


def latents(prober: Prober, samples: Sequence[StoredSample], seed: int) -> list[dict[str, Any]]:
    """Prior and posterior of every sample, and how far the prior moves when image or words are permuted."""
    with torch.inference_mode():
        _, reading = prober.read(samples)
    shifts = permutation_shifts(prober, samples, seed)
    columns = {
        "prior_mean": reading.prior.mean,
        "prior_logvar": reading.prior.logvar,
        "posterior_mean": reading.posterior.mean,
        "posterior_logvar": reading.posterior.logvar,
        "image_shift": shifts.image,
        "text_shift": shifts.text,
    }
    flat = {name: value.float().flatten(1).cpu().tolist() for name, value in columns.items()}
    return [{"sample_id": s.sample_id, **{k: v[i] for k, v in flat.items()}} for i, s in enumerate(samples)]


def information(prober: Prober, samples: Sequence[StoredSample], seed: int) -> list[dict[str, Any]]:
    """The bounds of I_q(Z; Y | X) for every question, over the targets of all of these samples."""
    with torch.inference_mode():
        _, reading = prober.read(samples)
        crossed = cross_posteriors(prober.model, reading, prober.method.config.posterior_positions)
        flat = Gaussian(crossed.mean.flatten(2), crossed.logvar.flatten(2))
        bounds = information_bounds(flat, draws=DRAWS, generator=torch.Generator().manual_seed(seed))
    return [
        {
            "sample_id": sample.sample_id,
            "lower": float(bounds.lower[i]),
            "upper": float(bounds.upper[i]),
            "candidates": len(samples),
        }
        for i, sample in enumerate(samples)
    ]


def occlusion(prober: Prober, samples: Sequence[StoredSample], rows: int) -> list[dict[str, Any]]:
    """The heat map of every sample, with its image."""
    stored = []
    for sample in samples:
        map_HWK = occlusion_map(prober, sample, rows)
        stored.append(
            {
                "sample_id": sample.sample_id,
                "question": sample.question,
                "answer": sample.answer,
                "image": sample.images[0],
                "shape": list(map_HWK.shape),
                "shift": map_HWK.flatten().tolist(),
            }
        )
    return stored
