"""What all matplotlib pictures share: a backend without a window, colours, and axes that stay in the background."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a task or question may hold `$`, and no formula

COLOURS = ("#2f5d8a", "#d1693b", "#4f9a6b", "#8a5aa8", "#b8973a", "#5f6b76")
INK, GRID, BASELINE = "#222a33", "#dfe4e9", "#a9b2bb"


def style(axis: Any) -> None:
    """Thin lines below what is drawn."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(BASELINE)
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
