"""What every page that is one HTML file shares: the report of a dataset and that of a run."""

from __future__ import annotations

import base64
import io
from html import escape

from amvl_core.data.pixels import decode

STYLE = """
:root { --ink: #1d2430; --soft: #667085; --line: #e4e7ec; --paper: #ffffff; --back: #f6f7f9; --accent: #2f7d6b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; margin: 0; letter-spacing: -.02em; } h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 13px; margin: 0 0 10px; color: var(--soft); font-weight: 600; }
code { font: 12.5px ui-monospace, monospace; color: var(--soft); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 20px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 16px; margin: 24px 0; }
.tile b { display: block; font-size: 30px; line-height: 1.15; letter-spacing: -.02em; font-weight: 650; }
.tile span, .soft { color: var(--soft); font-size: 13px; }
.flow { display: grid; grid-template-columns: 170px 1fr 150px; gap: 14px; align-items: center; padding: 7px 0; }
.bar { display: flex; height: 16px; border-radius: 5px; overflow: hidden; background: var(--line); }
.bar i { display: block; min-width: 2px; }
.right { text-align: right; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin-top: 12px; font-size: 13px; color: var(--soft); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
table { width: 100%; border-collapse: collapse; font-size: 13.5px; }
th { text-align: left; color: var(--soft); font-weight: 600; padding: 0 12px 8px 0;
  border-bottom: 1px solid var(--line); }
td { padding: 9px 12px 9px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.right, th.right { padding-right: 24px; }
td p { margin: 0 0 3px; overflow-wrap: anywhere; } td.reason { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; }
svg { display: block; width: 100%; height: auto; } svg text { font: 10.5px system-ui, sans-serif; fill: var(--soft); }
.answer { display: grid; grid-template-columns: minmax(60px, 40%) 1fr 52px; gap: 8px; align-items: center;
  font-size: 12.5px; line-height: 1.7; }
.answer span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.answer i { display: block; height: 9px; border-radius: 3px; background: var(--accent); opacity: .75; min-width: 2px; }
.samples { display: grid; grid-template-columns: repeat(6, 1fr); gap: 16px; margin-top: 16px; }
figure { margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
figure .picture { height: 150px; display: flex; align-items: center; justify-content: center; background: #eef0f3;
  position: relative; }
figure img { width: 100%; height: 150px; object-fit: contain; }
figure .more { position: absolute; right: 6px; bottom: 6px; background: #1d2430cc; color: #fff; font-size: 11px;
  border-radius: 6px; padding: 1px 6px; }
figcaption { padding: 9px 11px 11px; font-size: 12.5px; line-height: 1.4; overflow-wrap: anywhere; }
figcaption b { display: block; color: var(--accent); margin-top: 4px; }
figcaption .q { display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow: hidden; }
@media screen and (max-width: 860px) { .tiles, .charts, .samples { grid-template-columns: 1fr 1fr; } }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole document; `title` is text, `body` HTML. The browser loads nothing from elsewhere and runs no script."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body><main>\n{body}\n</main></body></html>"
    )


def thumbnail(data: bytes, pixels: int) -> str:
    """An encoded image as a data URL of a JPEG whose longer side is at most `pixels`."""
    small = decode(data)
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return data_url(buffer.getvalue(), "jpeg")


def data_url(data: bytes, kind: str) -> str:
    """The encoded image of the kind `png`, `jpeg` ... as a URL that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
