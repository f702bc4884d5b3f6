"""Which part of the image a latent looks at: occlusion heat maps (Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import collate
from amvl_core.data.encode import Encoded
from amvl_core.methods.amvl.prefix import read
from amvl_core.methods.amvl.probes import Prober

MAX_CELLS = 16
"""Cells along the longer side of a heat map; a larger grid of merged patches is covered in blocks."""


@torch.inference_mode()
def occlusion_map(prober: Prober, item: StoredSample, rows: int) -> np.ndarray:
    """The L2 shift of each slot's prior mean when a cell of the item's first image is masked, [height, width, K].

    A cell is one merged patch (four patches of the vision encoder, one image token), or a square block of them where
    the grid is larger than MAX_CELLS. Masked pixels take the image's mean colour, so that nothing darker or brighter
    than the image comes in; the vision encoder runs on every masked image, `rows` of them at a time. Raises DataError
    for an item without an image.
    """
    encoded = prober.encode(item)
    if encoded.image_grid_thw is None:
        raise DataError(f"{item.sample_id} has no image to mask")
    merge = prober.model.config.vision_config.spatial_merge_size
    height, width = (int(size) // merge for size in encoded.image_grid_thw[0][1:])
    size = math.ceil(max(height, width) / MAX_CELLS)
    cells = (math.ceil(height / size), math.ceil(width / size))
    versions = [encoded, *_masked(encoded, (height, width), cells, size, merge, prober)]
    means = []
    for first in range(0, len(versions), rows):
        batch = collate(versions[first : first + rows])
        embeds_ND, positions_3N = prober.method.embed(batch), prober.method.positions(batch)
        reading = read(prober.model, batch, embeds_ND, positions_3N, prober.method.config.posterior_positions)
        means.append(reading.prior.mean.double().cpu())
    mean_NKZ = torch.cat(means)
    shift_NK = (mean_NKZ[1:] - mean_NKZ[0]).norm(dim=-1)
    return np.asarray(shift_NK.reshape(*cells, -1).numpy())


def _masked(
    encoded: Encoded, grid: tuple[int, int], cells: tuple[int, int], size: int, merge: int, prober: Prober
) -> Iterator[Encoded]:
    """The sample with one cell masked after another, row by row.

    The image processor writes the merge x merge patches of a merged one behind each other, merged patches row by row.
    """
    assert encoded.pixel_values is not None
    per_merged, channels = merge**2, prober.model.config.vision_config.in_channels
    first = encoded.pixel_values[: grid[0] * grid[1] * per_merged]
    mean_C = first.reshape(len(first), channels, -1).mean((0, 2))
    blank = np.repeat(mean_C, first.shape[1] // channels)
    for row in range(cells[0]):
        for column in range(cells[1]):
            pixels = encoded.pixel_values.copy()
            for y in range(row * size, min((row + 1) * size, grid[0])):
                for x in range(column * size, min((column + 1) * size, grid[1])):
                    at = (y * grid[1] + x) * per_merged
                    pixels[at : at + per_merged] = blank
            yield replace(encoded, pixel_values=pixels)
