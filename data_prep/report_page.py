"""The report as one HTML file that needs nothing else: styles, charts and thumbnails are inside, texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER
from amvl_core.pages import page

KEPT_COLOUR = "#2f7d6b"
# Okabe and Ito's palette, which the colour-blind can tell apart, for the reasons in order of their number.
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#cc79a7", "#56b4e9", "#8a6d3b", "#7f7f7f")


def render(summary: dict[str, Any], samples: Sequence[Sequence[dict[str, str]]]) -> str:
    """The page of a `report.json`; `samples` are those to show of each of its sources, in the same order."""
    colours = _colours(summary["dropped"])
    sources = summary["sources"]
    parts = [
        f"<h1>Prepared dataset</h1><code>{escape(summary['fingerprint'])}</code>",
        _tiles(summary),
        "<div class='card'><h3>From read to kept</h3>",
        *[_flow(source, colours) for source in sources],
        _legend(colours),
        "</div>",
        _reasons(sources, colours),
        _notes(sources),
        _benchmarks(summary["benchmarks"]),
        *[_source(source, shown) for source, shown in zip(sources, samples, strict=True)],
    ]
    return page(f"Dataset {summary['fingerprint']}", "\n".join(parts))


def label(reason: str) -> str:
    """`no_answer` as people read it."""
    return reason.replace("_", " ")


def _colours(dropped: dict[str, int]) -> dict[str, str]:
    ordered = sorted(dropped, key=lambda reason: (-dropped[reason], reason))
    return {reason: COLOURS[min(i, len(COLOURS) - 1)] for i, reason in enumerate(ordered)}


def _tiles(summary: dict[str, Any]) -> str:
    dropped = sum(summary["dropped"].values())
    share = dropped / max(summary["read"], 1)
    tiles = (
        (f"{summary['read']:,}", "samples read"),
        (f"{summary['kept']:,}", "kept"),
        (f"{dropped:,}", f"dropped ({share:.1%})"),
        (f"{len(summary['shards']):,}", "shards"),
    )
    cells = "".join(f"<div class='card tile'><b>{value}</b><span>{name}</span></div>" for value, name in tiles)
    return f"<div class='tiles'>{cells}</div>"


def _flow(source: dict[str, Any], colours: dict[str, str]) -> str:
    read = max(source["read"], 1)
    parts = [("kept", source["kept"], KEPT_COLOUR)]
    parts += [(label(reason), count, colours[reason]) for reason, count in source["dropped"].items()]
    bars = "".join(
        f"<i style='width:{100 * count / read:.3f}%;background:{colour}' title='{escape(name)}: {count:,}'></i>"
        for name, count, colour in parts
        if count
    )
    name = f"<b>{escape(source['source'])}</b> <span class='soft'>{escape(source['split'])}</span>"
    return (
        f"<div class='flow'><div>{name}</div><div class='bar'>{bars}</div>"
        f"<div class='right'>{source['kept']:,} <span class='soft'>of {source['read']:,}</span></div></div>"
    )


def _legend(colours: dict[str, str]) -> str:
    # Reasons beyond the palette share its last colour; the table names them all.
    entries = [("kept", KEPT_COLOUR), *((label(reason), colour) for reason, colour in colours.items())]
    items = (
        f"<span><span class='dot' style='background:{colour}'></span>{escape(name)}</span>" for name, colour in entries
    )
    return f"<div class='legend'>{''.join(items)}</div>"


def _reasons(sources: Sequence[dict[str, Any]], colours: dict[str, str]) -> str:
    dropped = [(count, reason, source) for source in sources for reason, count in source["dropped"].items()]
    rows = []
    for count, reason, source in sorted(dropped, key=lambda found: (-found[0], found[1])):
        if count:
            examples = "".join(
                f"<p><code>{escape(example['sample_id'])}</code> {escape(example['detail'])}</p>"
                for example in source["examples"].get(reason, [])
            )
            rows.append(
                f"<tr><td class='reason'><span class='dot' style='background:{colours[reason]}'></span>"
                f"{escape(label(reason))}</td><td>{escape(source['source'])} "
                f"<span class='soft'>{escape(source['split'])}</span></td>"
                f"<td class='right'>{count:,}</td><td>{examples}</td></tr>"
            )
    if not rows:
        return "<h2>Why samples were dropped</h2><div class='card soft'>None was: every sample read is kept.</div>"
    head = "<tr><th>reason</th><th>source</th><th class='right'>samples</th><th>the first of them</th></tr>"
    return f"<h2>Why samples were dropped</h2><div class='card'><table>{head}{''.join(rows)}</table></div>"


def _notes(sources: Sequence[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(source['source'])} <span class='soft'>{escape(source['split'])}</span></td>"
        f"<td class='right'>{count:,}</td><td>{escape(note)}</td></tr>"
        for source in sources
        for note, count in source["notes"].items()
    )
    if not rows:
        return ""
    head = "<tr><th>source</th><th class='right'>rows</th><th>what was passed over</th></tr>"
    return f"<h2>What was passed over</h2><div class='card'><table>{head}{rows}</table></div>"


def _benchmarks(benchmarks: Sequence[dict[str, Any]]) -> str:
    if not benchmarks:
        return ""
    rows = "".join(
        f"<tr><td>{escape(found['name'])}</td><td class='right'>{found['questions']:,}</td>"
        f"<td class='right'>{found['images']:,}</td><td class='right'>{sum(found['dropped'].values()):,}</td></tr>"
        for found in benchmarks
    )
    head = "".join(f"<th class='right'>{name}</th>" for name in ("questions", "images", "rows that are no question"))
    return (
        "<h2>Benchmarks that training samples were compared with</h2>"
        f"<div class='card'><table><tr><th>benchmark</th>{head}</tr>{rows}</table></div>"
    )


def _source(source: dict[str, Any], samples: Sequence[dict[str, str]]) -> str:
    title = f"<h2>{escape(source['source'])} <span class='soft'>{escape(source['split'])}</span></h2>"
    if not source["kept"]:
        return f"{title}<div class='card soft'>No sample is kept.</div>"
    answers = f"Answers ({source['distinct_answers']:,} different)"
    charts = (
        f"<div class='card'><h3>Tokens per sample</h3>{_histogram(source['tokens'], 'tokens')}</div>"
        f"<div class='card'><h3>Image size, square root of the area</h3>{_histogram(source['image_side'], 'px')}</div>"
        f"<div class='card'><h3>{answers}</h3>{_answers(source['answers'], source['kept'])}</div>"
    )
    figures = "".join(_figure(sample) for sample in samples)
    return f"{title}<div class='charts'>{charts}</div><div class='samples'>{figures}</div>"


def _histogram(found: dict[str, Any], unit: str) -> str:
    """Bars as SVG, 300 x 150 units, with the range below and the commonest bar's count above."""
    counts, edges = found["counts"], found["edges"]
    if not counts:
        return "<div class='soft'>no images</div>"
    width, height, top, left = 300.0, 112.0, 14.0, 0.0
    tallest, step = max(counts), (width - left) / max(len(counts), 8)
    bars = "".join(
        f"<rect x='{left + i * step + 0.75:.1f}' y='{top + height * (1 - count / tallest):.1f}' rx='1.5' "
        f"width='{step - 1.5:.1f}' height='{max(height * count / tallest, 1):.1f}' fill='{KEPT_COLOUR}' opacity='.8'>"
        f"<title>{_range(edges[i], edges[i + 1])} {unit}: {count:,}</title></rect>"
        for i, count in enumerate(counts)
        if count
    )
    end = left + len(counts) * step
    axis = (
        f"<line x1='0' x2='{width:.0f}' y1='{top + height}' y2='{top + height}' stroke='#d0d5dd'/>"
        f"<text x='0' y='10'>{tallest:,}</text><text x='0' y='{top + height + 14}'>{found['min']:,}</text>"
    )
    if found["max"] > found["min"]:
        axis += f"<text x='{max(end, 60):.1f}' y='{top + height + 14}' text-anchor='end'>{found['max']:,} {unit}</text>"
    line = f"median {found['median']:,}, 95 % at most {found['p95']:,} {unit}"
    return f"<svg viewBox='0 0 300 144' role='img'>{bars}{axis}</svg><div class='soft'>{line}</div>"


def _range(start: int, stop: int) -> str:
    return f"{start:,}" if stop - start == 1 else f"{start:,} to {stop - 1:,}"


def _answers(answers: dict[str, int], kept: int) -> str:
    most = max(answers.values())
    return "".join(
        f"<div class='answer'><span title='{escape(answer)}'>{escape(answer)}</span>"
        f"<div><i style='width:{100 * count / most:.1f}%'></i></div>"
        f"<div class='right soft'>{count / kept:.1%}</div></div>"
        for answer, count in answers.items()
    )


def _figure(sample: dict[str, str]) -> str:
    question = escape(" ".join(sample["question"].replace(IMAGE_PLACEHOLDER, " ").split()))
    picture = f"<img src='{sample['image']}' alt=''>" if sample["image"] else "<span class='soft'>no image</span>"
    more = f"<span class='more'>1 of {sample['images']}</span>" if int(sample["images"]) > 1 else ""
    return (
        f"<figure title='{escape(sample['sample_id'])}'><div class='picture'>{picture}{more}</div>"
        f"<figcaption><span class='q'>{question}</span><b>{escape(sample['answer'])}</b></figcaption></figure>"
    )
