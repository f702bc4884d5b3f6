from itertools import pairwise

import pytest

from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.schedules import ramp
from amvl_core.train.schedules import cosine_with_warmup


@pytest.mark.parametrize(
    ("step", "beta", "gamma"),
    [(0, 0, 0), (999, 0.4995, 0), (1000, 0.5, 0), (2000, 1, 0.25), (3000, 1, 0.5), (9000, 1, 0.5)],
)
def test_the_papers_weights(step: int, beta: float, gamma: float) -> None:
    c = AmvlMethod()
    assert ramp(step, c.beta_start, c.beta_warmup, c.beta_max) == pytest.approx(beta)
    assert ramp(step, c.gamma_start, c.gamma_warmup, c.gamma_max) == pytest.approx(gamma)


def test_learning_rate_rises_for_a_twentieth_and_falls_to_zero() -> None:
    factors = [cosine_with_warmup(step, 1000, 0.05) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 50) and factors[49] == factors[50] == 1.0
    assert all(a >= b for a, b in pairwise(factors[50:]))
    assert 0 < factors[-1] < 1e-5
    assert cosine_with_warmup(0, 1, 0.05) == 1.0
