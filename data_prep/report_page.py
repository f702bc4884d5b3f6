"""The report as one HTML file that needs nothing else: styles, charts and thumbnails are inside, texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER
from amvl_core.pages import render as rendered

TEMPLATE = Path(__file__).parent / "templates" / "dataset.html"
KEPT_COLOUR = "#2f7d6b"
# Okabe and Ito's palette, which the colour-blind can tell apart, for the reasons in order of their number.
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#cc79a7", "#56b4e9", "#8a6d3b", "#7f7f7f")
WIDTH, HEIGHT, TOP = 300.0, 112.0, 14.0
"""Of a histogram's bars, and where they begin."""


def render(summary: dict[str, Any], samples: Sequence[Sequence[dict[str, str]]]) -> str:
    """The page of a `report.json`; `samples` are those to show of each of its sources, in the same order."""
    colours = _colours(summary["dropped"])
    sources = summary["sources"]
    dropped = [(count, reason, source) for source in sources for reason, count in source["dropped"].items() if count]
    return rendered(
        TEMPLATE,
        title=f"Dataset {summary['fingerprint']}",
        fingerprint=summary["fingerprint"],
        kept_colour=KEPT_COLOUR,
        tiles_shown=_tiles(summary),
        # Reasons beyond the palette share its last colour; the table names them all.
        legend=[("kept", KEPT_COLOUR), *((label(reason), colour) for reason, colour in colours.items())],
        sources=[_source(source, shown, colours) for source, shown in zip(sources, samples, strict=True)],
        dropped=[
            {
                "count": count,
                "reason": label(reason),
                "colour": colours[reason],
                "source": source,
                "examples": source["examples"].get(reason, []),
            }
            for count, reason, source in sorted(dropped, key=lambda found: (-found[0], found[1]))
        ],
        notes=[(source, note, count) for source in sources for note, count in source["notes"].items()],
        benchmarks=summary["benchmarks"],
    )


def label(reason: str) -> str:
    """`no_answer` as people read it."""
    return reason.replace("_", " ")


def _colours(dropped: dict[str, int]) -> dict[str, str]:
    ordered = sorted(dropped, key=lambda reason: (-dropped[reason], reason))
    return {reason: COLOURS[min(i, len(COLOURS) - 1)] for i, reason in enumerate(ordered)}


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str]]:
    dropped = sum(summary["dropped"].values())
    share = dropped / max(summary["read"], 1)
    return [
        (f"{summary['read']:,}", "samples read"),
        (f"{summary['kept']:,}", "kept"),
        (f"{dropped:,}", f"dropped ({share:.1%})"),
        (f"{len(summary['shards']):,}", "shards"),
    ]


def _source(source: dict[str, Any], samples: Sequence[dict[str, str]], colours: dict[str, str]) -> dict[str, Any]:
    """A source with what is drawn of it."""
    read, most = max(source["read"], 1), max(source["answers"].values(), default=1)
    parts = [("kept", source["kept"], KEPT_COLOUR)]
    parts += [(label(reason), count, colours[reason]) for reason, count in source["dropped"].items()]
    return {
        **source,
        "flow": [
            {"name": name, "count": f"{count:,}", "colour": colour, "width": f"{100 * count / read:.3f}"}
            for name, count, colour in parts
            if count
        ],
        "token_bars": _histogram(source["tokens"]),
        "side_bars": _histogram(source["image_side"]),
        "shown_answers": [
            {"text": answer, "width": f"{100 * count / most:.1f}", "share": f"{count / source['kept']:.1%}"}
            for answer, count in source["answers"].items()
        ],
        "samples": [
            {**sample, "question": " ".join(sample["question"].replace(IMAGE_PLACEHOLDER, " ").split())}
            for sample in samples
        ],
    }


def _histogram(found: dict[str, Any]) -> dict[str, Any]:
    """Bars of a distribution; none where nothing was counted."""
    counts, edges = found["counts"], found["edges"]
    if not counts:
        return {"bars": []}
    tallest, step = max(counts), WIDTH / max(len(counts), 8)
    return {
        "bars": [
            {
                "x": f"{i * step + 0.75:.1f}",
                "y": f"{TOP + HEIGHT * (1 - count / tallest):.1f}",
                "width": f"{step - 1.5:.1f}",
                "height": f"{max(HEIGHT * count / tallest, 1):.1f}",
                "range": _range(edges[i], edges[i + 1]),
                "count": f"{count:,}",
            }
            for i, count in enumerate(counts)
            if count
        ],
        "floor": TOP + HEIGHT,
        "end": f"{max(len(counts) * step, 60):.1f}",
        "tallest": f"{tallest:,}",
        **{name: f"{found[name]:,}" for name in ("min", "median", "p95", "max")},
    }


def _range(start: int, stop: int) -> str:
    return f"{start:,}" if stop - start == 1 else f"{start:,} to {stop - 1:,}"
