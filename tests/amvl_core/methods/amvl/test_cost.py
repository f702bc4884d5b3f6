"""What a step takes against plain fine-tuning, at the shape of the 7B model."""

import pytest

from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.cost import RowsOfStep
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.rows.flops import prefill_flops
from infra.plan.shapes import PUBLISHED

SEVEN_B = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"].text


def ways(x: int, y: int, draws: int = 1) -> dict[str, RowsOfStep]:
    return AmvlMethod(posterior_samples=draws).cost(LatentConfig()).ways(x, y)


@pytest.mark.parametrize(("x", "y", "shared", "three"), [(1024, 128, 1.10, 2.89), (2048, 128, 1.04, 2.94)])
def test_the_limits_of_the_shared_prefix_at_7b(x: int, y: int, shared: float, three: float) -> None:
    """The figures of the study that the shared prefix is built on; two decimals."""
    flops = {name: way.flops(SEVEN_B, y) for name, way in ways(x, y).items()}
    assert flops["shared_prefix"] / flops["sft"] == pytest.approx(shared, abs=0.01)
    assert flops["three_pass"] / flops["sft"] == pytest.approx(three, abs=0.01)


def test_draws_repeat_the_decoder_row_alone() -> None:
    one, two, three = (ways(1024, 128, draws)["shared_prefix"].flops(SEVEN_B, 128) for draws in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=1e-12)
    assert two - one < 0.2 * one


def test_pause_tokens_are_rows_of_the_prompt() -> None:
    ((row,),) = PauseMethod().cost(LatentConfig()).step(100, 20).rows
    assert (row.rows, row.read) == (100 + 8 + 2 + 20,) * 2


def test_a_prompt_costs_one_last_layer_less_than_the_stock_models_but_for_its_last_row() -> None:
    """Keys and values are made of every row; 1,023 ask, go through the MLP and are projected less."""
    saved = prefill_flops(SEVEN_B, 1024) - PauseMethod().cost(LatentConfig()).prefill_flops(SEVEN_B, 1024 - 10)
    weights = 2 * 3584 * 3584 + 3 * 3584 * 18944
    assert saved == 2 * 1023 * weights + 4 * 3584 * sum(range(1, 1024))
