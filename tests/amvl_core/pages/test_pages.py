import base64
import io
import re
from html import unescape
from pathlib import Path

import pytest
from jinja2.exceptions import UndefinedError
from PIL import Image

from amvl_core.pages import Rows, data_url, render, thumbnail
from tests.data_prep.pictures import png


def test_a_thumbnail_is_small_whatever_the_image() -> None:
    data = thumbnail(png(900, 400), 300).removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (300, 133)


def test_a_page_loads_nothing_and_escapes_every_value(tmp_path: Path) -> None:
    (tmp_path / "one.css").write_text(".a { color: red; }")
    (tmp_path / "one.html").write_text(
        '{% extends "base.html" %}{% block style %}{% include "one.css" %}{% endblock %}'
        "{% block body %}<p>{{ said }}</p>{% endblock %}"
    )
    text = render(tmp_path / "one.html", title="<script>x</script>", said="<b>&")
    assert "<title>&lt;script&gt;" in text
    assert "<p>&lt;b&gt;&amp;</p>" in text
    assert "default-src 'none'" in text
    assert ".a { color: red; }" in text
    assert data_url(b"\x00", "png") == "data:image/png;base64,AA=="
    with pytest.raises(UndefinedError):
        render(tmp_path / "one.html", title="no value for the other")


def table(rows: Rows, folder: Path) -> str:
    (folder / "table.html").write_text('{% from "parts.html" import table %}{{ table(rows) }}')
    return render(folder / "table.html", rows=rows)


def test_what_every_row_says_alike_stands_below_and_a_narrow_page_names_each_value(tmp_path: Path) -> None:
    one = {"task": "a", "n": "40", 'odd "name"; </style>': "1", "test": "sign flips", "seed": "3"}
    shown = table([one, one | {"test": "-"}, one | {"task": "b"}], tmp_path)
    assert "<p class='note'>p by: sign flips; seed of the trainings: 3.</p>" in shown
    heads = list(one)[:3]
    assert [unescape(head) for head in re.findall(r"<th(?: [^>]*)?>(.*?)</th>", shown)] == heads
    (kind,) = re.findall(r"<table class='(\w+)'>", shown)
    assert shown.startswith(
        f'<style>.{kind} td:nth-child(2){{--name:"n"}}.{kind} td:nth-child(3){{--name:"odd\\20 \\22 '
    )
    assert shown.count("</style>") == 1
    mixed = table([one, one | {"test": "McNemar exact", "seed": "4"}], tmp_path)
    assert [unescape(head) for head in re.findall(r"<th(?: [^>]*)?>(.*?)</th>", mixed)] == [*heads, "test", "seed"]
    assert "class='note'" not in mixed
