"""Pictures of a run: training curves and scores."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from amvl_core.records import EvalRecord

matplotlib.use("Agg")

History = dict[str, list[tuple[int, float]]]
"""Metric `{stage}/{name}` -> [(optimiser step, value)]."""

SCHEDULES = ("beta", "gamma", "lr")
PERFORMANCE = ("grad_norm", "tokens_per_s", "data_wait")
DIAGNOSTICS = ("_norm", "_sigma", "cosine")
COLOURS = ("#2f5d8a", "#d1693b", "#4f9a6b", "#8a5aa8", "#b8973a", "#5f6b76")
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
    """Accuracy by task with 95 % intervals, one bar a model (label -> record), the majority answer as a line."""
    records = list(evaluations.values())
    tasks = [score.task for score in (*records[-1].scores, records[-1].overall)]
    figure = Figure(figsize=(max(1.0 * len(tasks) + 2.5, 6.0), 4.2), layout="constrained")
    axis: Any = figure.subplots()
    width = 0.8 / len(records)
    for i, (label, record) in enumerate(evaluations.items()):
        by_task = {score.task: score for score in (*record.scores, record.overall)}
        scores = [by_task[task] for task in tasks]
        left = [x - 0.4 + (i + 0.5) * width for x in range(len(tasks))]
        bounds = [
            [max(s.accuracy - s.low, 0.0) for s in scores],
            [max(s.high - s.accuracy, 0.0) for s in scores],
        ]
        axis.bar(
            left, [s.accuracy for s in scores], width * 0.92, color=COLOURS[i % len(COLOURS)], label=label, zorder=2
        )
        axis.errorbar(
            left, [s.accuracy for s in scores], yerr=bounds, fmt="none", ecolor=_INK, elinewidth=1, capsize=2, zorder=3
        )
    majority = {score.task: score.majority for score in (*records[-1].scores, records[-1].overall)}
    for x, task in enumerate(tasks):
        axis.hlines(
            majority[task],
            x - 0.44,
            x + 0.44,
            colors=_INK,
            linestyles=(0, (3, 2)),
            linewidth=1.3,
            zorder=4,
            label="majority answer" if x == 0 else None,
        )
    axis.axvline(len(tasks) - 1.5, color=_BASELINE, linewidth=0.8)
    axis.set_xticks(range(len(tasks)), [task.replace("_", " ") for task in tasks], rotation=25, ha="right")
    axis.set_ylim(0, 1.0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_ylabel("accuracy, 95 % interval")
    _style(axis)
    figure.legend(loc="outside upper center", ncols=len(records) + 1, frameon=False, fontsize=9)
    return figure


def _line(axis: Any, points: list[tuple[int, float]], label: str, colour: str, width: float) -> None:
    axis.plot([step for step, _ in points], [value for _, value in points], label=label, color=colour, linewidth=width)


def _style(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_BASELINE)
    axis.tick_params(colors=_INK, labelsize=9, length=0)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
