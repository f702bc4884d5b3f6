"""The propositions on a linear-Gaussian problem: hand-derived optimum against gradient descent on our objectives."""

from itertools import pairwise

import pytest

from amvl_core.methods.amvl.analysis.leakage import Problem, closed_form, optimised

GAMMAS = (0.0, 0.25, 0.5, 1.0, 4.0)


@pytest.mark.parametrize("problem", [Problem(), Problem(bias=-1.2, tau=0.8, sigma=0.3)], ids=["default", "sharp"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradients_of_the_objectives_lead_to_the_closed_form(problem: Problem, gamma: float) -> None:
    """Propositions C.1 and C.4; after 800 steps no figure was further off than 1e-8."""
    found, expected = optimised(problem, gamma), closed_form(problem, gamma)
    assert found.alpha == pytest.approx(expected.alpha, abs=1e-4)
    assert found.contamination == pytest.approx(expected.contamination, abs=1e-4)


def test_the_forward_kl_moves_the_prior_alone() -> None:
    """Proposition C.2: whatever its weight, the posterior keeps its leakage, and the prior takes it over."""
    for beta in (0.5, 1.0, 5.0):
        found = optimised(Problem(), gamma=0.0, beta=beta)
        assert found.alpha == pytest.approx(1.0, abs=1e-4)
        assert found.contamination == pytest.approx(Problem().bias, abs=1e-3)


def test_leakage_falls_with_gamma_and_faster_where_the_posterior_is_sharp() -> None:
    """Corollaries 1 and 2."""
    wide, sharp = ([closed_form(Problem(sigma=sigma), gamma).alpha for gamma in GAMMAS] for sigma in (0.5, 0.2))
    for alphas in (wide, sharp):
        assert alphas[0] == 1.0
        assert all(after < before for before, after in pairwise(alphas))
    assert all(b < a for a, b in zip(wide[1:], sharp[1:], strict=True))
