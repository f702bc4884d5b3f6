"""The report of a run as one HTML file that needs nothing else. Every text is escaped: raw outputs are untrusted."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    DatasetRecord,
    FaithfulnessRecord,
    ModelRecord,
    VariantScore,
)
from amvl_core.eval.faithfulness import nats
from amvl_core.eval.significance import p_text
from amvl_core.methods.amvl.analysis.geometry import TABLE_7
from amvl_core.pages import page
from infra.reports.figures import STANDING

BELOW = {"test": "p by", "read by": "read by", "seed": "seed of the trainings"}
"""Columns that stand below a table where every row says the same, and what they are called there."""
RAW_CHARACTERS = 400
"""Of a raw output; `predictions.parquet` holds all of it."""

STYLE = """
p.note { color: var(--soft); font-size: 13.5px; margin: 10px 0 0; max-width: 860px; }
nav { margin: 14px 0 0; font-size: 13.5px; display: flex; flex-wrap: wrap; gap: 2px 16px; }
nav a { color: var(--accent); text-decoration: none; }
section > .card + .card { margin-top: 16px; } .card > img { display: block; max-width: 100%; margin: 0 auto; }
h1, .card { overflow-wrap: break-word; } .pair > * { min-width: 0; }
.wide, .plot { overflow-x: auto; } .wide td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.wide td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
tr.all td { font-weight: 650; border-top: 1px solid var(--soft); }
.answers { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; }
.answers figure { border-top: 3px solid var(--accent); } .answers figure.wrong { border-top-color: #d55e00; }
.answers .picture, .answers img { height: 170px; } .answers .several img { width: auto; max-width: 48%; padding: 2px; }
.answers figcaption .q { margin-bottom: 6px; -webkit-line-clamp: 6; }
.answers pre { margin: 6px 0 0; padding: 7px 9px; background: var(--back); border-radius: 6px; overflow-wrap: anywhere;
  white-space: pre-wrap; font: 11.5px/1.45 ui-monospace, monospace; max-height: 180px; overflow: hidden; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.pictures { display: grid; grid-template-columns: repeat(2, 1fr); gap: 16px; margin-top: 16px; }
.pictures figure { background: var(--paper); } .pictures img { height: auto; max-height: 420px; padding: 8px; }
.values { columns: 2; column-gap: 32px; font-size: 12.5px; } .values div { display: flex; gap: 12px;
  justify-content: space-between; border-bottom: 1px solid var(--line); padding: 3px 0; break-inside: avoid; }
.values span { color: var(--soft); overflow-wrap: anywhere; }
.values b { font-weight: 500; text-align: right; overflow-wrap: anywhere; min-width: 16%; }
.grid td { text-align: center; padding: 6px; border: 0; font-size: 12px; font-variant-numeric: tabular-nums; }
@media screen and (max-width: 860px) {
  .answers, .pair, .pictures { grid-template-columns: 1fr; } .values { columns: 1; }
  main { padding: 24px 14px 48px; } .card { padding: 14px; }
}
@media screen and (max-width: 1000px) {
  .wide table, .wide tbody { display: block; } .wide thead { display: none; }
  .wide tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 2px 32px; padding: 9px 0;
    border-bottom: 1px solid var(--line); } .wide tr:last-child, .wide tr td, .wide tr.all td { border: 0; }
  .wide td { display: flex; justify-content: space-between; gap: 16px; padding: 0; white-space: normal; }
  .wide td::before { content: var(--name, ""); color: var(--soft); font-weight: 400; text-align: left; }
  .wide td:first-child { grid-column: 1 / -1; display: block; font-weight: 650; } .tile b { font-size: 22px; }
  .plot svg { min-width: 560px; } .plot > img.standing { max-width: none; height: 340px; }
}
@page { size: A4; margin: 13mm; }
@media print {
  body { background: #fff; font-size: 11px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; } nav { display: none; } h2 { break-after: avoid; margin: 22px 0 8px; }
  figure, tr, .plot, .grid { break-inside: avoid; }
  h3 { break-after: avoid; } .card { padding: 12px; } .wide { overflow: visible; }
  .tiles, .answers, .pair, .pictures { gap: 10px; } .tiles { margin: 14px 0; } .tile b { font-size: 22px; }
  p.note, .tile span, .soft { font-size: 10px; } .values { font-size: 9.5px; }
  table { font-size: 10px; } td { padding: 5px 8px 5px 0; } th { padding-right: 8px; }
  .wide td { white-space: normal; } .wide td:first-child { min-width: 7em; } .wide table { font-size: 9px; }
  .wide td.right, .wide th.right { padding-right: 9px; } .pictures img { max-height: 300px; }
  .answers figcaption { font-size: 10px; } .answers pre { font-size: 8.5px; max-height: 120px; }
  .answers .picture, .answers img { height: 120px; }
}
"""

Table = Sequence[Mapping[str, str]]
"""Rows with the same columns; the last one of a score table is the whole."""


@dataclass(frozen=True)
class Sample:
    """One answered question; `images` are data URLs, `before` is what the other model answered."""

    sample_id: str
    task: str
    question: str
    answer: str
    prediction: str
    before: str
    raw_output: str
    correct: bool
    images: Sequence[str]


@dataclass(frozen=True)
class Run:
    """All that the page shows; pictures are data URLs, each under what is said of it."""

    title: str
    labels: tuple[str, str]
    method: str
    steps: int
    parameters: int
    dataset: DatasetRecord
    model: ModelRecord
    scores: Table
    verdict: str
    config: Mapping[str, str]
    provenance: Mapping[str, str]
    samples: Sequence[Sample] = ()
    benchmarks: Mapping[str, Table] = field(default_factory=dict)
    charts: Mapping[str, str] = field(default_factory=dict)
    faithfulness: Sequence[FaithfulnessRecord] = ()
    analysis: AnalysisRecord | None = None
    analysis_pictures: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()


def render(run: Run) -> str:
    """The whole page."""
    sections = {
        "Scores": _scores(run),
        "Faithfulness": _faithfulness(run),
        "Latents": _analysis(run),
        "Answers": _answers(run),
        "Training": _training(run),
        "Data": _data(run.dataset),
        "Configuration": _values(run.config),
        "Provenance": _values(run.provenance),
    }
    links = "".join(f"<a href='#{name.lower()}'>{name}</a>" for name in sections)
    body = [
        f"<h1>{escape(run.title)}</h1><code>models:/{escape(run.model.name)}/{run.model.version}</code>",
        _tiles(run),
    ]
    body += [f"<div class='card'><b>{escape(run.model.alias)}</b>: {escape(run.model.reason)}</div><nav>{links}</nav>"]
    body += [f"<section><h2 id='{name.lower()}'>{name}</h2>{text}</section>" for name, text in sections.items()]
    return page(run.title, "\n".join(body), STYLE)


def _tiles(run: Run) -> str:
    whole = run.scores[-1]
    tiles = [(whole.get(label, "-").split(" ")[0], f"{label}, {whole.get('n', '')} questions") for label in run.labels]
    tiles += [(f"{run.steps:,}", f"steps of {run.method}, last stage"), (f"{run.parameters:,}", "parameters")]
    cells = "".join(
        f"<div class='card tile'><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles
    )
    return f"<div class='tiles'>{cells}</div>"


def _scores(run: Run) -> str:
    parts = [
        f"<div class='card wide'>{_table(run.scores, whole=True)}</div>",
        f"<p class='note'>Accuracy on the test split with 95 % intervals. {escape(run.labels[1])} against "
        f"{escape(run.labels[0])} on the same questions: {escape(run.verdict)}.</p>",
    ]
    for title, rows in run.benchmarks.items():
        parts.append(f"<div class='card wide' style='margin-top:16px'><h3>{escape(title)}</h3>{_table(rows)}</div>")
    if "scores" in run.charts:
        shown = _image(run.charts["scores"], "scores", standing=len(run.scores) <= STANDING)
        parts.append(f"<div class='card plot' style='margin-top:16px'>{shown}</div>")
    return "".join(parts)


def _faithfulness(run: Run) -> str:
    if not run.faithfulness:
        return _absent(run, "there is nothing to take away or to exchange", "evaluation.faithfulness_items")
    return (
        "".join(map(_suite, run.faithfulness))
        + "<p class='note'>Differences are to the first row, the prior's means (tau = 0), on the same questions, with "
        "95 % intervals. "
        f"Seed of the trainings: {escape(run.config['seed'])}.</p>"
    )


def _suite(record: FaithfulnessRecord) -> str:
    asked = f"the {TEST_SPLIT}" if record.benchmark == TEST_SPLIT else record.benchmark
    accuracy, likelihood = [], []
    for i, row in enumerate(record.rows):
        about = {"latents": row.variant, "n": f"{row.n:,}"}
        accuracy.append(
            {
                **about,
                "accuracy": _percent(row.accuracy, row.low, row.high),
                "difference": _points(row.difference, row.difference_low, row.difference_high) if i else "-",
                "p": p_text(row.p_value) if i else "-",
                "test": row.test if i else "-",
            }
        )
        likelihood.append(
            {
                **about,
                "log p(answer), nats": _interval(row.log_likelihood, row.log_likelihood_low, row.log_likelihood_high),
                "difference, nats": nats(row) if i else "-",
                "p": p_text(row.log_likelihood_p) if i else "-",
                "test": "sign flips" if i else "-",
            }
        )
    return (
        f"<div class='card plot'><h3>Accuracy on {escape(asked)} with the latents changed, 95 % intervals; "
        "dashed: unchanged</h3>"
        f"{_forest(record.rows)}<p class='note'>{escape(record.verdict)}</p></div>"
        f"<div class='card wide'>{_table(accuracy)}</div><div class='card wide'>{_table(likelihood)}</div>"
    )


def _forest(rows: Sequence[VariantScore]) -> str:
    """A dot and an interval for each variant, as SVG; variants that differ from the first with p < 0.05 stand out."""
    left = 24.0 + 6.0 * max(len(_short(row.variant)) for row in rows)
    width, line, right = 520.0, 22.0, 130.0
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    low, high = max(0.0, low - 0.02), min(1.0, high + 0.02)
    bottom = 8 + line * len(rows)

    def x(value: float) -> float:
        return left + width * (value - low) / max(high - low, 1e-9)

    unchanged = f"x1='{x(rows[0].accuracy):.1f}' x2='{x(rows[0].accuracy):.1f}' y1='2' y2='{bottom:.0f}'"
    parts = [
        f"<line {unchanged} stroke='#667085' stroke-dasharray='4 3'/>",
        f"<line x1='{left}' x2='{left + width}' y1='{bottom:.0f}' y2='{bottom:.0f}' stroke='#d0d5dd'/>",
    ]
    for tick in range(5):
        value = low + tick * (high - low) / 4
        parts.append(f"<text x='{x(value):.1f}' y='{bottom + 15:.0f}' text-anchor='middle'>{100 * value:.0f} %</text>")
    for i, row in enumerate(rows):
        y = 4 + line * (i + 0.5)
        colour = "#1d2430" if i == 0 else "#d55e00" if row.p_value < 0.05 else "#2f7d6b"
        parts.append(
            f"<text x='{left - 12}' y='{y + 4:.1f}' text-anchor='end'>{escape(_short(row.variant))}</text>"
            f"<line x1='{x(row.low):.1f}' x2='{x(row.high):.1f}' y1='{y:.1f}' y2='{y:.1f}' stroke='{colour}' "
            f"stroke-width='2'/><circle cx='{x(row.accuracy):.1f}' cy='{y:.1f}' r='4.5' fill='{colour}'/>"
            f"<text x='{left + width + 12}' y='{y + 4:.1f}'>{100 * row.accuracy:.1f} %"
            f"{'' if i == 0 else f', p {p_text(row.p_value)}'}</text>"
        )
    return f"<svg viewBox='0 0 {left + width + right:.0f} {bottom + 22:.0f}' role='img'>{''.join(parts)}</svg>"


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:34]} ..."


def _analysis(run: Run) -> str:
    record = run.analysis
    if record is None:
        return _absent(run, "there is no geometry to measure", "evaluation.analysis_items")
    paper = TABLE_7["AMVL"]
    geometry = [
        {"": "ours", **{name: f"{value:.4g}" for name, value in record.geometry.items()}},
        {"": "paper, AMVL (7B)", **{name: f"{paper[name]:.4g}" if name in paper else "-" for name in record.geometry}},
    ]
    facts = {
        "questions": f"{record.n:,}",
        "active units": f"{record.active_units:,}",
        "I_q(Z; Y | X), nats": f"{record.mutual_information:.4g} to {record.mutual_information_upper:.4g}",
        "bounded with answers": f"{record.candidates:.4g}",
        **{f"sensitivity, {name}": f"{value:.4g}" for name, value in record.sensitivity.items()},
        **{f"KL(q || p), slot {i}, nats": f"{kl:.4g}" for i, kl in enumerate(record.kl_per_slot, 1)},
    }
    pictures = "".join(
        f"<figure>{_image(url, name)}<figcaption>{escape(name)}</figcaption></figure>"
        for name, url in run.analysis_pictures.items()
    )
    left_out = f"<p class='note'>Not shown, for size: {escape(', '.join(run.left_out))}.</p>" if run.left_out else ""
    return (
        f"<div class='card wide'><h3>Geometry of the latents (Table 7); distances scale with their width</h3>"
        f"{_table(geometry)}</div><div class='pair' style='margin-top:16px'>"
        f"<div class='card plot'><h3>Cosine between slots (Figure 4, left)</h3>{_similarity(record.similarity)}</div>"
        f"<div class='card plot'><h3>Information</h3>{_pairs(facts)}</div></div>"
        f"<div class='pictures'>{pictures}</div>{left_out}"
    )


def _similarity(rows: Sequence[Sequence[float]]) -> str:
    """A square of cells, the darker the closer to 1."""
    lines = "".join(
        "<tr>"
        + "".join(f"<td style='background:rgba(47,125,107,{max(v, 0.0) * 0.75:.2f})'>{v:.2f}</td>" for v in row)
        + "</tr>"
        for row in rows
    )
    return f"<table class='grid'>{lines}</table>"


def _absent(run: Run, why: str, setting: str) -> str:
    if run.method != "amvl":
        said = f"The final model was trained with {run.method}: it reads no latents, so {why}."
    else:
        said = f"Not computed in this run; see {setting} in the configuration. It needs two questions or more."
    return f"<div class='card soft'>{escape(said)}</div>"


def _answers(run: Run) -> str:
    if not run.samples:
        return "<div class='card soft'>No answers are stored.</div>"
    note = (
        f"A sample of {len(run.samples)}, wrong ones first; the whole of every raw output is in predictions.parquet. "
        f"In the frame: what {run.labels[1]} wrote."
    )
    shown = "".join(_answer(sample, run.labels) for sample in run.samples)
    return f"<div class='answers'>{shown}</div><p class='note'>{escape(note)}</p>"


def _answer(sample: Sample, labels: tuple[str, str]) -> str:
    images = "".join(_image(url, "") for url in sample.images) or "<span class='soft'>no image</span>"
    raw = sample.raw_output[:RAW_CHARACTERS] + (" ..." if len(sample.raw_output) > RAW_CHARACTERS else "")
    lines = (("expected", sample.answer), (labels[1], sample.prediction), (labels[0], sample.before))
    said = "".join(f"<div><span class='soft'>{escape(name)}</span> {escape(text)}</div>" for name, text in lines)
    several = " several" if len(sample.images) > 1 else ""
    return (
        f"<figure class='{'right-answer' if sample.correct else 'wrong'}'><div class='picture{several}'>{images}</div>"
        f"<figcaption><code>{escape(sample.task)}, {escape(sample.sample_id)}</code><br>"
        f"<span class='q'>{escape(sample.question)}</span>{said}<pre>{escape(raw)}</pre></figcaption></figure>"
    )


def _training(run: Run) -> str:
    if "training" not in run.charts:
        return "<div class='card soft'>No stage was trained in this run: their curves are with the run that did.</div>"
    return f"<div class='card plot'>{_image(run.charts['training'], 'training curves', standing=True)}</div>"


def _data(dataset: DatasetRecord) -> str:
    rows = [
        {
            "source": report.source,
            "split": report.split,
            "read": f"{report.read:,}",
            "kept": f"{report.kept:,}",
            "dropped": ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in report.dropped.items())
            or "none",
        }
        for report in dataset.reports
    ]
    note = (
        f"Dataset {dataset.fingerprint}, {dataset.rows('train'):,} training and {dataset.rows('test'):,} test samples. "
        "Its own report, with examples and distributions, is data/report.html of the tracking run."
    )
    return f"<div class='card'>{_table(rows)}</div><p class='note'>{escape(note)}</p>"


def _values(values: Mapping[str, str]) -> str:
    return f"<div class='card'>{_pairs(values)}</div>"


def _pairs(values: Mapping[str, str]) -> str:
    pairs = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in values.items())
    return f"<div class='values'>{pairs}</div>"


def _table(rows: Table, whole: bool = False) -> str:
    """An HTML table; every column but the first is to the right. `whole`: the last row sums up the others.

    What is the same in every row (`BELOW`) stands below. Where the page is narrow a row becomes a list, and style
    rules of the table bring the columns' names.
    """
    if not rows:
        return "<span class='soft'>nothing</span>"
    alike = {name: {row[name] for row in rows} - {"-"} for name in BELOW if name in rows[0]}
    below = {name: found.pop() for name, found in alike.items() if len(found) == 1}
    rows = [{name: value for name, value in row.items() if name not in below} for row in rows]
    names = list(rows[0])
    sides = ["" if i == 0 else " class='right'" for i in range(len(names))]
    head = "".join(f"<th{side}>{escape(name)}</th>" for name, side in zip(names, sides, strict=True))
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{side}>{escape(value)}</td>" for value, side in zip(row.values(), sides, strict=True))
        lines.append(f"<tr{' class=all' if whole and i == len(rows) - 1 else ''}>{cells}</tr>")
    kind = f"t{zlib.crc32(repr(names).encode()):08x}"
    labels = "".join(f".{kind} td:nth-child({i}){{--name:{_css(name)}}}" for i, name in enumerate(names[1:], 2))
    said = "; ".join(f"{BELOW[name]}: {escape(value)}" for name, value in below.items())
    note = f"<p class='note'>{said}.</p>" if said else ""
    return (
        f"<style>{labels}</style><table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        f"</table>{note}"
    )


def _css(text: str) -> str:
    """A string of a style sheet, with whatever may end one as its code."""
    return '"' + "".join(c if c.isalnum() else f"\\{ord(c):x} " for c in text) + '"'


def _image(url: str, alternative: str, standing: bool = False) -> str:
    """A picture; one that is `standing` is wide and is scrolled where the page is narrow."""
    assert url.startswith("data:image/"), "a page that needs nothing else holds its pictures"
    return f"<img src='{escape(url)}' alt='{escape(alternative)}'{' class=standing' if standing else ''}>"


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
