from __future__ import annotations

import numpy as np
import pytest

from data_prep.duplicate_keys import THUMB_BYTES, features, normalise
from data_prep.images import THUMB_SIDE


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("<image>What  is it?", "what is it", True),
        ("Caf\u00e9?", "CAFE\u0301", True),
        ("Is a > b?", "Is a < b?", False),
        ("x + 1", "x - 1", False),
        ("x\u00b2", "x2", False),
        ("What is 5!", "What is 5", False),
        ("It is 5.", "It is 5", True),
        ("?", "!", False),
    ],
)
def test_what_counts_in_a_text(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) == same


def test_features_are_those_of_the_mean_thumbnail_of_each_row() -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (5, THUMB_BYTES), dtype=np.uint8)
    features_NF = features(thumbs.tobytes(), np.array([0, 2, 0, 1, 2, 0]))
    means = {1: thumbs[:2].mean(0), 3: thumbs[2], 4: thumbs[3:].mean(0)}
    for row in range(6):
        image = means.get(row, np.zeros(THUMB_BYTES)).reshape(THUMB_SIDE, THUMB_SIDE, 3)
        grey, (red, green, blue) = image.mean(2), image.mean((0, 1))
        quadrants = [grey[:16, :16].mean(), grey[:16, 16:].mean(), grey[16:, :16].mean(), grey[16:, 16:].mean()]
        # float32: half a unit in the last place of values up to 255
        assert features_NF[row] == pytest.approx([*quadrants, (red - green) / 2, (blue - green) / 2], abs=2e-5)
