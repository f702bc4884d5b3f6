import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import StoredSample
from amvl_core.methods.amvl.analysis import occlusion
from amvl_core.methods.amvl.analysis.occlusion import occlusion_map
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.probes import Prober
from tests.amvl_core.methods.amvl.test_probes import items
from tests.shards import sample_of
from tests.tiny import LATENT, amvl_model

CELL = 16  # pixels of a merged patch: patch size 8, two by two
WIDTH, HEIGHT = 64, 48
COLOURS = [(40, 80, 120), (80, 120, 40)]
MEAN = (60, 100, 80)


def board() -> Image.Image:
    """4 x 3 cells in two colours, half of each: the mean colour is a whole number."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    for number in range(12):
        x, y = number % 4 * CELL, number // 4 * CELL
        draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), COLOURS[(number % 4 + number // 4) % 2])
    return image


def item(image: Image.Image) -> StoredSample:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return sample_of("board", "<image>What?", "red", [buffer.getvalue()])


@pytest.fixture()
def prober() -> Prober:
    model, processor = amvl_model()
    processor.image_processor.size = {"shortest_edge": 16, "longest_edge": WIDTH * HEIGHT}
    return Prober(model, processor, AmvlMethod())


def painted(prober: Prober, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """The shifts that come from painting the boxes on the picture itself, one after the other."""
    with torch.no_grad():
        plain = prober.read([item(board())])[1].prior.mean
        shifts = []
        for box in boxes:
            image = board()
            ImageDraw.Draw(image).rectangle(box, MEAN)
            shifts.append((prober.read([item(image)])[1].prior.mean - plain).norm(dim=-1)[0])
    return torch.stack(shifts).numpy()


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_masking_a_cell_is_painting_it_on_the_picture(prober: Prober, rows: int) -> None:
    """Pixels are float32: shifts of 0.004 to 0.010 differed by at most 2.4e-8."""
    found = occlusion_map(prober, item(board()), rows)
    assert found.shape == (3, 4, LATENT.num_slots)
    boxes = [(x * CELL, y * CELL, (x + 1) * CELL - 1, (y + 1) * CELL - 1) for y in range(3) for x in range(4)]
    np.testing.assert_allclose(found.reshape(12, -1), painted(prober, boxes), rtol=0, atol=2e-7)
    assert found.min() > 1e-3


def test_a_large_grid_is_covered_in_blocks(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occlusion, "MAX_CELLS", 2)
    found = occlusion_map(prober, item(board()), rows=8)
    boxes = [(0, 0, 31, 31), (32, 0, 63, 31), (0, 32, 31, 47), (32, 32, 63, 47)]
    np.testing.assert_allclose(found.reshape(4, -1), painted(prober, boxes), rtol=0, atol=2e-7)


def test_an_image_of_one_colour_has_an_empty_map(prober: Prober) -> None:
    found = occlusion_map(prober, item(Image.new("RGB", (WIDTH, HEIGHT), "red")), rows=8)
    assert found.max() < 1e-5


def test_a_question_without_an_image_is_refused(prober: Prober) -> None:
    with pytest.raises(DataError, match="sample-2 has no image to mask"):
        occlusion_map(prober, items()[2], rows=4)
