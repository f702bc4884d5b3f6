import math
from dataclasses import replace

import pytest
import torch

from amvl_core.methods.amvl.analysis.information import cross_posteriors, information_bounds
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.probes import Prober
from tests.amvl_core.methods.amvl.test_probes import items
from tests.tiny import amvl_model


@pytest.mark.parametrize(("slope", "sigma"), [(0.5, 1.0), (1.0, 0.5), (2.0, 0.5)])
def test_the_bounds_hold_the_known_information_of_a_linear_gaussian(slope: float, sigma: float) -> None:
    """y ~ N(0, 1), z | y ~ N(slope y, sigma^2) in three dimensions that share y: I = 1/2 log(1 + 3 slope^2 / sigma^2).

    With 256 answers, 40 questions and up to 1.95 nats the lower bound was off by at most 0.021, the upper by 0.060.
    """
    generator = torch.Generator().manual_seed(0)
    y_BM1 = torch.randn(40, 256, 1, generator=generator, dtype=torch.float64)
    mean = slope * y_BM1.expand(-1, -1, 3)
    logvar = torch.full_like(mean, 2 * math.log(sigma))
    bounds = information_bounds(Gaussian(mean, logvar), draws=4, generator=generator)
    true = 0.5 * math.log(1 + 3 * slope**2 / sigma**2)
    error = 3 * float(bounds.lower.std()) / math.sqrt(40)
    assert float(bounds.lower.mean()) - error <= true <= float(bounds.upper.mean()) + error
    assert float(bounds.lower.mean()) == pytest.approx(true, abs=0.03)
    assert float(bounds.upper.mean()) == pytest.approx(true, abs=0.08)


def test_few_answers_bound_from_below_and_above_with_a_gap() -> None:
    """Four answers can show log 4 nats and no more; the upper bound has no such roof."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(500, 4, 1, generator=generator, dtype=torch.float64)
    bounds = information_bounds(Gaussian(20 * y, torch.zeros_like(y)), draws=4, generator=generator)
    true = 0.5 * math.log(1 + 400)
    assert math.log(4) - 0.2 < float(bounds.lower.mean()) <= math.log(4)
    assert float(bounds.lower.mean()) < true < float(bounds.upper.mean())


def test_a_posterior_that_ignores_the_answer_has_no_information() -> None:
    same = Gaussian(torch.ones(3, 5, 7), torch.zeros(3, 5, 7))
    bounds = information_bounds(same, draws=2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bounds.lower, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(bounds.upper, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="1 candidate answer"):
        information_bounds(Gaussian(torch.ones(3, 1, 7), torch.zeros(3, 1, 7)), 1, torch.Generator())


@pytest.mark.parametrize("mask", ["full", "bottleneck"])
@pytest.mark.parametrize("hidden_steps", [0, "all"])
@pytest.mark.parametrize("positions", ["natural", "aligned"])
def test_crossed_posteriors_are_those_of_samples_with_the_other_answer(positions, hidden_steps, mask) -> None:
    """On a CPU they are equal; the tolerance is for kernels whose sums depend on the number of rows."""
    model, processor = amvl_model()
    prober = Prober(model, processor, AmvlMethod(posterior_positions=positions, hidden_steps=hidden_steps, mask=mask))
    asked = [replace(item, steps=("Look.",) * number) for number, item in enumerate(items())]
    with torch.no_grad():
        _, reading = prober.read(asked)
        found = cross_posteriors(model, reading, positions)
        for i, question in enumerate(asked):
            crossed = [replace(question, steps=other.steps, answer=other.answer) for other in asked]
            expected = prober.read(crossed)[1].posterior
            torch.testing.assert_close(found.mean[i], expected.mean, rtol=0, atol=1e-12)
            torch.testing.assert_close(found.logvar[i], expected.logvar, rtol=0, atol=1e-12)
    assert (found.mean[0, 0] - found.mean[0, 1]).abs().max() > 1e-3
