"""The pictures of an experiment: accuracy against the number of dependent steps and against tokens written, and what
slots hold.
"""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from amvl_core.contracts.comparisons import ArmRecord, ExperimentRecord
from amvl_core.contracts.records import StepProbe
from amvl_core.eval.experiment import mean_probes
from amvl_core.experiments.experiment import difficulty
from amvl_core.pages.charts import BASELINE, INK, style

MARKS = "osD^vPX*<>"
PANELS = 4
"""Heat maps beside each other."""
CELL, MARGIN = 0.34, 0.9
"""Inches of a heat map's column, and of the names of its rows beside it."""
TITLE_DENSITY = 10
"""Letters of a heat map's title in an inch."""
TITLE_INCHES = 3.8
"""The least width of the picture of heat maps, which its own title needs."""
DARK = 55
"""Per cent above which a cell is too dark for dark letters."""


def chart(record: ExperimentRecord, title: str) -> Figure:
    """Left: a line an arm whose replies are bare answers, written steps as the ceiling and the commonest answer as the
    floor. The line is the mean of an arm's trainings, each of them is a thin line, and the band has all of them: an
    interval of the mean would hide that a training either learns a step or does not. Right: every arm at the tokens
    that its replies have; beside arms that hide each other stands how many they are.
    """
    figure = Figure(figsize=(12.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    tasks = sorted(record.chance, key=difficulty)
    steps = [difficulty(task) for task in tasks]
    looks = _looks(record)
    places: Counter[tuple[float, float]] = Counter()
    for arm in record.arms:
        if not arm.trained:
            continue
        if arm.role == "ceiling" or not arm.writes:
            _line(left, arm, tasks, steps, looks[arm.label])
        tokens = statistics.fmean(one.tokens for one in arm.trained.values())
        right.plot([tokens], [100 * arm.scores.mean], linestyle="", markersize=7, **looks[arm.label])
        places[round(tokens, 1), round(100 * arm.scores.mean, 1)] += 1
    for place, count in places.items():
        if count > 1:
            right.annotate(f"{count} arms", place, (0, -14), textcoords="offset points", ha="center", fontsize=8)
    floor = [100 * record.chance[task] for task in tasks]
    left.plot(steps, floor, color=INK, linewidth=1, linestyle=(0, (3, 2)), label="commonest answer")
    right.axhline(statistics.fmean(floor), color=INK, linewidth=1, linestyle=(0, (3, 2)), label="commonest answer")
    left.set_xticks(steps)
    left.set_xlabel("dependent steps of the question")
    left.set_ylabel("accuracy, per cent")
    right.set_xlabel("tokens written in a reply, outside latent blocks")
    left.set_ylim(-2, 104)
    for axis in (left, right):
        style(axis)
    seeds = max((len(arm.trained) for arm in record.arms), default=0)
    bands = f"mean of {seeds} trainings, each of them as a thin line" if seeds > 1 else "one training each"
    left.set_title(f"Bare answers, and steps in words as the ceiling\n({bands})", loc="left", fontsize=10, color=INK)
    right.set_title("All arms", loc="left", fontsize=10, color=INK)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    return figure


def slots_chart(record: ExperimentRecord) -> Figure | None:
    """A heat map for each latent arm: how well a linear probe reads step j (columns) from slot i (rows).

    Above the slots stand the commonest text of the step, which needs no vector, and the probe of the state before the
    block. Accuracies are means over seeds, in per cent. None: no arm has probes.
    """
    arms = {arm.label: probes for arm in record.arms if (probes := mean_probes(arm))}
    if not arms:
        return None
    columns = min(PANELS, len(arms))
    rows = -(-len(arms) // columns)
    tallest = max(len(probes[0].slots) for probes in arms.values()) + 2
    widest = max(len(probes) for probes in arms.values())
    width = MARGIN + CELL * widest
    size = (max(TITLE_INCHES, 0.6 + columns * width), 1.2 + rows * (0.8 + 0.24 * tallest))
    figure = Figure(figsize=size, layout="constrained")
    panels: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for (label, probes), axis in zip(arms.items(), panels, strict=False):
        _heat_map(axis, probes)
        shown = textwrap.fill(label, int(TITLE_DENSITY * width))
        # It begins above the names of the rows: from the cells on it would leave the picture.
        start = -0.55 * MARGIN / (size[0] / columns - MARGIN)
        axis.set_title(shown, loc="left", x=start, fontsize=9, fontweight="bold", color=INK)
    for axis in panels[len(arms) :]:
        axis.set_visible(False)
    seeds = max(len(arm.trained) for arm in record.arms if arm.label in arms)
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    said = f"What a linear probe reads of each written step\nheld-out accuracy, per cent{over}"
    figure.suptitle(said, x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def _heat_map(axis: Any, probes: list[StepProbe]) -> None:
    rows = [[100 * value for value in (one.majority, one.prompt, *one.slots)] for one in probes]
    cells = list(zip(*rows, strict=True))
    axis.imshow(cells, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            colour = "white" if value > DARK else INK
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    axis.axhline(1.5, color="white", linewidth=4)
    names = ["commonest", "prompt", *(f"slot {number}" for number in range(1, len(cells) - 1))]
    axis.set_yticks(range(len(cells)), names)
    axis.set_xticks(range(len(probes)), [str(one.step) for one in probes])
    axis.set_xlabel("step", fontsize=8.5, color=INK)
    axis.spines[:].set_visible(False)
    axis.tick_params(colors=INK, labelsize=8, length=0)


def _looks(record: ExperimentRecord) -> dict[str, dict[str, Any]]:
    """Latent arms in colour, controls in grey with a mark of their own, the ceiling in black."""
    colours = matplotlib.colormaps["tab10"].colors
    found: dict[str, dict[str, Any]] = {}
    counts = {"latent": 0, "control": 0, "ceiling": 0}
    for arm in record.arms:
        number = counts[arm.role]
        counts[arm.role] += 1
        colour = {"latent": colours[number % len(colours)], "control": BASELINE, "ceiling": INK}[arm.role]
        filled = {} if number < len(colours) or arm.role != "latent" else {"markerfacecolor": "white"}
        found[arm.label] = {"color": colour, "marker": MARKS[number % len(MARKS)], "label": arm.label, **filled}
    return found


def _line(axis: Any, arm: ArmRecord, tasks: list[str], steps: list[int], look: dict[str, Any]) -> None:
    trainings = [[100 * one.accuracies[task] for task in tasks] for one in arm.trained.values()]
    by_task = list(zip(*trainings, strict=True))
    width = 5.0 if arm.role == "ceiling" else 1.8  # it is seen behind an arm that reaches it
    axis.plot(steps, [statistics.fmean(found) for found in by_task], linewidth=width, markersize=width + 3.4, **look)
    if len(trainings) > 1:
        for found in trainings:
            axis.plot(steps, found, color=look["color"], alpha=0.6, linewidth=0.8)
        low, high = [min(found) for found in by_task], [max(found) for found in by_task]
        axis.fill_between(steps, low, high, color=look["color"], alpha=0.09, linewidth=0)
