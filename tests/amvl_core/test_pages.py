import base64
import io

from PIL import Image

from amvl_core.pages import data_url, page, thumbnail
from tests.data_prep.pictures import png


def test_a_thumbnail_is_small_whatever_the_image() -> None:
    data = thumbnail(png(900, 400), 300).removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (300, 133)


def test_a_page_loads_nothing_and_escapes_its_title() -> None:
    text = page("<script>x</script>", "<p>body</p>", ".a { color: red; }")
    assert "<title>&lt;script&gt;" in text
    assert "default-src 'none'" in text
    assert ".a { color: red; }</style>" in text
    assert data_url(b"\x00", "png") == "data:image/png;base64,AA=="
