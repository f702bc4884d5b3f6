"""AMVL's own pictures: Table 7, Figures 3 and 4, and leakage against gamma."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from amvl_core.pages.charts import COLOURS, GRID, INK, style

if TYPE_CHECKING:
    from amvl_core.methods.amvl.analysis.leakage import Leakage


def similarity_chart(similarity: Sequence[Sequence[float]]) -> Figure:
    """Mean cosine between the latents of each two slots (Figure 4, left)."""
    slots = len(similarity)
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axis: Any = figure.subplots()
    image = axis.imshow(np.array(similarity), vmin=-1, vmax=1, cmap="RdBu_r")
    names = [str(i) for i in range(1, slots + 1)]
    axis.set_xticks(range(slots), names)
    axis.set_yticks(range(slots), names)
    if slots <= 10:
        for i, row in enumerate(similarity):
            for j, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 else INK
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_xlabel("slot")
    axis.set_ylabel("slot")
    axis.set_title("mean cosine of latents", loc="left", fontsize=10, color=INK)
    axis.tick_params(colors=INK, labelsize=9, length=0)
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def slots_chart(shifts: Mapping[str, Sequence[float]], unit: str) -> Figure:
    """A bar per slot and name: sensitivity to permutations (Figure 4, right), or KL."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axis: Any = figure.subplots()
    width = 0.8 / len(shifts)
    for i, (name, values) in enumerate(shifts.items()):
        places = [x - 0.4 + (i + 0.5) * width for x in range(len(values))]
        axis.bar(places, values, width * 0.92, color=COLOURS[i], label=name, zorder=2)
        axis.set_xticks(range(len(values)), [str(slot) for slot in range(1, len(values) + 1)])
    axis.set_xlabel("slot")
    axis.set_ylabel(unit)
    style(axis)
    if len(shifts) > 1:
        figure.legend(loc="outside upper center", ncols=len(shifts), frameon=False, fontsize=9)
    return figure


def geometry_chart(prior_NZ: np.ndarray, posterior_NZ: np.ndarray) -> Figure:
    """Slot-means of prior and posterior on the two main directions of both (Table 7): as they are, and centred."""
    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    axes: Any = figure.subplots(1, 2)
    clouds = {
        "as they are": (prior_NZ, posterior_NZ),
        "each centred": (prior_NZ - prior_NZ.mean(0), posterior_NZ - posterior_NZ.mean(0)),
    }
    for axis, (name, (p, q)) in zip(axes, clouds.items(), strict=True):
        both = np.concatenate([p, q])
        found = np.linalg.svd(both - both.mean(0), full_matrices=False)[2][:2]
        directions = np.pad(found, ((0, 2 - len(found)), (0, 0)))  # latents of one dimension have one
        a, b = (cloud @ directions.T for cloud in (p - both.mean(0), q - both.mean(0)))
        for first, second in zip(a, b, strict=True):
            axis.plot([first[0], second[0]], [first[1], second[1]], color=GRID, linewidth=0.6, zorder=1)
        axis.plot(a[:, 0], a[:, 1], ".", color=COLOURS[0], markersize=5, label="prior", zorder=2)
        axis.plot(b[:, 0], b[:, 1], ".", color=COLOURS[1], markersize=5, label="posterior", zorder=2)
        axis.set_title(name, loc="left", fontsize=10, color=INK)
        axis.set_aspect("equal", adjustable="datalim")
        style(axis)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def heat_maps(images: Sequence[Any], captions: Sequence[str], maps_HWK: Sequence[np.ndarray]) -> Figure:
    """Occlusion heat maps (Figure 3): an image a row, first as it is, then under the shift of each slot's latent.

    A row has one scale, from 0 to its largest shift, which its caption gives.
    """
    slots = maps_HWK[0].shape[2]
    figure = Figure(figsize=(1.7 * (slots + 1), 2.15 * len(images)), layout="constrained")
    axes: Any = figure.subplots(len(images), slots + 1, squeeze=False)
    for row, (image, caption, map_HWK) in enumerate(zip(images, captions, maps_HWK, strict=True)):
        largest = float(map_HWK.max())
        for column in range(slots + 1):
            axis = axes[row][column]
            axis.imshow(image.convert("L").convert("RGB") if column else image)
            if column:
                extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
                axis.imshow(
                    map_HWK[:, :, column - 1], extent=extent, cmap="inferno", alpha=0.65, vmin=0, vmax=largest or 1.0
                )
            axis.set_axis_off()
            if row == 0 and column:
                axis.set_title(f"slot {column}", fontsize=9, color=INK)
        text = "\n".join(textwrap.wrap(caption, 26 * (slots + 1) // 2)[:2])
        axes[row][0].set_title(f"{text}\nlargest shift {largest:.3g}", fontsize=8, loc="left", color=INK)
    return figure


def contamination_chart(closed: Sequence[Leakage], found: Sequence[Leakage], sharp: Sequence[Leakage]) -> Figure:
    """The prior's contamination against gamma: closed form, optimised, and with a sharper posterior (Prop. C.4)."""
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axis: Any = figure.subplots()
    for points, label, line, colour in (
        (closed, "closed form", "-", COLOURS[0]),
        (sharp, "closed form, sharper posterior", "--", COLOURS[2]),
        (found, "optimised", "o", COLOURS[1]),
    ):
        axis.plot([p.gamma for p in points], [p.contamination for p in points], line, color=colour, label=label)
    axis.set_xlabel("gamma")
    axis.set_ylabel("shift of the prior's mean")
    axis.set_ylim(bottom=0)
    style(axis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def lines_chart(x: str, columns: dict[str, list[Any]], title: str) -> Figure:
    """A small panel for every column but `x`, over `x`; columns `NAME_low` and `NAME_high` are the interval of NAME."""
    names = [name for name in columns if name != x and not name.endswith(("_low", "_high"))]
    figure = Figure(figsize=(9.6, 2.6 * -(-len(names) // 3)), layout="constrained")
    axes: Any = figure.subplots(-(-len(names) // 3), 3, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(columns[x], columns[name], "o-", color=COLOURS[0], linewidth=1.6, markersize=5)
        if f"{name}_low" in columns:
            axis.vlines(columns[x], columns[f"{name}_low"], columns[f"{name}_high"], color=COLOURS[0], linewidth=2.2)
        axis.set_title(textwrap.fill(name, 38), loc="left", fontsize=8, color=INK)
        axis.set_xlabel(x, fontsize=8)
        style(axis)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    return figure
