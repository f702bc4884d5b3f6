"""Every way shows a model the same picture: preparation and training, published benchmarks, the served model."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from amvl_core.contracts.config import BenchmarkSource
from amvl_core.contracts.sample import Segment
from amvl_core.data.encode import Encoder, PixelBudget
from amvl_core.data.pixels import decode
from amvl_core.data.reader import ShardReader
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.presets import demo
from data_prep.images import StoredImage, standardise
from data_prep.published import read
from infra.pyfunc_model import read_image
from tests.amvl_core.eval.benchmarks import published
from tests.data_prep.pictures import encode, noise
from tests.kinds import HEIGHT, WIDTH, exif, kinds
from tests.tiny import amvl_model

KINDS = kinds()
BUDGET = PixelBudget(16 * 16, 64 * 64, 16)


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    model, processor = amvl_model(dtype=torch.float32)
    processor.image_processor.size = {"shortest_edge": BUDGET.min_pixels, "longest_edge": BUDGET.max_pixels}
    return Answerer(model, processor)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pictures as questions of a published benchmark, read back from the shard that they are asked from."""
    folder = tmp_path_factory.mktemp("published")
    row = published.hrbench_rows()[0]
    images = [base64.b64encode(data).decode() for data in KINDS.values()]
    published.tsv(folder / "hr_bench_4k.tsv", [{**row, "index": i, "image": image} for i, image in enumerate(images)])
    source = BenchmarkSource(name="hrbench_4k", uri=str(folder))
    record = read(demo(), source, str(folder / "stage"), lambda _: None)
    assert (record.kept, record.dropped) == (len(KINDS), {})
    shards = ShardReader(record, "test")
    rows = [shards[number] for number in range(len(shards))]
    for name, sizes in zip(KINDS, shards.column("image_sizes"), strict=True):
        (size,) = sizes
        assert tuple(size.values()) == decode(KINDS[name]).size
    return {name: question(row).images[0] for name, row in zip(KINDS, rows, strict=True)}


@pytest.mark.parametrize("name", KINDS)
def test_every_way_shows_the_same_pixels(name: str, answerer: Answerer, asked: dict[str, bytes]) -> None:
    data = KINDS[name]
    prepared = standardise(data, BUDGET)
    assert isinstance(prepared, StoredImage)
    assert (prepared.width, prepared.height) == decode(data).size
    assert sorted(decode(data).size) == [HEIGHT, WIDTH]
    assert np.array_equal(decode(prepared.data), decode(data))
    encoder, segments = Encoder(answerer.processor), [Segment("prompt", "<image>What?"), Segment("answer", "x")]
    trained = encoder.encode("sample", segments, [prepared.data]).pixel_values
    assert trained is not None and trained.std() > 0.05
    lines = base64.encodebytes(data).decode()
    for way in (asked[name], read_image(data, 0), read_image(lines, 0)):
        shown = answerer.encode([[way]], ["What?"], (BUDGET.min_pixels, BUDGET.max_pixels)).inputs["pixel_values"]
        assert np.array_equal(shown.numpy(), trained)


def test_a_turned_jpeg_is_served_upright_as_it_is_prepared() -> None:
    data = encode(noise(6, 4).resize((WIDTH, HEIGHT)), "JPEG", quality=95, exif=exif(6))
    prepared = standardise(data, BUDGET)
    assert isinstance(prepared, StoredImage)
    trained, served = decode(prepared.data), decode(read_image(data, 0))
    assert trained.size == served.size == (HEIGHT, WIDTH)
    # Preparation turns it and encodes it once more. Measured: at most 10 of 255 levels, of six pictures.
    assert np.abs(np.asarray(trained, int) - np.asarray(served, int)).max() <= 12


def test_an_image_that_is_scaled_in_preparation_is_served_with_the_same_pixels(answerer: Answerer) -> None:
    data = encode(noise(100, 70))
    prepared = standardise(data, BUDGET)
    assert isinstance(prepared, StoredImage) and prepared.data != data
    shown = [answerer.encode([[way]], ["What?"]).inputs["pixel_values"] for way in (prepared.data, data)]
    assert torch.equal(*shown)
