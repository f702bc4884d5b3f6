import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from amvl_core.methods.amvl.analysis.geometry import (
    TABLE_7,
    Latents,
    active_units,
    geometry,
    kl_per_slot,
    slot_similarity,
    spread,
)


def latents(seed: int = 0) -> Latents:
    rng = np.random.default_rng(seed)
    return Latents(*(rng.normal(size=(50, 4, 6)) for _ in range(4)))


def test_table_7_of_two_clouds_that_differ_by_an_offset() -> None:
    """The paper's pattern at its extreme: all of the paired distance is the shift, and centred nothing is left."""
    base = latents()
    offset = np.full(6, 2.0)
    found = geometry(base._replace(posterior_mean=base.prior_mean + offset))
    assert found["S_p"] == pytest.approx(found["S_q"])
    assert found["D_L2"] == pytest.approx(np.sqrt(24)) == pytest.approx(found["D_shift"])
    assert found["D_L2_centred"] == pytest.approx(0, abs=1e-12)
    assert found["cos_centred"] == pytest.approx(1)
    assert found["cos"] < 0.9


def test_table_7_of_random_clouds_is_what_torch_gives() -> None:
    given = latents()
    p, q = (torch.from_numpy(part).mean(1) for part in (given.prior_mean, given.posterior_mean))
    found = geometry(given)
    assert found["S_p"] == pytest.approx(float(torch.cdist(p, p.mean(0, keepdim=True)).mean()))
    assert found["S_q"] == pytest.approx(float(torch.cdist(q, q.mean(0, keepdim=True)).mean()))
    assert found["D_L2"] == pytest.approx(float(torch.nn.functional.pairwise_distance(p, q, eps=0).mean()))
    assert found["cos"] == pytest.approx(float(torch.nn.functional.cosine_similarity(p, q).mean()))
    assert found["D_shift"] == pytest.approx(float(torch.dist(p.mean(0), q.mean(0))))


@pytest.mark.parametrize("row", TABLE_7)
def test_the_papers_rows_obey_the_triangle_inequality(row: str) -> None:
    """D_shift <= D_L2 <= S_p + S_q + D_shift for any two clouds: a misprint in what we quote would show."""
    values = TABLE_7[row]
    assert values["D_shift"] <= values["D_L2"] <= values["S_p"] + values["S_q"] + values["D_shift"]


def test_kl_per_slot_is_that_of_torch() -> None:
    given = latents()
    p, q = (
        Normal(torch.from_numpy(mean), torch.from_numpy(np.exp(0.5 * logvar)))
        for mean, logvar in (given[:2], given[2:])
    )
    np.testing.assert_allclose(kl_per_slot(given), kl_divergence(q, p).sum(-1).mean(0).numpy(), rtol=1e-12)


def test_similarity_of_slots_is_the_mean_cosine() -> None:
    mean = latents().prior_mean
    found = slot_similarity(mean)
    z = torch.from_numpy(mean)
    for i in range(4):
        for j in range(4):
            cosine = torch.nn.functional.cosine_similarity(z[:, i], z[:, j], dim=-1).mean()
            assert found[i, j] == pytest.approx(float(cosine))


def test_units_are_active_where_the_posterior_varies() -> None:
    given = latents()
    posterior = np.ones((50, 4, 6))
    posterior[:, 1, 2] += np.linspace(-1, 1, 50)  # variance 0.35
    posterior[:, 2, 2] += np.linspace(-0.1, 0.1, 50)  # variance 0.0035
    assert active_units(given._replace(posterior_mean=posterior)) == 1


def test_spread_is_the_mean_distance_to_the_slots_centre() -> None:
    mean = np.zeros((2, 1, 3))
    mean[0, 0, 0], mean[1, 0, 0] = 3.0, -1.0
    assert spread(mean).tolist() == [2.0]
