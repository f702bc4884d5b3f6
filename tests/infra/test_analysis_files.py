"""Figures and numbers of the smallest analysis that there is: two samples, a latent of one number."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from amvl_core.contracts.records import AnalysisRecord
from infra import analysis_files

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
    analysis_files.write_table(str(folder / "latents.parquet"), table)
    ids = {"uri": str(folder), "fingerprint": "a", "checkpoint": "c", "stage": "amvl", "dataset": "d"}
    return AnalysisRecord(**ids, files=["latents.parquet"], **analysis_files.summary({"latents": table}, slots=2))


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize(
    ("image", "text", "kinds"),
    [(NOTHING, NOTHING, []), (NOTHING, [1.0, 2.0], ["text"]), ([1.0, 2.0], NOTHING, ["image"])],
)
def test_two_samples_are_drawn_with_what_they_have(
    tmp_path: Path, width: int, image: list[float], text: list[float], kinds: list[str]
) -> None:
    found = record(tmp_path, width, image, text)
    assert list(found.sensitivity) == kinds
    names = ["geometry", "similarity", "information", *(["sensitivity"] if kinds else [])]
    assert list(analysis_files.draw(found)) == names
    assert analysis_files.write_figures(found) == [f"{name}.png" for name in names]
    assert (found.n, found.candidates) == (2, 0.0)
    for name in names:
        assert analysis_files.data(found, name)
