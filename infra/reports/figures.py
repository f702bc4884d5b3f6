"""Pictures of a run: training curves and scores."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from amvl_core.contracts.records import PRIOR, EvalRecord, VariantScore
from amvl_core.eval.faithfulness import excludes_zero

if TYPE_CHECKING:
    from amvl_core.methods.amvl.analysis.leakage import Leakage

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a task or question may hold `$`, and no formula

History = dict[str, list[tuple[int, float]]]
"""Metric `{stage}/{name}` -> [(optimiser step, value)]."""

SCHEDULES = ("beta", "gamma", "lr")
PERFORMANCE = ("grad_norm", "tokens_per_s", "data_wait")
DIAGNOSTICS = ("_norm", "_sigma", "cosine")
COLOURS = ("#2f5d8a", "#d1693b", "#4f9a6b", "#8a5aa8", "#b8973a", "#5f6b76")
STANDING = 10
"""Rows up to which the bars of a score chart stand; more lie, or their names could not be read."""
SHOWN_TASKS = 100
LABEL = 24
"""Characters in a line of a task's name beside its bars; it has two."""
_INK, _GRID, _BASELINE = "#222a33", "#dfe4e9", "#a9b2bb"


def curves(history: History, stages: list[str]) -> Figure:
    """One column a stage: loss and its terms above, learning rate and KL weights below (scaled to their maxima)."""
    stages = [stage for stage in stages if any(name.startswith(f"{stage}/") for name in history)]
    figure = Figure(figsize=(max(4.6 * len(stages), 5.5), 5.6), layout="constrained")
    axes: Any = figure.subplots(2, max(len(stages), 1), squeeze=False, height_ratios=(2, 1), sharex="col")
    for column, stage in enumerate(stages):
        series = {name.split("/", 1)[1]: points for name, points in history.items() if name.startswith(f"{stage}/")}
        top, bottom = axes[0][column], axes[1][column]
        terms = [name for name in series if name not in SCHEDULES + PERFORMANCE and not name.endswith(DIAGNOSTICS)]
        for i, name in enumerate(sorted(terms, key=lambda name: (name != "loss", name))):
            _line(top, series[name], name, COLOURS[i % len(COLOURS)], width=2.0 if name == "loss" else 1.3)
        for i, name in enumerate(name for name in SCHEDULES if name in series):
            largest = max(value for _, value in series[name])
            scaled = [(step, value / largest if largest else 0.0) for step, value in series[name]]
            _line(bottom, scaled, f"{name} (max {largest:.3g})", COLOURS[i], width=1.6)
        top.set_title(stage, loc="left", fontweight="bold", color=_INK)
        bottom.set_xlabel("optimiser step")
        bottom.set_ylim(-0.05, 1.1)
        for axis in (top, bottom):
            _style(axis)
            if axis.lines:
                axis.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel("loss terms")
    axes[1][0].set_ylabel("share of maximum")
    return figure


def score_chart(evaluations: dict[str, EvalRecord]) -> Figure:
    """Accuracy by task with 95 % intervals, one bar a model (label -> record), the majority answer as a line.

    From `STANDING` tasks on the bars lie, one row a task. Of more than `SHOWN_TASKS` the ones with most questions are
    shown; the whole comes last.
    """
    records = list(evaluations.values())
    final = records[-1]
    most = sorted(final.scores, key=lambda score: -score.n)[:SHOWN_TASKS]
    tasks = [score.task for score in (*(score for score in final.scores if score in most), final.overall)]
    lying = len(tasks) > STANDING
    size = (5.2, 0.4 * len(tasks) + 1.2) if lying else (max(1.0 * len(tasks) + 2.5, 6.0), 4.2)
    figure = Figure(figsize=size, layout="constrained")
    axis: Any = figure.subplots()
    width = 0.8 / len(records)
    for i, (label, record) in enumerate(evaluations.items()):
        by_task = {score.task: score for score in (*record.scores, record.overall)}
        scores = [by_task[task] for task in tasks]
        places = [x - 0.4 + (i + 0.5) * width for x in range(len(tasks))]
        values = [s.accuracy for s in scores]
        bounds = [[max(s.accuracy - s.low, 0.0) for s in scores], [max(s.high - s.accuracy, 0.0) for s in scores]]
        draw = axis.barh if lying else axis.bar
        draw(places, values, width * 0.92, color=COLOURS[i % len(COLOURS)], label=label, zorder=2)
        ends = {"xerr": bounds} if lying else {"yerr": bounds}
        at = (values, places) if lying else (places, values)
        axis.errorbar(*at, **ends, fmt="none", ecolor=_INK, elinewidth=1, capsize=2, zorder=3)
    majority = {score.task: score.majority for score in (*final.scores, final.overall)}
    across = axis.vlines if lying else axis.hlines
    for x, task in enumerate(tasks):
        said = "majority answer" if x == 0 else None
        style = {"colors": _INK, "linestyles": (0, (3, 2)), "linewidth": 1.3, "zorder": 4, "label": said}
        across(majority[task], x - 0.44, x + 0.44, **style)
    sources = {task.split("/", 1)[0] for task in tasks[:-1] if "/" in task}
    shared = f"{sources.pop()}/" if len(sources) == 1 and all("/" in task for task in tasks[:-1]) else ""
    names = [_label(task.removeprefix(shared).replace("_", " ")) for task in tasks]
    _style(axis)
    if lying:
        axis.axhline(len(tasks) - 1.5, color=_BASELINE, linewidth=0.8)
        axis.set_yticks(range(len(tasks)), names)
        axis.set_ylim(len(tasks) - 0.5, -0.5)  # the first task on top
        axis.grid(visible=False, axis="y")
        axis.grid(axis="x", color=_GRID, linewidth=0.8)
    else:
        axis.axvline(len(tasks) - 1.5, color=_BASELINE, linewidth=0.8)
        axis.set_xticks(range(len(tasks)), names, rotation=25, ha="right")
    scale = axis.xaxis if lying else axis.yaxis
    (axis.set_xlim if lying else axis.set_ylim)(0, 1.0)
    scale.set_major_formatter(lambda value, _: f"{value:.0%}")
    left_out = len(final.scores) + 1 - len(tasks)
    beside = f"; {left_out:,} tasks with fewer questions are in the table alone" if left_out else ""
    scale.set_label_text(f"accuracy, 95 % interval{beside}")
    figure.legend(loc="outside upper center", ncols=len(records) + 1, frameon=False, fontsize=9)
    return figure


def faithfulness_chart(rows: Sequence[VariantScore], verdict: str) -> Figure:
    """What each change of the latents does: paired differences to the unchanged model with 95 % intervals.

    Accuracy on the left, log-likelihood of the answer on the right; an interval that leaves out 0 is coloured.
    """
    prior = next(row for row in rows if row.variant == PRIOR)
    shown = [row for row in rows if row.variant != PRIOR]
    figure = Figure(figsize=(9.6, 0.32 * len(shown) + 2.0), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(shown):
        accuracy = [100 * v for v in (row.difference, row.difference_low, row.difference_high)]
        likelihood = [
            row.log_likelihood_difference,
            row.log_likelihood_difference_low,
            row.log_likelihood_difference_high,
        ]
        for axis, (value, low, high) in zip(axes, (accuracy, likelihood), strict=True):
            colour = (COLOURS[1] if value < 0 else COLOURS[0]) if excludes_zero(low, high) else _BASELINE
            axis.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
            axis.plot([value], [y], "o", color=colour, markersize=6, zorder=3)
    names = [f"{row.variant}  ({row.accuracy:.1%})" for row in shown]
    axes[0].set_yticks(range(len(shown)), names)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("accuracy, points")
    axes[1].set_xlabel("log-likelihood of the answer, nats")
    for axis in axes:
        axis.axvline(0, color=_INK, linewidth=1.0, zorder=1)
        _style(axis)
        axis.grid(visible=False, axis="y")
        axis.grid(axis="x", color=_GRID, linewidth=0.8)
    figure.suptitle(textwrap.fill(verdict, 112), x=0.01, ha="left", fontsize=10, color=_INK)
    axes[0].set_title(
        f"difference to the unchanged model ({prior.accuracy:.1%}, n = {prior.n:,}), 95 % interval",
        loc="left",
        fontsize=9,
        color=_INK,
    )
    return figure


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
                colour = "white" if abs(value) > 0.6 else _INK
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_xlabel("slot")
    axis.set_ylabel("slot")
    axis.set_title("mean cosine of latents", loc="left", fontsize=10, color=_INK)
    axis.tick_params(colors=_INK, labelsize=9, length=0)
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
    _style(axis)
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
            axis.plot([first[0], second[0]], [first[1], second[1]], color=_GRID, linewidth=0.6, zorder=1)
        axis.plot(a[:, 0], a[:, 1], ".", color=COLOURS[0], markersize=5, label="prior", zorder=2)
        axis.plot(b[:, 0], b[:, 1], ".", color=COLOURS[1], markersize=5, label="posterior", zorder=2)
        axis.set_title(name, loc="left", fontsize=10, color=_INK)
        axis.set_aspect("equal", adjustable="datalim")
        _style(axis)
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
                axis.set_title(f"slot {column}", fontsize=9, color=_INK)
        text = "\n".join(textwrap.wrap(caption, 26 * (slots + 1) // 2)[:2])
        axes[row][0].set_title(f"{text}\nlargest shift {largest:.3g}", fontsize=8, loc="left", color=_INK)
    return figure


def contamination_chart(closed: Sequence[Leakage], found: Sequence[Leakage], sharp: Sequence[Leakage]) -> Figure:
    """The prior's contamination against gamma: closed form, optimised, and with a sharper posterior (Prop. C.4)."""
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axis: Any = figure.subplots()
    for points, label, style, colour in (
        (closed, "closed form", "-", COLOURS[0]),
        (sharp, "closed form, sharper posterior", "--", COLOURS[2]),
        (found, "optimised", "o", COLOURS[1]),
    ):
        axis.plot([p.gamma for p in points], [p.contamination for p in points], style, color=colour, label=label)
    axis.set_xlabel("gamma")
    axis.set_ylabel("shift of the prior's mean")
    axis.set_ylim(bottom=0)
    _style(axis)
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
        axis.set_title(textwrap.fill(name, 38), loc="left", fontsize=8, color=_INK)
        axis.set_xlabel(x, fontsize=8)
        _style(axis)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=_INK)
    return figure


def _label(name: str) -> str:
    """A task's name in at most two lines."""
    return "\n".join(textwrap.wrap(name, LABEL, max_lines=2, placeholder=" ...")) or "-"


def _line(axis: Any, points: list[tuple[int, float]], label: str, colour: str, width: float) -> None:
    axis.plot([step for step, _ in points], [value for _, value in points], label=label, color=colour, linewidth=width)


def _style(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_BASELINE)
    axis.tick_params(colors=_INK, labelsize=9, length=0)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
