import re

import torch

from amvl_core.contracts.config import StageConfig
from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.progress import Advice
from amvl_core.contracts.watch import WINDOW
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.sft.config import SftMethod
from amvl_core.train.watch import MAX_SKIPS, NAMED, Refusal, Skips, watches

LATENT = LatentConfig(dim=100)


def run(stage: StageConfig, *parts: tuple[int, dict[str, float]]) -> list[tuple[int, Advice]]:
    """Advice by the number of the logged step, 1 the first; each part is so many steps with the same terms."""
    watched = watches(stage, LATENT)
    steps = [terms for count, terms in parts for _ in range(count)]
    return [(n, advice) for n, terms in enumerate(steps, 1) for watch in watched for advice in watch.step(terms)]


def amvl(**method: object) -> StageConfig:
    return StageConfig(method=AmvlMethod.model_validate(method), steps=1)


def kl(value: float, beta: float = 1.0, gamma: float = 0.0) -> dict[str, float]:
    return {"kl_forward": value, "beta": beta, "gamma": gamma}


def test_data_wait_is_said_once_for_each_onset() -> None:
    stage = StageConfig(method=SftMethod(), steps=1)
    found = run(stage, (WINDOW, {"data_wait": 0.2}), (99, {"data_wait": 0.3}))
    assert [number for number, _ in found] == [WINDOW]
    assert found[0][1].kind == "data_wait"
    assert "20.0%" in found[0][1].text and "loader_workers" in found[0][1].text
    again = run(stage, (30, {"data_wait": 0.2}), (30, {"data_wait": 0.0}), (30, {"data_wait": 0.2}))
    assert len(again) == 2


def test_a_mean_that_wavers_about_the_limit_is_said_once() -> None:
    stage = StageConfig(method=SftMethod(), steps=1)
    waves = [(WINDOW, {"data_wait": wait}) for wait in (0.06, 0.04, 0.06, 0.04, 0.06)]
    assert len(run(stage, *waves)) == 1


def test_no_single_slow_step_and_no_short_run_is_judged() -> None:
    stage = StageConfig(method=SftMethod(), steps=1)
    assert run(stage, (WINDOW - 1, {"data_wait": 0.9})) == []
    assert run(stage, (50, {"data_wait": 0.01}), (1, {"data_wait": 0.7}), (50, {"data_wait": 0.01})) == []


def test_a_collapsed_kl_is_told_with_the_fields_that_help() -> None:
    found = run(amvl(kl_reduction="mean"), (WINDOW, kl(0.0001)))
    assert [advice.kind for _, advice in found] == ["kl_collapse"]
    assert "0.0001 nats" in found[0][1].text and "beta_max" in found[0][1].text
    assert run(amvl(kl_reduction="mean"), (WINDOW, kl(0.05))) == []


def test_a_kl_that_is_summed_is_judged_per_dimension() -> None:
    """0.05 is healthy as a mean over dimensions, and nothing as a sum over 100."""
    assert run(amvl(kl_reduction="sum"), (WINDOW, kl(0.05)))[0][1].kind == "kl_collapse"
    assert run(amvl(kl_reduction="sum"), (WINDOW, kl(5.0))) == []


def test_a_small_kl_before_a_weight_is_warmed_up_is_no_collapse() -> None:
    """Fresh heads make prior and posterior equal."""
    mean = {"kl_reduction": "mean", "beta_max": 1.0, "gamma_max": 0.5}
    assert run(amvl(**mean), (100, kl(0.0, beta=0.0)), (100, kl(0.0, beta=0.9, gamma=0.4))) == []
    assert run(amvl(**mean), (100, kl(0.0, beta=0.9)), (WINDOW - 1, kl(0.0, beta=1.0))) == []
    for beta, gamma in ((1.0, 0.0), (0.0, 0.5)):
        found = run(amvl(**mean), (100, kl(0.0, beta=0.0)), (WINDOW, kl(0.0, beta, gamma)))
        assert [(number, advice.kind) for number, advice in found] == [(100 + WINDOW, "kl_collapse")]
    assert run(amvl(kl_reduction="mean", beta_max=0, gamma_max=0.5), (100, kl(0.0, beta=0.0))) == []


def test_a_weight_that_is_no_float32_and_comes_in_shares_is_warmed_up() -> None:
    """It is logged as a sum over micro-batches, in float32: 0.7 is less than 0.7 there."""
    for parts in (1, 7):
        logged = float(sum((torch.tensor(0.7) / parts for _ in range(parts)), torch.tensor(0.0)))
        found = run(amvl(kl_reduction="mean", beta_max=0.7, gamma_max=0.0), (WINDOW, kl(0.0, beta=logged)))
        assert [advice.kind for _, advice in found] == ["kl_collapse"]


def test_a_kl_that_grows_without_a_forward_weight_is_a_leak() -> None:
    found = run(amvl(kl_reduction="mean", beta_max=0), (WINDOW, kl(8.0, beta=0.0)))
    assert [advice.kind for _, advice in found] == ["kl_leak"]
    assert "the answer" in found[0][1].text
    assert run(amvl(kl_reduction="mean"), (WINDOW, kl(8.0, beta=0.5))) == []


def test_stop_names_the_samples_and_what_the_weights_are() -> None:
    skips = Skips("stop")
    assert skips.step(7, None) == ([], None)
    [advice], fault = skips.step(8, Refusal(True, ("a", "b")))
    assert re.match(r"step 8: the loss is not finite on the samples a, b; .*those of step 7.*skip", advice.text)
    assert isinstance(fault, AmvlError) and str(fault) == advice.text
    assert advice.kind == "nonfinite" and advice.samples == ("a", "b")


def test_skip_goes_on_until_it_is_not_the_samples() -> None:
    skips = Skips("skip")
    for done in range(1, 100):
        [advice], fault = skips.step(2 * done, Refusal(True, ("bad",)))
        assert fault is None and advice.kind == "nonfinite" and "bad" in advice.text
        assert skips.step(2 * done + 1, None) == ([], None)
    gradient = Refusal(False, ("a", "b"))
    for done in range(200, 200 + MAX_SKIPS - 1):
        assert skips.step(done, gradient)[1] is None
    [advice], fault = skips.step(300, gradient)
    assert re.search(rf"the gradient is not finite.* a, b; .*{MAX_SKIPS}th step in a row.*learning rate", advice.text)
    assert str(fault) == advice.text


def test_a_long_list_of_samples_is_cut_in_the_text_alone() -> None:
    names = tuple(f"s{i}" for i in range(NAMED + 4))
    [advice], _ = Skips("skip").step(1, Refusal(True, names))
    assert f"s{NAMED - 1} and 4 more" in advice.text and f"s{NAMED}," not in advice.text
    assert advice.samples == names
