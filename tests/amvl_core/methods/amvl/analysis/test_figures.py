"""Figures and numbers of the smallest analysis that there is: two samples, a latent of one number."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.records import AnalysisRecord
from amvl_core.eval.analysis import read_tables, write_figures
from amvl_core.eval.stored import write_table
from amvl_core.methods.amvl.analysis import charts
from amvl_core.methods.amvl.analysis.analysis import AmvlAnalysis
from amvl_core.methods.amvl.analysis.summary import Summary

NOTHING = [float("nan")] * 2


def record(folder: Path, width: int, image_shift: list[float], text_shift: list[float]) -> AnalysisRecord:
    """Of two samples with two slots of `width` each; a shift that is NaN had nothing to permute."""
    rows = []
    for i in range(2):
        latent = np.linspace(i, i + 1, 2 * width).tolist()
        means = {"prior_mean": latent, "posterior_mean": [2 * value for value in latent]}
        spreads = {name: [0.0] * 2 * width for name in ("prior_logvar", "posterior_logvar")}
        shifts = {"image_shift": image_shift, "text_shift": text_shift}
        rows.append({"sample_id": f"s{i}", "task": "t", **means, **spreads, **shifts})
    table = pa.Table.from_pylist(rows)
    write_table(str(folder / "latents.parquet"), table)
    ids = {"uri": str(folder), "fingerprint": "a", "checkpoint": "c", "stage": "amvl", "dataset": "d"}
    numbers = AmvlAnalysis().numbers({"latents": table}, LatentConfig(num_slots=2))
    return AnalysisRecord(**ids, files=["latents.parquet"], numbers=numbers)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize(
    ("image", "text", "kinds"),
    [(NOTHING, NOTHING, []), (NOTHING, [1.0, 2.0], ["text"]), ([1.0, 2.0], NOTHING, ["image"])],
)
def test_two_samples_are_drawn_with_what_they_have(
    tmp_path: Path, width: int, image: list[float], text: list[float], kinds: list[str]
) -> None:
    found = record(tmp_path, width, image, text)
    analysis, tables, numbers = AmvlAnalysis(), read_tables(found), Summary.of(found)
    assert list(numbers.sensitivity) == kinds
    names = ["geometry", "similarity", "information", *(["sensitivity"] if kinds else [])]
    assert list(analysis.draw(found, tables)) == names
    assert write_figures(analysis, found) == [f"{name}.png" for name in names]
    assert (numbers.n, numbers.candidates) == (2, 0.0)
    for name in names:
        assert analysis.data(found, tables, name)


def test_a_question_with_a_formula_is_a_caption() -> None:
    figure = charts.heat_maps([Image.new("RGB", (40, 20))], ["What is $\\frac{1$?"], [np.zeros((2, 4, 2))])
    figure.savefig(io.BytesIO())


def test_a_heat_map_lies_over_its_whole_image() -> None:
    image = Image.new("RGB", (40, 20))
    axes = charts.heat_maps([image], ["What? red"], [np.arange(16.0).reshape(2, 4, 2)]).axes
    assert len(axes) == 3
    for axis in axes[1:]:
        picture, heat = axis.images
        assert heat.get_extent() == picture.get_extent()
        assert heat.get_clim() == (0, 15)
    assert axes[2].images[1].get_array().tolist() == [[1, 3, 5, 7], [9, 11, 13, 15]]
