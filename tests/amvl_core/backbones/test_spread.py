"""Which device a layer lies on; `tests/devices` has models that lie on several."""

import pytest

from amvl_core.backbones.spread import stretches


@pytest.mark.parametrize(
    ("rest", "layers", "devices", "expected"),
    [
        (0.0, [1.0] * 4, 2, [0, 0, 1, 1]),
        (2.0, [1.0] * 4, 2, [0, 1, 1, 1]),
        (0.0, [1.0] * 5, 1, [0] * 5),
        (10.0, [1.0] * 4, 3, [1, 1, 2, 2]),
    ],
    ids=["even", "the first has less room", "one device", "the first is full before"],
)
def test_layers_lie_one_behind_the_other(rest: float, layers: list[float], devices: int, expected: list[int]) -> None:
    assert stretches(rest, layers, devices) == expected
