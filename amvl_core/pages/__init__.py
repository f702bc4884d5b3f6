"""What every page that is one HTML file shares: the report of a dataset and that of a run.

A page is a Jinja2 template that extends `base.html`. Every value is escaped, the browser loads nothing from elsewhere
and runs no script.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from amvl_core.data.pixels import decode

TEMPLATES = Path(__file__).parent / "templates"
BELOW = {"test": "p by", "read by": "read by", "seed": "seed of the trainings"}
"""Columns that stand below a table where every row says the same, and what they are called there."""

Rows = Sequence[Mapping[str, str]]
"""Rows with the same columns."""


def render(template: Path, **values: Any) -> Markup:
    """The template with these values. It may use those that all pages share, and those of its own folder."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"columns": columns, "held": held}
    return Markup(environment.get_template(template.name).render(values))


class Table(NamedTuple):
    """A table for the macro `table`: `labels` are style rules that bring the columns' names to a narrow page."""

    kind: str
    labels: Markup
    names: list[str]
    rows: list[list[str]]
    below: str


def columns(rows: Rows) -> Table:
    """Rows with what is the same in each of them (`BELOW`) taken out, to stand below."""
    alike = {name: {row[name] for row in rows} - {"-"} for name in BELOW if name in rows[0]}
    below = {name: found.pop() for name, found in alike.items() if len(found) == 1}
    names = [name for name in rows[0] if name not in below]
    kind = f"t{zlib.crc32(repr(names).encode()):08x}"
    labels = "".join(f".{kind} td:nth-child({i}){{--name:{_css(name)}}}" for i, name in enumerate(names[1:], 2))
    said = "; ".join(f"{BELOW[name]}: {value}" for name, value in below.items())
    return Table(kind, Markup(labels), names, [[row[name] for name in names] for row in rows], said)


def held(url: str) -> str:
    """The URL of a picture that is in it: a page needs nothing else."""
    assert url.startswith("data:image/"), url[:80]
    return url


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


def _css(text: str) -> str:
    """A string of a style sheet, with whatever may end one as its code."""
    return '"' + "".join(c if c.isalnum() else f"\\{ord(c):x} " for c in text) + '"'
