"""Pictures of a run: training curves, scores, changed latents, and several answers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from amvl_core.contracts.config import StageConfig
from amvl_core.contracts.records import GREEDY, TOKENS, UNCHANGED, EvalRecord, SamplingRecord, VariantScore
from amvl_core.eval.faithfulness import read, shown
from amvl_core.pages.charts import BASELINE, COLOURS, GRID, INK, style
from infra.reports.page import sampled_by

History = dict[str, list[tuple[int, float]]]
"""Metric `{stage}/{name}` -> [(optimiser step, value)]."""

SHOWN_TASKS = 100
LINES = ("-", "--", ":")
"""Of the scales of one source, the smallest first."""
LABEL = 24
"""Characters in a line of a task's name beside its bars; it has two."""


def curves(history: History, configured: Mapping[str, StageConfig]) -> Figure:
    """One column a stage: loss and its terms above, weights of terms and learning rate below (scaled to their maxima).

    The terms are those of the columns of its method's progress line; no other metric is drawn as one. Next-token loss
    on held-out samples is a dashed line with a point for each time that it was taken.
    """
    stages = [stage for stage in configured if any(name.startswith(f"{stage}/") for name in history)]
    figure = Figure(figsize=(4.6 * max(len(stages), 1), 5.2), layout="constrained")
    axes: Any = figure.subplots(2, max(len(stages), 1), squeeze=False, height_ratios=(2, 1), sharex="col")
    for column, stage in enumerate(stages):
        series = {name.split("/", 1)[1]: points for name, points in history.items() if name.startswith(f"{stage}/")}
        top, bottom = axes[0][column], axes[1][column]
        method = configured[stage].method
        terms = [name for names in method.columns.values() for name in names if name in series]
        for i, name in enumerate(terms):
            _line(top, series[name], name, COLOURS[i % len(COLOURS)], width=2.0 if name == "loss" else 1.3)
        if points := series.get("heldout_ntp"):
            _line(top, points, "ntp, held out", INK, width=1.3, linestyle="--", marker="o", markersize=3)
        for i, name in enumerate(name for name in (*method.schedules, "lr") if name in series):
            largest = max(value for _, value in series[name])
            scaled = [(step, value / largest if largest else 0.0) for step, value in series[name]]
            _line(bottom, scaled, f"{name} (max {largest:.3g})", COLOURS[i], width=1.6)
        top.set_title(stage, loc="left", fontweight="bold", color=INK)
        bottom.set_xlabel("optimiser step")
        bottom.set_ylim(-0.05, 1.1)
        for axis in (top, bottom):
            style(axis)
            if axis.lines:
                axis.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel("loss terms")
    axes[1][0].set_ylabel("share of maximum")
    return figure


def score_chart(evaluations: dict[str, EvalRecord]) -> Figure:
    """Accuracy with 95 % intervals, a row a task, a bar a model (label -> record), the majority answer as a line.

    Of more than `SHOWN_TASKS` the ones with most questions are shown; the whole comes last. The chart is narrow, so
    that it can be read on a telephone.
    """
    records = list(evaluations.values())
    final = records[-1]
    most = sorted(final.scores, key=lambda score: -score.n)[:SHOWN_TASKS]
    tasks = [score.task for score in (*(score for score in final.scores if score in most), final.overall)]
    figure = Figure(figsize=(5.2, 0.4 * len(tasks) + 1.2), layout="constrained")
    axis: Any = figure.subplots()
    width = 0.8 / len(records)
    for i, (label, record) in enumerate(evaluations.items()):
        by_task = {score.task: score for score in (*record.scores, record.overall)}
        scores = [by_task[task] for task in tasks]
        places = [x - 0.4 + (i + 0.5) * width for x in range(len(tasks))]
        values = [s.accuracy for s in scores]
        bounds = [[max(s.accuracy - s.low, 0.0) for s in scores], [max(s.high - s.accuracy, 0.0) for s in scores]]
        axis.barh(places, values, width * 0.92, color=COLOURS[i % len(COLOURS)], label=label, zorder=2)
        axis.errorbar(values, places, xerr=bounds, fmt="none", ecolor=INK, elinewidth=1, capsize=2, zorder=3)
    majority = {score.task: score.majority for score in (*final.scores, final.overall)}
    for x, task in enumerate(tasks):
        said = "majority answer" if x == 0 else None
        line = {"colors": INK, "linestyles": (0, (3, 2)), "linewidth": 1.3, "zorder": 4, "label": said}
        axis.vlines(majority[task], x - 0.44, x + 0.44, **line)
    sources = {task.split("/", 1)[0] for task in tasks[:-1] if "/" in task}
    shared = f"{sources.pop()}/" if len(sources) == 1 and all("/" in task for task in tasks[:-1]) else ""
    names = [_label(task.removeprefix(shared).replace("_", " ")) for task in tasks]
    style(axis)
    axis.axhline(len(tasks) - 1.5, color=BASELINE, linewidth=0.8)
    axis.set_yticks(range(len(tasks)), names)
    axis.set_ylim(len(tasks) - 0.5, -0.5)  # the first task on top
    axis.grid(visible=False, axis="y")
    axis.grid(axis="x", color=GRID, linewidth=0.8)
    axis.set_xlim(0, 1.0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left_out = len(final.scores) + 1 - len(tasks)
    beside = f"; {left_out:,} tasks with fewer questions are in the table alone" if left_out else ""
    axis.set_xlabel(textwrap.fill(f"accuracy, 95 % interval{beside}", 60))
    figure.legend(loc="outside upper center", ncols=len(records) + 1, frameon=False, fontsize=9)
    return figure


def faithfulness_chart(rows: Sequence[VariantScore], verdict: str) -> Figure:
    """What each change of the latents does: paired differences to the unchanged model with 95 % intervals.

    Accuracy on the left, log-likelihood of the answer on the right; what is coloured leaves out 0 and has p < 0.05.
    """
    unchanged = next(row for row in rows if row.variant == UNCHANGED)
    changed = [row for row in rows if row.variant != UNCHANGED]
    figure = Figure(figsize=(9.6, 0.32 * len(changed) + 2.0), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(changed):
        accuracy = [100 * v for v in (row.difference, row.difference_low, row.difference_high)]
        likelihood = [
            row.log_likelihood_difference,
            row.log_likelihood_difference_low,
            row.log_likelihood_difference_high,
        ]
        sides = zip(axes, (accuracy, likelihood), (shown(row), read(row)), strict=True)
        for axis, (value, low, high), sure in sides:
            colour = (COLOURS[1] if value < 0 else COLOURS[0]) if sure else BASELINE
            axis.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
            axis.plot([value], [y], "o", color=colour, markersize=6, zorder=3)
    names = [f"{row.variant}  ({row.accuracy:.1%})" for row in changed]
    axes[0].set_yticks(range(len(changed)), names)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("accuracy, points")
    axes[1].set_xlabel("log-likelihood of the answer, nats")
    for axis in axes:
        axis.axvline(0, color=INK, linewidth=1.0, zorder=1)
        style(axis)
        axis.grid(visible=False, axis="y")
        axis.grid(axis="x", color=GRID, linewidth=0.8)
    figure.suptitle(textwrap.fill(verdict, 112), x=0.01, ha="left", fontsize=10, color=INK)
    axes[0].set_title(
        f"difference to the unchanged model ({unchanged.accuracy:.1%}, n = {unchanged.n:,}), 95 % interval; "
        "in colour: p < 0.05 too",
        loc="left",
        fontsize=9,
        color=INK,
    )
    return figure


def sampling_chart(record: SamplingRecord) -> Figure:
    """Accuracy against the number of answers, a line a source with its 95 % band over questions.

    Left: one of the answers is right. Right: the commonest of them is. One greedy answer is a dashed line.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    sources = dict.fromkeys((score.source, score.scale) for score in record.scores)
    for source in sources:
        scores = [score for score in record.scores if (score.source, score.scale) == source]
        label, counts = sampled_by(scores[0]), [score.answers for score in scores]
        if source[0] == GREEDY:
            for axis in axes:
                axis.axhline(100 * scores[0].passed, color=INK, linewidth=1, linestyle=(0, (3, 2)), label=label)
            continue
        scales = sorted(scale for kind, scale in sources if kind == source[0])
        place = scales.index(source[1])
        look = {"color": COLOURS[source[0] == TOKENS], "linestyle": LINES[place % len(LINES)]}
        for axis, name in zip(axes, ("passed", "voted"), strict=True):
            values = [100 * getattr(score, name) for score in scores]
            bounds = [[100 * value for value in getattr(score, f"{name}_interval")] for score in scores]
            axis.plot(counts, values, label=label, linewidth=1.6, marker="o", markersize=4, **look)
            axis.fill_between(counts, *zip(*bounds, strict=True), color=look["color"], alpha=0.06, linewidth=0)
    for axis, said in zip(axes, ("one of the answers is right", "the commonest answer is right"), strict=True):
        style(axis)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks := sorted({score.answers for score in record.scores}), map(str, ticks))
        axis.set_xlabel("answers to each question")
        axis.set_title(said, loc="left", fontsize=10, color=INK)
    axes[0].set_ylabel("accuracy, per cent")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def _label(name: str) -> str:
    """A task's name in at most two lines."""
    return "\n".join(textwrap.wrap(name, LABEL, max_lines=2, placeholder=" ...")) or "-"


def _line(axis: Any, points: list[tuple[int, float]], label: str, colour: str, width: float, **look: Any) -> None:
    steps, values = zip(*points, strict=True)
    look = {"marker": "o" if len(points) == 1 else None, **look}
    axis.plot(steps, values, label=label, color=colour, linewidth=width, **look)
